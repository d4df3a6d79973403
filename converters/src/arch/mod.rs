//! Model families as data: what a family's tensors are called, how large they are, and where each one
//! lies in every public format.
//!
//! In: a [`Config`] (read from MiniMind's or Transformers' config.json, from GGUF keys, or a preset).
//! Out: [`weights`], one [`Weight`] per tensor of the model, in a fixed order. Training names its
//! variables by it, import and export walk the same rows in either direction, the runner loads by it.
//!
//! A row says where the tensor lies in a public tensor as a [`Place`]: the public tensor's name and
//! shape, and the block of it that this weight fills. Stacked experts (GGUF), fused gate and up
//! (GraniteMoeShared) and joined shared experts are all such blocks, so one copy routine
//! ([`assemble`]) carries every family both ways.

pub mod assemble;
mod config;
mod gguf_keys;
mod minimind2;
mod minimind3;
pub mod presets;
mod public;
pub mod rope;
mod rotary;

pub use config::{AuxLoss, Config, Moe, RopeScaling};
pub use public::{Public, gather, public_tensors};

/// The four families mmx trains. Each equals a public architecture (see [`Family::transformers_class`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// MiniMind2 and v1, dense: Llama.
    MiniMind2,
    /// MiniMind2 and v1 with routed and shared experts: GraniteMoeShared.
    MiniMind2Moe,
    /// MiniMind-3, dense: Qwen3.
    MiniMind3,
    /// MiniMind-3 with routed experts: Qwen3-MoE.
    MiniMind3Moe,
}

impl Family {
    /// mmx's own name of the family, as in `config.json` of the golden models (`kind`).
    pub fn name(self) -> &'static str {
        match self {
            Self::MiniMind2 => "minimind2",
            Self::MiniMind2Moe => "minimind2-moe",
            Self::MiniMind3 => "minimind3",
            Self::MiniMind3Moe => "minimind3-moe",
        }
    }

    /// The Transformers class that computes the same (EXPORT_FACTS section 1).
    pub fn transformers_class(self) -> &'static str {
        match self {
            Self::MiniMind2 => "LlamaForCausalLM",
            Self::MiniMind2Moe => "GraniteMoeSharedForCausalLM",
            Self::MiniMind3 => "Qwen3ForCausalLM",
            Self::MiniMind3Moe => "Qwen3MoeForCausalLM",
        }
    }

    /// `model_type` in Transformers' config.json.
    pub fn transformers_model_type(self) -> &'static str {
        match self {
            Self::MiniMind2 => "llama",
            Self::MiniMind2Moe => "granitemoeshared",
            Self::MiniMind3 => "qwen3",
            Self::MiniMind3Moe => "qwen3_moe",
        }
    }

    /// `general.architecture` in GGUF.
    pub fn gguf_arch(self) -> &'static str {
        match self {
            Self::MiniMind2 => "llama",
            Self::MiniMind2Moe => "granitemoe",
            Self::MiniMind3 => "qwen3",
            Self::MiniMind3Moe => "qwen3moe",
        }
    }

    /// RMSNorm over head_dim on q and k, before the rotary positions.
    pub fn qk_norm(self) -> bool {
        matches!(self, Self::MiniMind3 | Self::MiniMind3Moe)
    }

    /// Routed experts instead of one feed-forward network.
    pub fn is_moe(self) -> bool {
        matches!(self, Self::MiniMind2Moe | Self::MiniMind3Moe)
    }

    /// GGUF's `llama` and `granitemoe` rotate neighbouring pairs, so rows of q and k are permuted
    /// there ([`rope::permute_rows`]); `qwen3` and `qwen3moe` rotate halves, as all of Transformers.
    pub fn gguf_rotates_pairs(self) -> bool {
        matches!(self, Self::MiniMind2 | Self::MiniMind2Moe)
    }

    /// All families, in a fixed order.
    pub const ALL: [Self; 4] =
        [Self::MiniMind2, Self::MiniMind2Moe, Self::MiniMind3, Self::MiniMind3Moe];
}

/// A way to name and pack a model's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// MiniMind's own names, one tensor per expert; mmx's training variables are named so.
    Reference,
    /// The stock Transformers class; what mmx writes.
    Transformers,
    /// The stock class as Transformers 5 may save it: routed experts fused
    /// (`mlp.experts.gate_up_proj`, `experts.gate_up_proj`). Read only.
    Transformers5,
    /// GGUF names; rows of q and k permuted where [`Family::gguf_rotates_pairs`].
    Gguf,
}

/// The block of a public tensor that one weight fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The public tensor.
    pub tensor: String,
    /// The public tensor's shape, outermost first.
    pub shape: Vec<usize>,
    /// Where the block begins in it; as long as `shape`.
    pub offset: Vec<usize>,
    /// The block's extent; as long as `shape`, its product is the weight's number of elements.
    pub extent: Vec<usize>,
}

impl Place {
    /// The whole of a tensor.
    pub fn whole(tensor: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            tensor: tensor.into(),
            shape: shape.to_vec(),
            offset: vec![0; shape.len()],
            extent: shape.to_vec(),
        }
    }

    /// True when the weight is all of the public tensor.
    pub fn is_whole(&self) -> bool {
        self.shape == self.extent
    }

    /// The block as one run of elements of the public tensor, if it is one: whole tensors, and slices of
    /// a stack.
    pub fn run(&self) -> Option<std::ops::Range<usize>> {
        let full = |d: &usize| self.extent[*d] == self.shape[*d];
        // from the innermost dimension outwards: full ones, one that may be cut, then single entries
        let inner = (0..self.shape.len()).rev().take_while(full).count();
        let outer = self.shape.len() - inner;
        let single = self.extent.iter().take(outer.saturating_sub(1)).all(|&n| n == 1);
        single.then(|| {
            let begin =
                self.offset.iter().zip(&self.shape).fold(0, |at, (offset, n)| at * n + offset);
            begin..begin + self.extent.iter().product::<usize>()
        })
    }
}

/// What a tensor is for: decides its initial values, and its type in a quantized file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token embedding; the output head too when tied.
    Embedding,
    /// Output head of an untied model.
    Head,
    /// A norm's gain: ones at first, float32 in every GGUF.
    Norm,
    /// Router of a mixture of experts: float32 in every GGUF.
    Router,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// Attention output projection.
    AttentionOutput,
    /// Gate and up projections of a feed-forward network or an expert.
    Gate,
    /// See [`Role::Gate`].
    Up,
    /// Down projection of a feed-forward network or an expert.
    Down,
}

/// One row of a family's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// MiniMind's own name, and the training variable's: `model.layers.3.mlp.experts.1.up_proj.weight`.
    pub name: String,
    /// Its shape there, outermost first: matrices are `[out, in]`.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// Where it lies in the stock Transformers class.
    pub transformers: Place,
    /// Where it lies as Transformers 5 may save it, if that differs.
    pub transformers5: Option<Place>,
    /// Where it lies in GGUF.
    pub gguf: Place,
    /// Rows are permuted per head in GGUF ([`rope::permute_rows`]): the number of heads.
    pub gguf_permuted_heads: Option<usize>,
}

impl Weight {
    /// Where this weight lies in `layout`.
    pub fn place(&self, layout: Layout) -> Place {
        match layout {
            Layout::Reference => Place::whole(&self.name, &self.shape),
            Layout::Transformers => self.transformers.clone(),
            Layout::Transformers5 => {
                self.transformers5.clone().unwrap_or_else(|| self.transformers.clone())
            }
            Layout::Gguf => self.gguf.clone(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for matrices that a quantized file may hold in blocks: not norms, not routers.
    pub fn quantize(&self) -> bool {
        !matches!(self.role, Role::Norm | Role::Router)
    }
}

/// The table of a model: every tensor once, in the order of the forward pass.
pub fn weights(config: &Config) -> Vec<Weight> {
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let mut rows = Vec::new();
    rows.push(Row::plain(
        "model.embed_tokens",
        "token_embd",
        &[config.vocab_size, hidden],
        Role::Embedding,
    ));
    for layer in 0..config.num_hidden_layers {
        let mut add = |hf: &str, gguf: &str, shape: &[usize], role: Role| {
            let mut row = Row::plain(
                &format!("model.layers.{layer}.{hf}"),
                &format!("blk.{layer}.{gguf}"),
                shape,
                role,
            );
            row.layer = Some(layer);
            if config.family.gguf_rotates_pairs() {
                row.gguf_permuted_heads = match role {
                    Role::Query => Some(heads),
                    Role::Key => Some(kv_heads),
                    _ => None,
                };
            }
            rows.push(row);
        };
        add("input_layernorm", "attn_norm", &[hidden], Role::Norm);
        add("self_attn.q_proj", "attn_q", &[heads * head_dim, hidden], Role::Query);
        add("self_attn.k_proj", "attn_k", &[kv_heads * head_dim, hidden], Role::Key);
        add("self_attn.v_proj", "attn_v", &[kv_heads * head_dim, hidden], Role::Value);
        add("self_attn.o_proj", "attn_output", &[hidden, heads * head_dim], Role::AttentionOutput);
        if config.family.qk_norm() {
            add("self_attn.q_norm", "attn_q_norm", &[head_dim], Role::Norm);
            add("self_attn.k_norm", "attn_k_norm", &[head_dim], Role::Norm);
        }
        add("post_attention_layernorm", "ffn_norm", &[hidden], Role::Norm);
        match (&config.moe, config.family) {
            (Some(moe), Family::MiniMind2Moe) => {
                minimind2::expert_rows(config, moe, layer, &mut rows)
            }
            (Some(moe), _) => minimind3::expert_rows(config, moe, layer, &mut rows),
            (None, _) => {
                let ffn = config.intermediate_size;
                add("mlp.gate_proj", "ffn_gate", &[ffn, hidden], Role::Gate);
                add("mlp.up_proj", "ffn_up", &[ffn, hidden], Role::Up);
                add("mlp.down_proj", "ffn_down", &[hidden, ffn], Role::Down);
            }
        }
    }
    rows.push(Row::plain("model.norm", "output_norm", &[hidden], Role::Norm));
    if !config.tie_word_embeddings {
        rows.push(Row::plain("lm_head", "output", &[config.vocab_size, hidden], Role::Head));
    }
    rows
}

/// Builders of [`Weight`] rows, for the family files.
struct Row;

impl Row {
    /// A tensor that is whole in every layout; `.weight` is appended to both names.
    fn plain(hf: &str, gguf: &str, shape: &[usize], role: Role) -> Weight {
        let name = format!("{hf}.weight");
        Weight {
            transformers: Place::whole(&name, shape),
            transformers5: None,
            gguf: Place::whole(format!("{gguf}.weight"), shape),
            name,
            shape: shape.to_vec(),
            role,
            layer: None,
            gguf_permuted_heads: None,
        }
    }

    /// Expert `expert` of `experts`: in GGUF (and fused Transformers forms) one slice of a stack.
    /// `tensor` is the stack `[experts, rows, columns]`, the weight fills rows `first_row..`.
    fn slice_of_stack(
        tensor: String,
        stack: [usize; 3],
        expert: usize,
        first_row: usize,
        shape: &[usize],
    ) -> Place {
        Place {
            tensor,
            shape: stack.to_vec(),
            offset: vec![expert, first_row, 0],
            extent: vec![1, shape[0], shape[1]],
        }
    }
}
