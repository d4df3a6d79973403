//! A model's dimensions and constants ([`Config`]), and what the models of one family have in
//! common ([`FamilySpec`]).

use std::fmt;

use serde_json::Value as Json;

use super::keys::{ArchKeys, Keys};
use super::weight::Weight;
use crate::error::Result;
use crate::gguf;

/// A model's dimensions and constants. Fields carry config.json's names.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which family's table applies.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the dense feed-forward network (of one expert in MiniMind2's mixture).
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest sequence the model is meant for, tokens.
    pub max_position_embeddings: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How positions beyond the trained length are rotated, if not as those within it.
    pub rope_scaling: Option<RopeScaling>,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Mixture of experts, in the two `*Moe` families.
    pub moe: Option<Moe>,
    /// Beginning of a text or turn.
    pub bos_token_id: u32,
    /// Ends of generation, the first one being the main one; at least one.
    pub eos_token_id: Vec<u32>,
    /// Padding.
    pub pad_token_id: u32,
}

/// The way in which rotary positions are stretched beyond the trained length. A changed base
/// (fixed NTK scaling) is none of them: it is [`Config::rope_theta`].
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every position divided by the factor (Chen et al. 2023).
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// A base that grows with the text's length beyond [`Config::max_position_embeddings`], the
    /// trained length: Transformers' `dynamic`.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
    },
    /// Fast dimensions as they are, slow ones divided, those between blended.
    Yarn(Yarn),
    /// Llama 3's: as YaRN with bounds by wavelength, and without an attention factor.
    Llama3(Llama3),
}

impl RopeScaling {
    /// The name in config.json, `rope_type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Yarn(_) => "yarn",
            Self::Llama3(_) => "llama3",
        }
    }

    /// How many times longer the context becomes.
    pub fn factor(&self) -> f64 {
        match self {
            Self::Linear { factor } | Self::Dynamic { factor } => *factor,
            Self::Yarn(yarn) => yarn.factor,
            Self::Llama3(llama3) => llama3.factor,
        }
    }
}

/// Llama 3's scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// How many times longer the context becomes.
    pub factor: f64,
    /// Turns within the trained length up to which a dimension is fully slowed down.
    pub low_freq_factor: f64,
    /// Turns within the trained length from which a dimension is kept as it is.
    pub high_freq_factor: f64,
    /// Trained length, tokens.
    pub original_max_position_embeddings: usize,
}

/// YaRN's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer the context becomes.
    pub factor: f64,
    /// Trained length, tokens.
    pub original_max_position_embeddings: usize,
    /// Turns above which a dimension is kept as it is.
    pub beta_fast: f64,
    /// Turns below which a dimension is fully slowed down.
    pub beta_slow: f64,
    /// Multiplies cosine and sine.
    pub attention_factor: f64,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// Routed experts.
    pub num_experts: usize,
    /// Experts chosen per token (k).
    pub num_experts_per_tok: usize,
    /// Width of one routed expert (and of one shared expert).
    pub intermediate_size: usize,
    /// Shared experts, each of `intermediate_size`; their output is added unweighted.
    pub shared_experts: usize,
    /// The k weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Load-balancing loss, in training only.
    pub aux_loss: AuxLoss,
}

/// The load-balancing losses of the two generations (docs/models.md).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AuxLoss {
    /// MiniMind2, `seq_aux`: per sequence, averaged.
    PerSequence {
        /// Coefficient.
        alpha: f64,
    },
    /// MiniMind2 without `seq_aux`: over the whole batch.
    PerBatch {
        /// Coefficient.
        alpha: f64,
    },
    /// MiniMind-3: experts * sum of load times mean score.
    Switch {
        /// Coefficient.
        coefficient: f64,
    },
}

/// One of the model families that mmx trains; [`Family::ALL`] lists them. Each computes as a public
/// architecture does: see [`Family::transformers_class`].
#[derive(Clone, Copy)]
pub struct Family(pub(super) &'static FamilySpec);

/// What the models of one family have in common, a constant in the family's own file: names in
/// every format, defaults, keys of its own, and what cannot be carried.
pub(super) struct FamilySpec {
    /// mmx's own name of the family (`kind` in config.json).
    pub(super) name: &'static str,
    /// The Transformers class that computes the same.
    pub(super) transformers_class: &'static str,
    /// `model_type` in that class's config.json.
    pub(super) transformers_model_type: &'static str,
    /// `general.architecture` in GGUF.
    pub(super) gguf_arch: &'static str,
    /// Programs that lack this architecture (docs/consumers, docs/formats/gguf.md).
    pub(super) unknown_to: &'static [&'static str],
    /// RMSNorm over `head_dim` on q and k, before the rotary positions.
    pub(super) qk_norm: bool,
    /// GGUF holds the rows of q and k permuted: this architecture rotates neighbouring pairs there.
    pub(super) gguf_rotates_pairs: bool,
    /// llama.cpp reads the rotary divisors that Llama 3's scaling is carried by
    /// ([`super::rope_freqs`]).
    pub(super) gguf_reads_rope_freqs: bool,
    /// The Transformers class takes `head_dim` from config.json; without it a head is
    /// hidden / heads wide.
    pub(super) has_head_dim: bool,
    /// `head_dim` where the Transformers class finds none; `None` is hidden / heads.
    pub(super) transformers_head_dim: Option<usize>,
    /// RMSNorm's epsilon where MiniMind's own config.json has none.
    pub(super) minimind_rms_norm_eps: f64,
    /// RMSNorm's epsilon where the Transformers class finds none.
    pub(super) transformers_rms_norm_eps: f64,
    /// Width of the feed-forward network where MiniMind's own config.json has none, by the hidden
    /// size.
    pub(super) intermediate_size: fn(usize) -> usize,
    /// Refuses what the Transformers class can compute and the family cannot.
    pub(super) check_config_json: fn(&Keys<'_>) -> Result<()>,
    /// Keys that only this class's config.json has, in the order they are written.
    pub(super) transformers_keys: fn(&Config) -> Vec<(&'static str, Json)>,
    /// Routed experts in place of one feed-forward network.
    pub(super) moe: Option<MoeSpec>,
}

/// What a family's mixture of experts needs beside [`FamilySpec`].
pub(super) struct MoeSpec {
    /// MiniMind's own mixture, by the width of the feed-forward network; presets use it.
    pub(super) minimind: fn(usize) -> Moe,
    /// A weight is divided by the sum also where a single expert is chosen (and so becomes 1).
    pub(super) normalizes_single_expert: bool,
    /// The Transformers class divides whatever config.json says, as every GGUF reader does.
    pub(super) class_always_normalizes: bool,
    /// Appends router and experts of one layer to the table.
    pub(super) rows: fn(&Config, &Moe, usize, &mut Vec<Weight>),
    /// Reads config.json's keys; the number is its `intermediate_size`.
    pub(super) from_config_json: fn(&Keys<'_>, usize) -> Result<Moe>,
    /// Keys of the Transformers class's config.json, after the family's.
    pub(super) transformers_keys: fn(&Config, &Moe) -> Vec<(&'static str, Json)>,
    /// Keys of MiniMind's own config.json.
    pub(super) minimind_keys: fn(&Moe) -> Vec<(&'static str, Json)>,
    /// `feed_forward_length` where a GGUF has none: of no use where experts have a width of their
    /// own.
    pub(super) gguf_feed_forward_length: Option<usize>,
    /// Reads a GGUF's keys; the numbers are `head_dim` and `feed_forward_length`.
    pub(super) from_gguf_keys: fn(&ArchKeys<'_>, usize, usize) -> Result<Moe>,
    /// Keys of a GGUF, after the number of experts.
    pub(super) gguf_keys: fn(&Config, &Moe) -> Vec<(&'static str, gguf::Value)>,
}

impl Family {
    pub(super) fn spec(self) -> &'static FamilySpec {
        self.0
    }

    /// mmx's own name of the family, as in `config.json` of the golden models (`kind`).
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// The Transformers class that computes the same (docs/formats/transformers.md).
    pub fn transformers_class(self) -> &'static str {
        self.0.transformers_class
    }

    /// `model_type` in Transformers' config.json.
    pub fn transformers_model_type(self) -> &'static str {
        self.0.transformers_model_type
    }

    /// `general.architecture` in GGUF.
    pub fn gguf_arch(self) -> &'static str {
        self.0.gguf_arch
    }

    /// Whether a program, by its name in docs/consumers, has the architecture.
    pub fn is_known_to(self, reader: &str) -> bool {
        !self.0.unknown_to.contains(&reader)
    }

    /// RMSNorm over head_dim on q and k, before the rotary positions.
    pub fn qk_norm(self) -> bool {
        self.0.qk_norm
    }

    /// Routed experts instead of one feed-forward network.
    pub fn is_moe(self) -> bool {
        self.0.moe.is_some()
    }

    /// Whether the chosen experts' weights are divided by their sum.
    pub fn normalizes(self, moe: &Moe) -> bool {
        let single = self.0.moe.as_ref().is_none_or(|of_family| of_family.normalizes_single_expert);
        moe.norm_topk_prob && (moe.num_experts_per_tok > 1 || single)
    }

    /// GGUF's `llama` and `granitemoe` rotate neighbouring pairs, so rows of q and k are permuted
    /// there ([`permute_rows`](super::rope::permute_rows)); `qwen3` and `qwen3moe` rotate halves,
    /// as all of Transformers.
    pub fn gguf_rotates_pairs(self) -> bool {
        self.0.gguf_rotates_pairs
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Family {}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
