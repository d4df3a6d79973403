//! ggml's tensor types: id in the file, elements and bytes of a block.

use crate::tensor::Dtype;

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $label:literal, $block:literal, $bytes:literal;)*) => {
        /// A tensor type of ggml, by its name there.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[expect(non_camel_case_types, reason = "ggml's own names")]
        #[expect(missing_docs, reason = "ggml's own names")]
        pub enum GgmlType { $($(#[$doc])* $name),* }

        impl GgmlType {
            /// Every type mmx knows.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number in the file.
            pub fn id(self) -> u32 {
                match self { $(Self::$name => $id),* }
            }

            /// The type with this number.
            pub fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$name),)* _ => None }
            }

            /// ggml's name, as `mmx inspect` prints it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            /// Elements of a block; a row must be a multiple of it.
            pub fn block_elements(self) -> usize {
                match self { $(Self::$name => $block),* }
            }

            /// Bytes of a block.
            pub fn block_bytes(self) -> usize {
                match self { $(Self::$name => $bytes),* }
            }
        }
    };
}

// Source: docs/formats/gguf.md; ggml.h (enum ggml_type) and ggml-common.h (block sizes) of ggml
// 0.26, held to the linked library by a test in the crate mmx-ggml.
ggml_types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
}

impl GgmlType {
    /// Bytes of a row of `elements`, or nothing where the row does not divide into blocks.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        elements
            .is_multiple_of(self.block_elements())
            .then(|| (elements / self.block_elements()).checked_mul(self.block_bytes()))
            .flatten()
    }

    /// The element type that this type is, if it is not one of blocks.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::Bf16),
            Self::F64 => Some(Dtype::F64),
            Self::I32 => Some(Dtype::I32),
            Self::I64 => Some(Dtype::I64),
            _ => None,
        }
    }

    /// The type that holds `dtype`, if there is one.
    pub fn from_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::Bf16 => Some(Self::BF16),
            Dtype::F64 => Some(Self::F64),
            Dtype::I32 => Some(Self::I32),
            Dtype::I64 => Some(Self::I64),
            Dtype::U8 | Dtype::Bool => None,
        }
    }
}
