//! ggml's quantizers in the form the writers of [`mmx_converters`] take them, which know nothing of ggml.

use mmx_converters::arch::Config;
use mmx_converters::carry::Fallback;
use mmx_converters::gguf::GgmlType;
use mmx_ggml::{FileType, quantize as blocks};

/// The type of a tensor in a file of type `file`, as llama-quantize chooses it.
pub fn recipe(
    file: FileType,
    config: &Config,
    name: &str,
    shape: &[usize],
) -> (GgmlType, Option<Fallback>) {
    let (ty, fallback) = mmx_ggml::file_type::recipe(file, config, name, shape, false);
    let fallback = fallback.map(|f| Fallback {
        tensor: f.tensor,
        wanted: f.wanted.to_owned(),
        used: f.used.to_owned(),
        reason: f.reason,
    });
    (ty, fallback)
}

/// float32 rows as blocks of a type.
///
/// # Errors
/// Values that the type cannot hold.
pub fn quantize(ty: GgmlType, values: &[f32], row: usize) -> mmx_converters::Result<Vec<u8>> {
    blocks::quantize_rows(ty, values, row).map_err(to_converters)
}

/// Blocks back to float32.
///
/// # Errors
/// Bytes that are no whole blocks.
pub fn dequantize(ty: GgmlType, data: &[u8], row: usize) -> mmx_converters::Result<Vec<f32>> {
    blocks::dequantize_rows(ty, data, row).map_err(to_converters)
}

fn to_converters(error: mmx_ggml::Error) -> mmx_converters::Error {
    mmx_converters::Error::unsupported("quantizing", error.to_string())
}
