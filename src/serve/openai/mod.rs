//! OpenAI's protocol.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
