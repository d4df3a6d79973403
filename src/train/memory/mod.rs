//! Whether a training run fits: what is there ([`available`]), what it will take ([`estimate`]), and how the C library
//! is told to keep it.

pub mod available;
pub mod estimate;
mod malloc;

pub use malloc::keep_memory;
