//! The special tokens that a new vocabulary begins with, and the chat template of each generation;
//! which tokens are control tokens.

use serde_json::{Map, Value, json};

/// The first ids of a vocabulary, and the template that uses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialSet {
    /// Ids 0 to 2; ChatML with a system turn that is always there.
    MiniMind2,
    /// Ids 0 to 35; ChatML with tools and thinking.
    #[default]
    MiniMind3,
}

/// Ids 0, 1 and 2 of every MiniMind vocabulary. Source: docs/models.md.
const COMMON: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Ids 3 to 20 of 2026-08: places of images, sound and speech, special.
const MODALITIES: [&str; 18] = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
];

/// Ids 21 to 26 of 2026-08: not special, for they stand for their own text.
const TOOLS_AND_THOUGHT: [&str; 6] =
    ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"];

/// Ids 27 to 35 of 2026-08: room for later, `<|buffer1|>` to `<|buffer9|>`, not special.
const BUFFERS: usize = 9;

impl SpecialSet {
    /// The added tokens in order of their ids, and whether tokenizer.json calls each special.
    pub fn tokens(self) -> Vec<(String, bool)> {
        let mut tokens: Vec<(String, bool)> =
            COMMON.iter().map(|t| (t.to_string(), true)).collect();
        if self == Self::MiniMind3 {
            tokens.extend(MODALITIES.iter().map(|t| (t.to_string(), true)));
            tokens.extend(TOOLS_AND_THOUGHT.iter().map(|t| (t.to_string(), false)));
            tokens.extend((1..=BUFFERS).map(|n| (format!("<|buffer{n}|>"), false)));
        }
        tokens
    }

    /// The chat template.
    pub fn template(self) -> &'static str {
        match self {
            Self::MiniMind2 => include_str!("templates/minimind2.jinja"),
            Self::MiniMind3 => include_str!("templates/minimind3.jinja"),
        }
    }

    /// tokenizer_config.json without what saving adds (class, added tokens, template).
    pub(super) fn settings(self) -> Map<String, Value> {
        let [end_of_text, im_start, im_end] = COMMON;
        let model_max_length = match self {
            Self::MiniMind2 => 32_768,
            Self::MiniMind3 => 131_072,
        };
        let mut settings = Map::new();
        for (key, value) in [
            ("add_bos_token", json!(false)),
            ("add_eos_token", json!(false)),
            ("add_prefix_space", json!(false)),
            ("bos_token", json!(im_start)),
            ("eos_token", json!(im_end)),
            ("pad_token", json!(end_of_text)),
            ("unk_token", json!(end_of_text)),
            ("model_max_length", json!(model_max_length)),
        ] {
            settings.insert(key.into(), value);
        }
        if self == Self::MiniMind3 {
            let more: Vec<&str> = COMMON[1..].iter().chain(&MODALITIES).copied().collect();
            settings.insert("additional_special_tokens".into(), json!(more));
        }
        settings
    }
}

/// True for a token that marks structure and never stands for text: special, or spelled `<|...|>`.
/// Source: llama.cpp's converter (docs/formats/gguf.md).
pub(super) fn is_control(text: &str, special: bool) -> bool {
    special || (text.len() > 4 && text.starts_with("<|") && text.ends_with("|>"))
}
