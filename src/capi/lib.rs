//! mmx's runner for C programs: `include/mmx.h`, a shared and a static library.
//!
//! In: handles, pointers and UTF-8 strings of a C program, checked here. Out: what
//! [`mmx_ggml::run`] makes of them. No panic leaves a function, and every failure is a status with
//! a sentence ([`status`]). Handles are in [`model`] and [`session`], generation in
//! [`mod@generate`] and step by step in [`mod@generation`], what pointers must be in `pointers.rs`.
//!
//! Rust programs use the crate `mmx-ggml`; from Rust the functions look as they do from C:
//!
//! ```
//! use std::ptr::{null, null_mut};
//!
//! use mmx_capi::model::{
//!     mmx_model_free, mmx_model_open_bytes, mmx_model_vocab_size, mmx_tokenize,
//! };
//! use mmx_capi::status::MmxStatus;
//!
//! // a model of random weights; a file is opened by mmx_model_open
//! let file = mmx_ggml::run::random_model::tiny_gguf(1)?;
//! let mut model = null_mut();
//! let mut ids = [0u32; 16];
//! let mut count = 0;
//! // SAFETY: every pointer is that of a live value, the handle is freed once
//! unsafe {
//!     let status = mmx_model_open_bytes(file.as_ptr(), file.len(), null(), &mut model);
//!     assert_eq!(status, MmxStatus::Ok);
//!     assert_eq!(mmx_model_vocab_size(model), 259); // 256 bytes and three control tokens
//!     let text = c"Hello".as_ptr();
//!     let status = mmx_tokenize(model, text, false, ids.as_mut_ptr(), ids.len(), &mut count);
//!     assert_eq!(status, MmxStatus::Ok);
//!     mmx_model_free(model);
//! }
//! assert!((1..=5).contains(&count));
//! # Ok::<(), mmx_ggml::Error>(())
//! ```
//!
//! # Files
//!
//! - [`model`]: handles of models: open, free, tokenize, render chats
//! - [`session`]: handles of sessions: read ids, give logits
//! - [`mod@generate`]: ids in, text out piece by piece, to a callback
//! - [`mod@generation`]: the same as a handle that computes a step at each call
//! - [`status`]: what every function returns, and the last error's sentence
//! - `pointers.rs`: pointers of a C program as Rust values, checked
//!
//! `examples/ask.c` is a whole program. The header is made by cbindgen from this crate
//! (`tests/c.rs` compares; `MMX_UPDATE_HEADER=1 cargo test --release -p mmx-capi header` writes it
//! anew).

pub mod generate;
pub mod generation;
pub mod model;
mod pointers;
pub mod session;
pub mod status;
