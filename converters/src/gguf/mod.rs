//! GGUF, version 3: the container of llama.cpp, read by memory map and written whole.
//!
//! Little-endian. Magic `GGUF`, version u32, tensor count i64, key count i64; then keys and values;
//! then per tensor its name, dimensions (fastest first: the reverse of mmx's shapes), type and
//! offset; then the data, each tensor at a multiple of `general.alignment` (default 32), offsets
//! the running padded sum. Source: GGUF specification, ggml/docs/gguf.md; limits as in
//! docs/formats/gguf.md.

mod metadata;
mod read;
mod split;
#[cfg(test)]
mod tests;
mod types;
mod value_type;
mod write;

pub use metadata::{DEFAULT_ALIGNMENT, Metadata, Value};
pub use read::{Gguf, TensorInfo};
pub use split::{Files, is_further_part, is_split_key, part_paths, without_part, write_split};
pub use types::GgmlType;
pub use write::{TensorSpec, to_bytes, write, zeros};
