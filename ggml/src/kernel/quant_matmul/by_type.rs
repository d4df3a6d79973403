//! The one list of quantized types with a packed form.

/// Runs `$do` with the layout of a type as `L`, or `$else`.
macro_rules! layout {
    ($ty:expr, $do:expr, $else:expr) => {
        match $ty {
            GgmlType::Q4_0 => {
                type L = $crate::kernel::quant_matmul::q4_0::Q4;
                $do
            }
            GgmlType::Q8_0 => {
                type L = $crate::kernel::quant_matmul::q8_0::Q8;
                $do
            }
            GgmlType::Q6_K => {
                type L = $crate::kernel::quant_matmul::q6_k::Q6;
                $do
            }
            _ => $else,
        }
    };
}
pub(super) use layout;
