//! A safe wrapper of ggml: the C boundary. Owners drop, views borrow, and what ggml would abort on
//! is checked before.

pub(crate) mod buffer;
pub mod context;
pub(crate) mod cores;
pub(crate) mod cpu;
pub(crate) mod device;
pub mod graph;
pub(crate) mod log;
pub(crate) mod placement;
pub(crate) mod plan;
pub(crate) mod pool;
pub mod tensor;
