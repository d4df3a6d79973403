//! Kernels of our own beside ggml's, as operations of a graph (`custom`): attention, norms, rotary
//! positions (`rope`), products with float weights (`float_matmul`) and with quantized ones
//! (`quant_matmul`); exponentials for draws (`exponential`); a place where threads meet (`meeting`); the instruction sets that they are written for (`cpu`), and float32 numbers
//! sixteen at a time on each (`vector`).

pub(crate) mod arena;
pub(crate) mod attention;
pub(crate) mod cpu;
pub(crate) mod custom;
pub(crate) mod exponential;
#[cfg(test)]
pub(crate) mod fenced;
pub(crate) mod float_matmul;
pub(crate) mod meeting;
pub(crate) mod norm;
pub(crate) mod quant_matmul;
pub(crate) mod rope;
pub(crate) mod vector;

use self::cpu::CpuSet;

/// The instruction set that each kind of kernel uses where models are loaded for `cpu`: the kind in
/// words, and the set's name, or `ggml` where none of ours is written for it.
pub fn kernel_sets(cpu: CpuSet) -> [(&'static str, &'static str); 3] {
    let name = |set: Option<CpuSet>| set.map_or("ggml", CpuSet::name);
    [
        ("quantized products", name(quant_matmul::set(cpu))),
        ("float products", name(float_matmul::set(cpu))),
        ("attention", name(attention::set(cpu))),
    ]
}
