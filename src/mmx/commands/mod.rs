//! The commands, a file each.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod imatrix;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod licenses;
pub(crate) mod logits;
pub(crate) mod man;
pub(crate) mod ollama;
pub(crate) mod plot;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod quantize;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod serve_config;
pub(crate) mod tokenizer;
pub(crate) mod train;
pub(crate) mod verify;
pub(crate) mod version;
