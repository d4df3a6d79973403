//! Ollama's API. Streams are lines of JSON. Source: Ollama's API documentation, and api/types.go of
//! the version that `/api/version` names. docs/api-ollama.md lists what is done with every field.

pub(crate) mod chat;
pub(crate) mod embed;
pub(crate) mod manage;
pub(crate) mod models;
mod options;
mod wire;
mod words;
