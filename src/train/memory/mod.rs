//! The memory of a training run: how much there is ([`available`]), how much it takes
//! ([`estimate`]), and the allocator's settings.

pub mod available;
pub mod estimate;
mod malloc;

pub use malloc::{give_back_memory, keep_memory};
