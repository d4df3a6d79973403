//! Records: what one training sample is made from, whatever form its file has.

use serde_json::Value;

/// The kind of data that a training stage reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `{"text": ...}`: pretraining.
    Text,
    /// `{"conversations": [...]}`: SFT, LoRA, distillation, reasoning.
    Chat,
    /// `{"chosen": [...], "rejected": [...]}`: DPO.
    Preference,
}

impl Kind {
    /// The keys a record of this kind has.
    pub(super) fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["text"],
            Self::Chat => &["conversations"],
            Self::Preference => &["chosen", "rejected"],
        }
    }

    /// A record of this kind, for messages.
    pub(super) fn example(self) -> &'static str {
        match self {
            Self::Text => r#"{"text": "..."}"#,
            Self::Chat => {
                r#"{"conversations": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}"#
            }
            Self::Preference => {
                r#"{"chosen": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "rejected": [...]}"#
            }
        }
    }

    /// The users' word for data of this kind.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text => "pretraining data",
            Self::Chat => "SFT data",
            Self::Preference => "DPO data",
        }
    }
}

/// The content of one record. Messages are JSON objects with `role` and `content`, in an order that
/// was checked: perhaps a system turn, then user and assistant in turns, tool results after tool
/// calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A text to continue.
    Text(String),
    /// A chat to answer.
    Chat(Vec<Value>),
    /// Two chats that differ in the answer.
    Preference {
        /// The chat with the better answer.
        chosen: Vec<Value>,
        /// The chat with the worse answer.
        rejected: Vec<Value>,
    },
}

impl Record {
    /// True where nothing but an end can be learned: a text without a character, an answer without
    /// a word, thought or call, be it one of several.
    #[must_use]
    pub fn has_empty_answer(&self) -> bool {
        let empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.trim().is_empty(),
            _ => false,
        };
        let of_chat = |turns: &[Value]| {
            turns.iter().filter(|turn| turn["role"] == "assistant").any(|turn| {
                ["content", "reasoning_content", "tool_calls"].iter().all(|key| empty(&turn[*key]))
            })
        };
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Chat(turns) => of_chat(turns),
            Self::Preference { chosen, rejected } => of_chat(chosen) || of_chat(rejected),
        }
    }
}
