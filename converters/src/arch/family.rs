//! The four model families: their names in every format, and the switches that tell them apart.

/// The four families mmx trains. Each equals a public architecture (see
/// [`Family::transformers_class`]).
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

    /// The Transformers class that computes the same (docs/formats/transformers.md).
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
    /// there ([`permute_rows`](super::rope::permute_rows)); `qwen3` and `qwen3moe` rotate halves,
    /// as all of Transformers.
    pub fn gguf_rotates_pairs(self) -> bool {
        matches!(self, Self::MiniMind2 | Self::MiniMind2Moe)
    }

    /// All families, in a fixed order.
    pub const ALL: [Self; 4] =
        [Self::MiniMind2, Self::MiniMind2Moe, Self::MiniMind3, Self::MiniMind3Moe];
}
