//! One row of a family's table: what a tensor is for, its shape, and where it lies in every layout.

use super::lm_config::to_lm_config;

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
    /// The stock class as mlx-lm saves it: routed experts stacked (`mlp.switch_mlp`). Read only.
    Mlx,
    /// The class of MiniMind's first generations ([`super::lm_config`]): Meta's names, rows of q and
    /// k as GGUF's `llama` has them. Read only.
    LmConfig,
    /// GGUF names; rows of q and k permuted where
    /// [`Family::gguf_rotates_pairs`](super::Family::gguf_rotates_pairs).
    Gguf,
}

impl Layout {
    /// All layouts.
    #[cfg(test)]
    pub(super) const ALL: [Self; 6] = [
        Self::Reference,
        Self::Transformers,
        Self::Transformers5,
        Self::Mlx,
        Self::LmConfig,
        Self::Gguf,
    ];

    /// Rows of q and k are permuted, in the families whose GGUF permutes them
    /// ([`Weight::gguf_permuted_heads`]).
    pub fn rotates_pairs(self) -> bool {
        matches!(self, Self::LmConfig | Self::Gguf)
    }
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

    /// The block as one run of elements of the public tensor, if it is one: whole tensors, and
    /// slices of a stack.
    pub fn run(&self) -> Option<std::ops::Range<usize>> {
        let full = |d: &usize| self.extent[*d] == self.shape[*d];
        // from the innermost dimension outwards: full ones, one that may be cut, then single
        // entries
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

/// The role of a tensor in the model: decides its initial values, and its type in a quantized file.
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
    /// Gate projection of a feed-forward network or an expert.
    Gate,
    /// Up projection, beside [`Role::Gate`].
    Up,
    /// Down projection of a feed-forward network or an expert.
    Down,
}

impl Role {
    /// True for the matrices between hidden states, experts' included: neither embedding nor head,
    /// norm or router.
    pub fn is_hidden_matrix(self) -> bool {
        match self {
            Self::Embedding | Self::Head | Self::Norm | Self::Router => false,
            Self::Query | Self::Key | Self::Value | Self::AttentionOutput => true,
            Self::Gate | Self::Up | Self::Down => true,
        }
    }
}

/// One row of a family's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// MiniMind's own name, and the training variable's:
    /// `model.layers.3.mlp.experts.1.up_proj.weight`.
    pub name: String,
    /// Its shape there, outermost first: matrices are `[out, in]`.
    pub shape: Vec<usize>,
    /// Its role in the model.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// Where it lies in the stock Transformers class.
    pub transformers: Place,
    /// Where it lies as Transformers 5 may save it, if that differs.
    pub transformers5: Option<Place>,
    /// Where it lies as mlx-lm saves it, if that differs.
    pub mlx: Option<Place>,
    /// Where it lies in GGUF.
    pub gguf: Place,
    /// Rows are permuted per head in GGUF ([`permute_rows`](super::rope::permute_rows)): the number
    /// of heads.
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
            Layout::LmConfig => Place::whole(to_lm_config(&self.name), &self.shape),
            Layout::Mlx => self.mlx.clone().unwrap_or_else(|| self.transformers.clone()),
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

/// Builders of [`Weight`] rows, for the family files.
pub(super) struct Row;

impl Row {
    /// A tensor that is whole in every layout; `.weight` is appended to both names.
    pub(super) fn plain(hf: &str, gguf: &str, shape: &[usize], role: Role) -> Weight {
        let name = format!("{hf}.weight");
        Weight {
            transformers: Place::whole(&name, shape),
            transformers5: None,
            mlx: None,
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
    pub(super) fn slice_of_stack(
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
