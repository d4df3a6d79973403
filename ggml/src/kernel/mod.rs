//! Kernels of our own beside ggml's, as operations of a graph (`custom`): attention, products
//! with float weights (`float_matmul`) and with quantized ones (`quant_matmul`).

pub(crate) mod arena;
pub(crate) mod attention;
pub(crate) mod custom;
pub(crate) mod float_matmul;
pub(crate) mod quant_matmul;
