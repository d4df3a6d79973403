//! mmx's runner for C programs: `include/mmx.h`, a shared and a static library.
//!
//! In: handles, pointers and UTF-8 strings of a C program, checked here. Out: what [`mmx_ggml::run`] makes of
//! them. No panic leaves a function, and every failure is a status with a sentence ([`status`]). Handles are
//! in [`model`] and [`session`], generation in [`mod@generate`], what pointers must be in [`pointers`].
//!
//! `examples/ask.c` is a whole program. The header is made by cbindgen from this crate (`tests/c.rs` compares;
//! `MMX_UPDATE_HEADER=1 cargo test --release -p mmx-capi header` writes it anew).

pub mod generate;
pub mod model;
mod pointers;
pub mod session;
pub mod status;
