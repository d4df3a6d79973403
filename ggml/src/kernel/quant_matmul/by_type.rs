//! The one list of quantized types with a packed form.

/// Runs `$do` with the layout of a type as `L`, or `$else`.
macro_rules! layout {
    ($ty:expr, $do:expr, $else:expr) => {
        $crate::kernel::quant_matmul::by_type::layout! {
            $ty, $do, $else,
            Q4_0 q4_0::Q4_0,
            Q4_1 q4_1::Q4_1,
            Q5_0 q5_0::Q5_0,
            Q5_1 q5_1::Q5_1,
            Q8_0 q8_0::Q8_0,
            Q2_K q2_k::Q2K,
            Q3_K q3_k::Q3K,
            Q4_K q4_k::Q4K,
            Q5_K q5_k::Q5K,
            Q6_K q6_k::Q6K,
            IQ4_NL iq4_nl::Iq4Nl,
            IQ4_XS iq4_xs::Iq4Xs,
        }
    };
    ($ty:expr, $do:expr, $else:expr, $($name:ident $file:ident::$layout:ident,)*) => {
        match $ty {
            $(GgmlType::$name => {
                type L = $crate::kernel::quant_matmul::$file::$layout;
                $do
            })*
            _ => $else,
        }
    };
}
pub(super) use layout;
