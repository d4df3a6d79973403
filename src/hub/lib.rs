//! To and from the places where models are kept: a Hugging Face hub, a running Ollama.
//!
//! Plain HTTP: the hub's Rust client sends large files through one storage service only, which mirrors and
//! private hubs do not have, and Ollama's does not send files at all.

mod digest;
pub mod download;
mod http;
pub mod hub;
pub mod ollama;
pub mod resolve;
pub mod upload;

pub use resolve::resolve;
