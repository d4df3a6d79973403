//! A tensor as every format reads it and writes it: a name, an element type, a shape, bytes.
//!
//! Shapes are outermost dimension first, as in PyTorch and safetensors, everywhere in mmx; the one
//! place that turns ggml's reversed order round is `gguf`.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

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

    /// The crate `safetensors`' name of this type.
    pub(crate) fn to_safetensors(self) -> ::safetensors::Dtype {
        use ::safetensors::Dtype as D;
        match self {
            Self::F32 => D::F32,
            Self::F16 => D::F16,
            Self::Bf16 => D::BF16,
            Self::F64 => D::F64,
            Self::I64 => D::I64,
            Self::I32 => D::I32,
            Self::U8 => D::U8,
            Self::Bool => D::BOOL,
        }
    }

    /// The element type that a type of the crate `safetensors` is, if mmx computes with it.
    pub(crate) fn of_safetensors(dtype: ::safetensors::Dtype) -> Option<Self> {
        use ::safetensors::Dtype as D;
        match dtype {
            D::F32 => Some(Self::F32),
            D::F16 => Some(Self::F16),
            D::BF16 => Some(Self::Bf16),
            D::F64 => Some(Self::F64),
            D::I64 => Some(Self::I64),
            D::I32 => Some(Self::I32),
            D::U8 => Some(Self::U8),
            D::BOOL => Some(Self::Bool),
            _ => None,
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

/// A tensor that borrows its bytes (from a memory map, mostly): little-endian, row-major,
/// contiguous.
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
    /// One value as float32; NaN beyond the end.
    pub fn value(&self, at: usize) -> f32 {
        let size = self.dtype.size();
        let data = self.data.get(at * size..(at + 1) * size).unwrap_or_default();
        let one = TensorView { dtype: self.dtype, shape: &[1], data };
        one.to_f32().first().copied().unwrap_or(f32::NAN)
    }

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
    assert!(matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16), "cannot write {dtype:?}");
    let mut out = vec![0; values.len() * dtype.size()];
    out.par_chunks_mut(CHUNK * dtype.size())
        .zip(values.par_chunks(CHUNK))
        .for_each(|(out, values)| encode(values, dtype, out));
    out
}

/// Elements that one thread converts at a time: their float32 form stays in the first-level cache.
const CHUNK: usize = 4096;

/// Converts `bytes` of element type `from` to `to`; gives the same bytes where the types are the
/// same.
///
/// # Panics
/// When `to` is neither `from` nor a float of at most 32 bits (a bug of the caller).
pub fn convert(bytes: Cow<'_, [u8]>, from: Dtype, to: Dtype) -> Cow<'_, [u8]> {
    if from == to {
        return bytes;
    }
    assert!(matches!(to, Dtype::F32 | Dtype::F16 | Dtype::Bf16), "cannot write {to:?}");
    let mut out = vec![0; bytes.len() / from.size() * to.size()];
    out.par_chunks_mut(CHUNK * to.size()).zip(bytes.par_chunks(CHUNK * from.size())).for_each(
        |(out, bytes)| {
            let mut values = [0f32; CHUNK];
            let values = &mut values[..out.len() / to.size()];
            decode(bytes, from, values);
            encode(values, to, out);
        },
    );
    Cow::Owned(out)
}

/// One chunk in; as long as `values`.
fn decode(bytes: &[u8], dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::F32 => values
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(value, word)| *value = f32::from_le_bytes(*word)),
        Dtype::F16 => {
            // through the slice form, which uses the processor's own conversion
            let mut words = [f16::ZERO; CHUNK];
            let words = &mut words[..values.len()];
            words
                .iter_mut()
                .zip(bytes.as_chunks().0)
                .for_each(|(half, word)| *half = f16::from_le_bytes(*word));
            words.convert_to_f32_slice(values);
        }
        Dtype::Bf16 => values
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(value, word)| *value = bf16::from_le_bytes(*word).to_f32()),
        _ => {
            let shape = [values.len()];
            values.copy_from_slice(&TensorView { dtype, shape: &shape, data: bytes }.to_f32());
        }
    }
}

/// One chunk out; `out` has its size.
fn encode(values: &[f32], dtype: Dtype, out: &mut [u8]) {
    match dtype {
        Dtype::F16 => {
            let mut words = [f16::ZERO; CHUNK];
            let words = &mut words[..values.len()];
            words.convert_from_f32_slice(values);
            out.as_chunks_mut()
                .0
                .iter_mut()
                .zip(words)
                .for_each(|(o, half)| *o = half.to_le_bytes());
        }
        Dtype::Bf16 => out
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip(values)
            .for_each(|(o, v)| *o = bf16::from_f32(*v).to_le_bytes()),
        _ => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes()),
    }
}

/// The largest finite magnitude among values, and where the first one that is not finite stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Magnitude {
    /// Largest finite absolute value; 0 without any.
    pub largest: f32,
    /// Its index.
    pub at: usize,
    /// Index of the first infinity or NaN.
    pub not_finite: Option<usize>,
}

/// Measures `bytes` of `dtype` as float32 values.
pub fn magnitude(bytes: &[u8], dtype: Dtype) -> Magnitude {
    // As integers, magnitudes are in the same order as floats; infinities and NaN stand above all.
    const INFINITE: u32 = 0x7f80_0000;
    let chunks = bytes.par_chunks(CHUNK * dtype.size());
    let found = chunks.enumerate().map(|(i, bytes)| {
        let mut values = [0f32; CHUNK];
        let values = &mut values[..bytes.len() / dtype.size()];
        decode(bytes, dtype, values);
        let bits = |v: &f32| v.to_bits() & 0x7fff_ffff;
        let top = values.iter().map(bits).max().unwrap_or(0);
        (i, top, values.iter().map(bits).filter(|&b| b < INFINITE).max().unwrap_or(0))
    });
    let found: Vec<(usize, u32, u32)> = found.collect();
    let position = |chunk: usize, wanted: &dyn Fn(u32) -> bool| {
        let begin = chunk * CHUNK;
        let end = (begin + CHUNK).min(bytes.len() / dtype.size());
        let mut values = vec![0f32; end - begin];
        decode(&bytes[begin * dtype.size()..end * dtype.size()], dtype, &mut values);
        begin + values.iter().position(|v| wanted(v.to_bits() & 0x7fff_ffff)).unwrap_or(0)
    };
    let largest = found.iter().map(|f| f.2).max().unwrap_or(0);
    let first = found.iter().find(|f| f.2 == largest).map_or(0, |f| f.0);
    Magnitude {
        largest: f32::from_bits(largest),
        at: if found.is_empty() { 0 } else { position(first, &|b| b == largest) },
        not_finite: found
            .iter()
            .find(|f| f.1 >= INFINITE)
            .map(|f| position(f.0, &|b| b >= INFINITE)),
    }
}

/// The index of the first NaN or infinity in `bytes` of `dtype`, if there is one; integers have
/// none.
///
/// As integers and without a way out of a block, so that the compiler takes whole vectors at a
/// time. Measured: 104 MB of float32 (a model of 26M) in 3.3 ms on two threads of an AMD EPYC, best
/// of 60, 2026-11-29.
pub fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<usize> {
    /// Bytes that one thread looks through at a time.
    const BLOCK: usize = 64 << 10;
    // a float is not finite where all bits of its exponent are set
    fn any<const N: usize>(bytes: &[u8], exponent: impl Fn([u8; N]) -> bool) -> bool {
        bytes.as_chunks::<N>().0.iter().fold(false, |found, &word| found | exponent(word))
    }
    let found = |bytes: &[u8]| match dtype {
        Dtype::F32 => any(bytes, |word| u32::from_le_bytes(word) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::F16 => any(bytes, |word| u16::from_le_bytes(word) & 0x7c00 == 0x7c00),
        Dtype::Bf16 => any(bytes, |word| u16::from_le_bytes(word) & 0x7f80 == 0x7f80),
        Dtype::F64 => any(bytes, |word| {
            u64::from_le_bytes(word) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000
        }),
        Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::Bool => false,
    };
    let size = dtype.size();
    let block = bytes.par_chunks(BLOCK).position_first(found)?;
    let block = bytes[block * BLOCK..].chunks(BLOCK).next().map(|bytes| (block, bytes));
    let (block, bytes) = block?;
    let at = bytes.chunks_exact(size).position(found)?;
    Some(block * BLOCK / size + at)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/cases/files/bf16-rounding/bits.json"
        );
        let cases: serde_json::Value =
            serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() > 10);
        for case in cases {
            let value =
                f32::from_bits(u32::from_str_radix(case["f32"].as_str().unwrap(), 16).unwrap());
            for (key, dtype) in [("bf16", Dtype::Bf16), ("f16", Dtype::F16)] {
                let single = value.to_le_bytes();
                let found = convert(Cow::Borrowed(&single), Dtype::F32, dtype).into_owned();
                assert_eq!(found, encode_f32(&[value], dtype));
                let bits = u16::from_le_bytes([found[0], found[1]]);
                match case[key].as_str().unwrap() {
                    "nan" if dtype == Dtype::F16 => {
                        assert!(f16::from_bits(bits).is_nan(), "{case}")
                    }
                    "nan" => assert!(bf16::from_bits(bits).is_nan(), "{case}"),
                    hex => assert_eq!(format!("{bits:04x}"), hex, "{case} as {key}"),
                }
            }
        }
    }

    #[test]
    fn conversion_in_chunks_equals_conversion_one_by_one() {
        let values: Vec<f32> = (0..3 * CHUNK + 7).map(|i| (i as f32 - 5000.0) / 37.0).collect();
        let single = encode_f32(&values, Dtype::F32);
        assert!(single.chunks_exact(4).zip(&values).all(|(b, v)| b == v.to_le_bytes()));
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let half = convert(Cow::Borrowed(&single), Dtype::F32, dtype);
            for (word, v) in half.chunks_exact(2).zip(&values) {
                let expected = match dtype {
                    Dtype::F16 => f16::from_f32(*v).to_le_bytes(),
                    _ => bf16::from_f32(*v).to_le_bytes(),
                };
                assert_eq!(word, expected, "{v} as {dtype:?}");
            }
            let back = convert(half.clone(), dtype, Dtype::F32);
            let shape = [values.len()];
            let view = TensorView { dtype, shape: &shape, data: &half };
            assert_eq!(*back, *encode_f32(&view.to_f32(), Dtype::F32));
        }
    }

    #[test]
    fn finds_the_first_value_that_is_not_finite_in_every_type() {
        let clean = vec![-1.5f32; 100_003];
        let as_type = |values: &[f32], dtype| match dtype {
            Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            dtype => encode_f32(values, dtype),
        };
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64] {
            assert_eq!(first_not_finite(&as_type(&clean, dtype), dtype), None, "{dtype:?}");
            for at in [0, 1, 32_767, 32_768, 65_000, 100_002] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = clean.clone();
                    values[at] = bad;
                    values[100_002] = f32::NAN; // the first counts
                    let found = first_not_finite(&as_type(&values, dtype), dtype);
                    assert_eq!(found, Some(at), "{dtype:?}");
                }
            }
        }
        // the largest and the smallest that are finite
        let edge = [f32::MAX, f32::MIN, f32::MIN_POSITIVE / 2.0];
        assert_eq!(first_not_finite(&encode_f32(&edge, Dtype::F32), Dtype::F32), None);
        assert_eq!(first_not_finite(&encode_f32(&[65504.0], Dtype::F16), Dtype::F16), None);
        assert_eq!(first_not_finite(&[0xff; 64], Dtype::I32), None);
        assert_eq!(first_not_finite(&[], Dtype::F32), None);
    }

    #[test]
    fn finds_the_largest_value_and_the_first_that_is_not_finite() {
        let mut values = vec![1.0f32; 2 * CHUNK + 3];
        values[CHUNK + 5] = -80_000.0;
        let clean = magnitude(&encode_f32(&values, Dtype::F32), Dtype::F32);
        assert_eq!(clean, Magnitude { largest: 80_000.0, at: CHUNK + 5, not_finite: None });
        values[2 * CHUNK + 1] = f32::NAN;
        values[2 * CHUNK + 2] = f32::INFINITY;
        let found = magnitude(&encode_f32(&values, Dtype::F32), Dtype::F32);
        assert_eq!(found, Magnitude { not_finite: Some(2 * CHUNK + 1), ..clean });
        assert_eq!(magnitude(&[], Dtype::F32), Magnitude::default());
    }
}
