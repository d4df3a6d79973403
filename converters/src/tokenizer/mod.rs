//! Text to ids and back: byte-level BPE as tokenizer.json describes it, or as a GGUF's keys do.
//!
//! In: a folder with tokenizer.json (and tokenizer_config.json, chat_template.jinja, ...), or GGUF
//! metadata. Out: ids, bytes of ids, rendered chats with their ids, and the same tokenizer in
//! either form.
//!
//! A token is *control* when tokenizer.json calls it special or its text reads `<|...|>`: the rule
//! by which GGUF files are written, so a tokenizer is the same from both. Text of control tokens
//! gives control ids in [`Tokenizer::encode`] and never in [`Tokenizer::encode_plain`].

mod around;
mod bytes;
mod codec;
mod encoder;
mod extend;
mod fast;
mod gguf;
mod json;
mod named;
mod open;
mod protect;
mod save;
mod special;
mod split;
mod spm;
mod stream;
mod token;
pub mod train;
mod words;

pub use codec::{Prompt, Tokenizer};
pub use special::SpecialSet;
pub use stream::DecodeStream;
pub use token::TokenKind;
