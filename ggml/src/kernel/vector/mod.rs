//! Sixteen float32 numbers as one value: a register of AVX-512, two of AVX2, four of NEON.
//!
//! Kernels over floats are written once, over [`Lanes`], and compiled for each instruction set.
//! Every operation rounds the same on each: products are added without a rounding between, sums
//! over the sixteen are made halves onto halves (8 apart, then 4, 2, 1). So what a kernel computes
//! is the same to the last bit on every set.
//!
//! The methods are always inlined into a function that enables the set's features; alone they could
//! not be compiled to its instructions, and are calls of one instruction each, a tenth as fast. That
//! shows in builds for other machines only (scripts/release): a closure between them, as of a thread's
//! memory, is such a function of its own.

mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use lanes::{Bf16, Element, F16, F32, LANES, Lanes, prefetch};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(test)]
mod tests;
