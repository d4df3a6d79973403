//! ggml's quantizers in the form the writers of [`mmx_converters`] take them, which know nothing of
//! ggml.

use mmx_converters::arch::Config;
use mmx_converters::gguf::GgmlType;
use mmx_converters::model::fallback::Fallback;
use mmx_converters::quant::imatrix::Imatrix;
use mmx_ggml::{FileType, quant as blocks};

/// The type of a tensor in a file of type `file`, as llama-quantize chooses it without importance
/// matrix.
pub fn recipe(
    file: FileType,
    config: &Config,
    name: &str,
    shape: &[usize],
) -> (GgmlType, Option<Fallback>) {
    recipe_with(file, config, name, shape, false)
}

/// The type of a tensor in a file of type `file`, as llama-quantize chooses it; `importance` says
/// whether an importance matrix is used, which changes a few choices.
pub fn recipe_with(
    file: FileType,
    config: &Config,
    name: &str,
    shape: &[usize],
    importance: bool,
) -> (GgmlType, Option<Fallback>) {
    let (ty, fallback) =
        mmx_converters::quant::file_type::recipe(file, config, name, shape, importance);
    let fallback = fallback.map(|f| Fallback {
        tensor: f.tensor,
        wanted: f.wanted.to_owned(),
        used: f.used.to_owned(),
        reason: f.reason,
    });
    (ty, fallback)
}

/// Quantizes float32 rows of the tensor `name` to blocks of a type, all columns weighing the same.
///
/// # Errors
/// Values that the type cannot hold.
pub fn quantize(
    _name: &str,
    ty: GgmlType,
    values: &[f32],
    row: usize,
) -> mmx_converters::Result<Vec<u8>> {
    blocks::quantize_rows(ty, values, row).map_err(to_converters)
}

/// Quantizes float32 rows of the tensor `name` to blocks of a type, columns weighing as the matrix
/// says, where it has an entry for this tensor.
///
/// # Errors
/// As [`quantize`]; a matrix of another model.
pub fn quantize_weighted(
    imatrix: &Imatrix,
    name: &str,
    ty: GgmlType,
    values: &[f32],
    row: usize,
) -> mmx_converters::Result<Vec<u8>> {
    let Some(entry) = imatrix.entries.get(name) else { return quantize(name, ty, values, row) };
    let experts = entry.counts.len().max(1);
    let Some(weights) = imatrix.weights_of(name, experts, row)? else {
        return quantize(name, ty, values, row);
    };
    if !values.len().is_multiple_of(experts * row) {
        let what = format!("importance matrix of {name}");
        let reason =
            format!("expected one for each expert, found {experts}: it is of another model");
        return Err(mmx_converters::Error::unsupported(what, reason));
    }
    let mut out = Vec::new();
    for (values, weights) in values.chunks(values.len() / experts).zip(weights.chunks(row)) {
        let quantized = blocks::quantize_rows_weighted(ty, values, row, Some(weights));
        out.extend(quantized.map_err(to_converters)?);
    }
    Ok(out)
}

/// Turns blocks back into float32.
///
/// # Errors
/// Bytes that are no whole blocks.
pub fn dequantize(ty: GgmlType, data: &[u8], row: usize) -> mmx_converters::Result<Vec<f32>> {
    blocks::dequantize_rows(ty, data, row).map_err(to_converters)
}

fn to_converters(error: mmx_ggml::Error) -> mmx_converters::Error {
    mmx_converters::Error::unsupported("quantizing", error.to_string())
}
