//! float32 rows to ggml's blocks and back, rows in parallel: the same bytes as llama-quantize
//! writes.
//!
//! In: rows of float32 (row-major) and a [`GgmlType`]. Out: the rows' blocks, one row after
//! another. Which type a tensor of a file gets is the business of
//! [`mmx_converters::quant::file_type`].
#![expect(unsafe_code, reason = "ggml's quantizers are C functions")]

mod imatrix;
mod q6_k;
mod q8_0;

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;
use mmx_converters::gguf::GgmlType;
use mmx_converters::tensor::{Dtype, first_overflow};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::wrap::log;

/// Elements one task takes at least, so that a task outweighs its start (llama-quantize's own
/// figure).
const CHUNK_ELEMENTS: usize = 32 * 512;

/// The number by which ggml knows a type.
pub(crate) fn sys_type(ty: GgmlType) -> sys::ggml_type {
    ty.id() as sys::ggml_type
}

fn request(message: String) -> Error {
    Error::Request { message }
}

/// True for types that [`quantize_rows`] can write.
pub fn is_quantizable(ty: GgmlType) -> bool {
    use GgmlType::{F64, I8, I16, I32, I64};
    !matches!(ty, I8 | I16 | I32 | I64 | F64)
}

/// Quantizes rows of `row_len` values. For f16 and bf16: rounded to nearest, ties to even.
///
/// # Errors
/// A row that does not divide into blocks, data that are no whole rows, a value that the type
/// cannot hold (NaN or infinity in a block, beyond f16's range), a type that needs an importance
/// matrix.
pub fn quantize_rows(ty: GgmlType, data: &[f32], row_len: usize) -> Result<Vec<u8>> {
    quantize_rows_weighted(ty, data, row_len, None)
}

/// [`quantize_rows`] with weights for the rounding: `importance` holds one weight per column (mean
/// square of the inputs).
///
/// # Errors
/// See [`quantize_rows`]; also an `importance` that is not `row_len` long or not finite.
pub fn quantize_rows_weighted(
    ty: GgmlType,
    data: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>> {
    let name = ty.name();
    let row_bytes = check_rows(ty, data.len(), row_len)?;
    if !is_quantizable(ty) {
        return Err(request(format!("type {name} cannot be quantized to")));
    }
    if let Some(weights) = importance
        && (weights.len() != row_len || !weights.iter().all(|w| w.is_finite()))
    {
        return Err(request(format!(
            "importance matrix: expected {row_len} finite values, found {}",
            weights.len()
        )));
    }
    // SAFETY: the function looks the type up in a table; every GgmlType is in it (tested).
    if importance.is_none() && unsafe { sys::ggml_quantize_requires_imatrix(sys_type(ty)) } {
        return Err(request(format!("type {name} needs an importance matrix")));
    }
    check_values(ty, data, row_len)?;
    log::install();
    // SAFETY: as above. It fills the tables of the lattice types once, so the tasks below only
    // read.
    unsafe { sys::ggml_quantize_init(sys_type(ty)) };

    let rows_per_task = CHUNK_ELEMENTS.div_ceil(row_len.max(1));
    let mut blocks = vec![0u8; data.len() / row_len.max(1) * row_bytes];
    let weights = importance.map_or(std::ptr::null(), <[f32]>::as_ptr) as usize;
    let valid = blocks
        .par_chunks_mut((rows_per_task * row_bytes).max(1))
        .zip(data.par_chunks(rows_per_task * row_len.max(1)))
        .all(|(out, rows)| {
            let count = rows.len() / row_len;
            // of our own, where there are: ggml's Q8_0 takes no weights either
            let lanes = match ty {
                GgmlType::Q8_0 => {
                    q8_0::quantize(rows, out);
                    true
                }
                GgmlType::Q6_K if importance.is_none() => {
                    q6_k::quantize(rows, out);
                    true
                }
                _ => false,
            };
            // SAFETY: `rows` holds `count` rows of `row_len` values, `out` exactly their blocks
            // (both sized by check_rows), `weights` is null or `row_len` values, all alive for the
            // call.
            unsafe {
                if !lanes {
                    sys::ggml_quantize_chunk(
                        sys_type(ty),
                        rows.as_ptr(),
                        out.as_mut_ptr().cast::<c_void>(),
                        0,
                        count as i64,
                        row_len as i64,
                        weights as *const f32,
                    );
                }
                sys::ggml_validate_row_data(sys_type(ty), out.as_ptr().cast::<c_void>(), out.len())
            }
        });
    // of all types F16 and F32 may carry an infinity or NaN that the source held
    if valid || matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
        Ok(blocks)
    } else {
        Err(request(format!(
            "type {name} cannot hold these values: a block's scale exceeds float16's range"
        )))
    }
}

/// Blocks back to float32, rows in parallel.
///
/// # Errors
/// Data that are no whole rows, or a type without values (integers).
pub fn dequantize_rows(ty: GgmlType, data: &[u8], row_len: usize) -> Result<Vec<f32>> {
    let row_bytes = check_rows(ty, 0, row_len)?;
    if row_bytes == 0 || !data.len().is_multiple_of(row_bytes) {
        return Err(request(format!(
            "{} rows of {row_len}: expected a multiple of {row_bytes} bytes, found {}",
            ty.name(),
            data.len()
        )));
    }
    let mut values = vec![0f32; data.len() / row_bytes * row_len];
    if ty == GgmlType::F32 {
        for (value, bytes) in values.iter_mut().zip(data.chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        return Ok(values);
    }
    // SAFETY: the table has an entry for every type, alive for the whole process.
    let to_float = unsafe { (*sys::ggml_get_type_traits(sys_type(ty))).to_float };
    let Some(to_float) = to_float else {
        return Err(request(format!("type {} cannot be turned into float32", ty.name())));
    };
    let rows_per_task = CHUNK_ELEMENTS.div_ceil(row_len);
    values
        .par_chunks_mut(rows_per_task * row_len)
        .zip(data.par_chunks(rows_per_task * row_bytes))
        .for_each(|(out, blocks)| {
            // blocks hold float16 and float32 fields; bytes of a file may begin anywhere
            let mut aligned = Vec::new();
            let source = if blocks.as_ptr().align_offset(8) == 0 {
                blocks.as_ptr()
            } else {
                aligned.resize(blocks.len().div_ceil(8), 0u64);
                let bytes = bytemuck::cast_slice_mut::<u64, u8>(&mut aligned);
                bytes[..blocks.len()].copy_from_slice(blocks);
                bytes.as_ptr()
            };
            // SAFETY: `source` holds the whole blocks of `out.len()` values, aligned for every
            // type.
            unsafe { to_float(source.cast::<c_void>(), out.as_mut_ptr(), out.len() as i64) };
        });
    Ok(values)
}

/// Bytes of a row; refuses rows that do not divide into blocks and data that are no whole rows.
fn check_rows(ty: GgmlType, elements: usize, row_len: usize) -> Result<usize> {
    let row_bytes = ty.row_bytes(row_len).filter(|_| row_len > 0).ok_or_else(|| {
        request(format!(
            "type {}: expected rows of a multiple of {} values, found {row_len}",
            ty.name(),
            ty.block_elements()
        ))
    })?;
    if !elements.is_multiple_of(row_len) {
        return Err(request(format!(
            "type {}: expected whole rows of {row_len} values, found {elements} values",
            ty.name()
        )));
    }
    Ok(row_bytes)
}

/// Refuses values that the type would turn into something else than a rounding of them.
fn check_values(ty: GgmlType, data: &[f32], row_len: usize) -> Result<()> {
    let at = |i: usize| format!("[{}, {}]", i / row_len, i % row_len);
    let overflow = match ty {
        GgmlType::F32 => return Ok(()),
        GgmlType::F16 => first_overflow(data, Dtype::F16),
        GgmlType::BF16 => first_overflow(data, Dtype::Bf16),
        // whole lines of values without a branch first
        _ => match data.chunks(64).all(|line| line.iter().fold(true, |all, x| all & x.is_finite()))
        {
            true => None,
            false => data.iter().position(|x| !x.is_finite()),
        },
    };
    match overflow {
        None => Ok(()),
        Some(i) => Err(request(format!(
            "type {} cannot hold the value {} at {}",
            ty.name(),
            data[i],
            at(i)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    /// Values as of a trained matrix: a bell of width 0.05, from a small generator of its own.
    fn sample(n: usize) -> Vec<f32> {
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| (next() + next() + next() + next()) * 0.05).collect()
    }

    #[test]
    fn types_agree_with_the_linked_library() {
        for &ty in GgmlType::ALL {
            // SAFETY: table look-ups by a type number below the count; names are static strings.
            unsafe {
                assert!(sys_type(ty) < sys::GGML_TYPE_COUNT);
                assert_eq!(sys::ggml_blck_size(sys_type(ty)), ty.block_elements() as i64, "{ty:?}");
                assert_eq!(sys::ggml_type_size(sys_type(ty)), ty.block_bytes(), "{ty:?}");
                let name = CStr::from_ptr(sys::ggml_type_name(sys_type(ty)));
                assert_eq!(name.to_string_lossy().to_uppercase(), ty.name());
            }
        }
    }

    #[test]
    fn round_trip_errs_by_the_size_of_a_block_step() {
        let data = sample(16 * 256);
        let largest = data.iter().fold(0f32, |m, x| m.max(x.abs()));
        // the lattice types of one to three bits take 20 s to build their tables, and mmx writes
        // none
        let lattice =
            |ty: &GgmlType| ["IQ1", "IQ2", "IQ3"].iter().any(|p| ty.name().starts_with(p));
        for &ty in GgmlType::ALL.iter().filter(|ty| is_quantizable(**ty) && !lattice(ty)) {
            let blocks = quantize_rows(ty, &data, 256).unwrap();
            assert_eq!(blocks.len(), 16 * ty.row_bytes(256).unwrap());
            let back = dequantize_rows(ty, &blocks, 256).unwrap();
            let worst = data.iter().zip(&back).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            // one and two bits are coarse: the largest error is about the largest value
            let limit = match ty.block_bytes() * 8 / ty.block_elements() {
                32 => 0.0,
                16 => largest / 128.0,
                8 => largest / 100.0,
                4..=7 => largest / 6.0,
                _ => largest * 1.01,
            };
            assert!(worst <= limit, "{ty:?}: {worst} > {limit}");
        }
    }

    /// q8_0 in five lines: scale = largest / 127 as float16, values rounded half away from zero.
    #[test]
    fn q8_0_equals_its_naive_twin() {
        let data = sample(4096);
        let mut naive = Vec::new();
        for block in data.chunks(32) {
            let scale = block.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            naive.extend(half::f16::from_f32(scale).to_le_bytes());
            naive.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
        }
        assert_eq!(quantize_rows(GgmlType::Q8_0, &data, 64).unwrap(), naive);
    }

    #[test]
    fn half_types_round_to_nearest_even() {
        let data: Vec<f32> = sample(512).into_iter().chain([1.0, -0.0, 65504.0, 1e-8]).collect();
        for (ty, dtype) in [(GgmlType::F16, Dtype::F16), (GgmlType::BF16, Dtype::Bf16)] {
            let ours = quantize_rows(ty, &data, 4).unwrap();
            assert_eq!(ours, mmx_converters::tensor::encode_f32(&data, dtype), "{ty:?}");
        }
    }

    #[test]
    fn rows_come_out_the_same_however_they_are_cut() {
        let data = sample(300 * 256);
        for ty in [GgmlType::Q4_0, GgmlType::Q6_K, GgmlType::IQ4_NL] {
            let whole = quantize_rows(ty, &data, 256).unwrap();
            let single: Vec<u8> =
                data.chunks(256).flat_map(|row| quantize_rows(ty, row, 256).unwrap()).collect();
            assert_eq!(whole, single, "{ty:?}");
        }
    }

    #[test]
    fn dequantizes_bytes_at_any_address() {
        let blocks = quantize_rows(GgmlType::Q4_0, &sample(256), 64).unwrap();
        let shifted: Vec<u8> = std::iter::once(0).chain(blocks.iter().copied()).collect();
        assert_eq!(
            dequantize_rows(GgmlType::Q4_0, &shifted[1..], 64).unwrap(),
            dequantize_rows(GgmlType::Q4_0, &blocks, 64).unwrap()
        );
    }

    #[test]
    fn rejects_what_a_type_cannot_hold() {
        let message = |ty, data: &[f32], row| quantize_rows(ty, data, row).unwrap_err().to_string();
        let mut data = sample(64);
        data[33] = 131_072.0;
        assert!(message(GgmlType::F16, &data, 32).contains("131072 at [1, 1]"));
        assert!(quantize_rows(GgmlType::Q8_0, &data, 32).is_ok(), "its scale is 1032");
        data[33] = f32::NAN;
        assert!(message(GgmlType::Q4_0, &data, 32).contains("NaN at [1, 1]"));
        assert!(message(GgmlType::Q4_K, &data, 32).contains("multiple of 256"));
        assert!(message(GgmlType::Q4_0, &data[1..], 32).contains("whole rows"));
        assert!(message(GgmlType::I32, &data, 32).contains("cannot be quantized"));
        assert!(message(GgmlType::IQ2_XS, &sample(256), 256).contains("importance"));
        assert!(quantize_rows(GgmlType::Q4_0, &[1e38; 32], 32).is_err(), "scale beyond float16");
        assert!(dequantize_rows(GgmlType::Q4_0, &[0; 17], 32).is_err());
        assert_eq!(quantize_rows(GgmlType::Q4_0, &[], 32).unwrap(), Vec::<u8>::new());
    }
}
