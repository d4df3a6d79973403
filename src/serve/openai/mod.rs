//! OpenAI's protocol: a file for each address, and [`wire`] for what their answers have in common.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
mod known;
pub(crate) mod models;
pub(crate) mod responses;
mod wire;
