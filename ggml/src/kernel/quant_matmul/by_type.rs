//! The one list of quantized types with a packed form.

/// Runs `$do` with the layout of a type as `L`, or `$else`.
macro_rules! layout {
    ($ty:expr, $do:expr, $else:expr) => {
        layout! {
            $ty, $do, $else,
            Q4_0 $crate::kernel::quant_matmul::q4_0::Q4_0,
            Q4_1 $crate::kernel::quant_matmul::q4_1::Q4_1,
            Q5_0 $crate::kernel::quant_matmul::q5_0::Q5_0,
            Q5_1 $crate::kernel::quant_matmul::q5_1::Q5_1,
            Q8_0 $crate::kernel::quant_matmul::q8_0::Q8_0,
            Q2_K $crate::kernel::quant_matmul::q2_k::Q2K,
            Q3_K $crate::kernel::quant_matmul::q3_k::Q3K,
            Q4_K $crate::kernel::quant_matmul::q4_k::Q4K,
            Q5_K $crate::kernel::quant_matmul::q5_k::Q5K,
            Q6_K $crate::kernel::quant_matmul::q6_k::Q6K,
            IQ4_NL $crate::kernel::quant_matmul::iq4_nl::Iq4Nl,
            IQ4_XS $crate::kernel::quant_matmul::iq4_xs::Iq4Xs,
        }
    };
    ($ty:expr, $do:expr, $else:expr, $($name:ident $layout:ty,)*) => {
        match $ty {
            $(GgmlType::$name => {
                type L = $layout;
                $do
            })*
            _ => $else,
        }
    };
}
pub(super) use layout;
