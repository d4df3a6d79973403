//! A tensor as every format reads it and writes it: a name, an element type, a shape, bytes.
//!
//! Shapes are outermost dimension first, as in PyTorch and safetensors, everywhere in mmx; the one
//! place that turns ggml's reversed order round is `gguf`.

use half::{bf16, f16};

/// Element types of unquantized tensors. Block types are [`crate::gguf::GgmlType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
    /// IEEE double.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }

    /// The name used in safetensors headers.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// The name used in config.json (`torch_dtype`).
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F64 => "float64",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        }
    }
}

/// A tensor that borrows its bytes (from a memory map, mostly): little-endian, row-major, contiguous.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// `shape.product() * dtype.size()` bytes.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// The values as float32: exact for f32, f16, bf16; rounded to nearest for f64 and integers.
    pub fn to_f32(&self) -> Vec<f32> {
        let words = |n| self.data.chunks_exact(n);
        match self.dtype {
            Dtype::F32 => words(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => words(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::Bf16 => words(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F64 => words(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default()) as f32)
                .collect(),
            Dtype::I64 => words(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()) as f32)
                .collect(),
            Dtype::I32 => {
                words(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect()
            }
            Dtype::U8 | Dtype::Bool => self.data.iter().map(|&b| f32::from(b)).collect(),
        }
    }
}

/// float32 values as little-endian bytes of `dtype`, rounded to nearest, ties to even.
///
/// Values beyond the type's range become infinite: check with [`first_overflow`] before.
///
/// # Panics
/// When `dtype` is no float of at most 32 bits (a bug of the caller).
pub fn encode_f32(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("encode_f32 cannot write {other:?}"),
    }
}

/// The index of the first finite value that `dtype` would turn into an infinity.
pub fn first_overflow(values: &[f32], dtype: Dtype) -> Option<usize> {
    let overflows: fn(f32) -> bool = match dtype {
        Dtype::F16 => |v| v.is_finite() && f16::from_f32(v).is_infinite(),
        Dtype::Bf16 => |v| v.is_finite() && bf16::from_f32(v).is_infinite(),
        _ => return None,
    };
    values.iter().position(|&v| overflows(v))
}
