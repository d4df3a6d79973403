//! The conversion of a GGUF to a GGUF of another type, tensor by tensor as llama-quantize does it.
//!
//! In: a GGUF of one of the four architectures, a file type, perhaps an importance matrix. Out: a
//! GGUF with the same keys (but for those that say the type) and tensors, in the same order. One
//! tensor is in memory at a time.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mmx_converters::Model;
use mmx_converters::file;
use mmx_converters::gguf::{self, GgmlType, Gguf, Metadata, TensorInfo, TensorSpec, Value};
use mmx_converters::model::fallback::{self, Fallback};
use mmx_converters::quant::imatrix::Imatrix;
use mmx_converters::tensor::{self, Dtype};
use mmx_ggml::FileType;
use serde::Serialize;

use crate::blocks;
use mmx_converters::{Error, Result};

/// A request to quantize a GGUF.
#[derive(Clone, Debug)]
pub struct Request {
    /// The GGUF read.
    pub input: PathBuf,
    /// The GGUF written.
    pub output: PathBuf,
    /// Its type.
    pub file: FileType,
    /// Importance matrix, which says how much each column matters.
    pub imatrix: Option<PathBuf>,
    /// True where matrices that are in blocks already may be rounded once more.
    pub requantize: bool,
    /// True where a fallback is an error.
    pub strict: bool,
    /// Most bytes of tensors of a file; nothing for one file.
    pub split_bytes: Option<u64>,
    /// True where NaN and infinities in tensors that are not quantized may pass.
    pub allow_non_finite: bool,
}

/// The outcome of a quantization.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file; of several the first one.
    pub path: PathBuf,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its size.
    pub bytes: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Tensors that did not get the type asked for.
    pub fallbacks: Vec<Fallback>,
    /// Warnings, a sentence each.
    pub warnings: Vec<String>,
    /// All files and their sizes, in order.
    #[serde(skip)]
    pub files: gguf::Files,
}

/// Quantizes a GGUF.
///
/// # Errors
/// An output that is an input, a file that is no whole model, tensors in blocks without leave to
/// round them again, an importance matrix of another model, values that no type can hold, a
/// fallback if `strict`, the system's refusal. Nothing has been written then.
pub fn quantize(request: &Request) -> Result<Report> {
    let begin = Instant::now();
    let inputs = [Some(request.input.as_path()), request.imatrix.as_deref()];
    file::refuse_input(&request.output, inputs.into_iter().flatten())?;
    let model = Model::open(&request.input)?;
    let Some(file) = model.gguf() else {
        return Err(Error::failed_with_hint(
            format!("{}: expected a GGUF, found another form of model", request.input.display()),
            "`mmx export MODEL --gguf TYPE` makes one",
        ));
    };
    let imatrix = request.imatrix.as_deref().map(Imatrix::open).transpose()?;
    let mut warnings = model.warnings.clone();
    warnings.extend(imatrix.iter().flat_map(Imatrix::warnings));

    let mut specs = Vec::new();
    let mut fallbacks = Vec::new();
    for info in file.tensors() {
        let (ty, fallback) = type_of(request, &model, info, imatrix.is_some())?;
        if !request.allow_non_finite {
            refuse_not_finite(file, info)?;
        }
        let (ty, fallback) = match beyond(file, info, ty)? {
            Some(range) => {
                let wanted = fallback.map_or(range.wanted.clone(), |f| f.wanted);
                (GgmlType::F32, Some(Fallback { wanted, ..range }))
            }
            None => (ty, fallback),
        };
        fallbacks.extend(fallback);
        specs.push(TensorSpec { name: info.name.clone(), shape: info.shape.clone(), ty });
    }
    if request.strict {
        fallback::refuse_fallbacks(&request.output.display().to_string(), &fallbacks)?;
    }
    if let (Some(imatrix), Some(path)) = (&imatrix, &request.imatrix) {
        check_imatrix(imatrix, path, file)?;
    }
    let metadata = metadata(request, file, imatrix.as_ref());
    let limit = request.split_bytes;
    let outputs = gguf::part_paths(&request.output, &specs, limit);
    if let Some(part) = outputs.iter().find(|output| is_part_of(file, output)) {
        return Err(Error::failed(format!(
            "{}: expected an output beside the input, found one of the input's own files",
            part.display()
        )));
    }
    let files = gguf::write_split(&request.output, &metadata, &specs, limit, |i| {
        let (info, ty) = (&file.tensors()[i], specs[i].ty);
        if info.ty == ty {
            return Ok(Cow::Borrowed(file.data(info)));
        }
        let values = values(file, info)?;
        if let Some(dtype) = ty.dtype() {
            return Ok(Cow::Owned(tensor::encode_f32(&values, dtype)));
        }
        let row = info.shape.last().copied().unwrap_or(1);
        let blocks = match &imatrix {
            Some(imatrix) => blocks::quantize_weighted(imatrix, &info.name, ty, &values, row),
            None => blocks::quantize(&info.name, ty, &values, row),
        };
        Ok(Cow::Owned(blocks.map_err(|e| {
            let what = format!("{}: tensor {}", request.input.display(), info.name);
            mmx_converters::Error::unsupported(what, e.to_string())
        })?))
    })?;
    Ok(Report {
        path: files.first().map_or(&request.output, |(path, _)| path).clone(),
        ty: request.file.to_string(),
        bytes: files.iter().map(|(_, bytes)| bytes).sum(),
        files,
        seconds: begin.elapsed().as_secs_f64(),
        fallbacks,
        warnings,
    })
}

/// True where a path is one of a GGUF's files.
fn is_part_of(file: &Gguf, path: &Path) -> bool {
    let Ok(path) = fs_err::canonicalize(path) else { return false };
    file.files().any(|(own, _)| fs_err::canonicalize(own).is_ok_and(|own| own == path))
}

/// The type a tensor is to have.
fn type_of(
    request: &Request,
    model: &Model,
    info: &TensorInfo,
    importance: bool,
) -> Result<(GgmlType, Option<Fallback>)> {
    let config = &model.config;
    let (ty, fallback) =
        blocks::recipe_with(request.file, config, &info.name, &info.shape, importance);
    if info.ty.dtype().is_none() && info.ty != ty && !request.requantize {
        return Err(Error::failed_with_hint(
            format!(
                "{}: tensor {}: expected F32, F16 or BF16, found {}: it would be rounded twice",
                request.input.display(),
                info.name,
                info.ty.name()
            ),
            "start from an unquantized GGUF, or say `allow_requantize`",
        ));
    }
    Ok((ty, fallback))
}

/// A tensor's values as float32.
fn values(file: &Gguf, info: &TensorInfo) -> mmx_converters::Result<Vec<f32>> {
    let row = info.shape.last().copied().unwrap_or(1);
    blocks::dequantize(info.ty, file.data(info), row)
}

/// Refuses a NaN or infinity, in a block type's scales too.
fn refuse_not_finite(file: &Gguf, info: &TensorInfo) -> Result<()> {
    let (name, shape) = (&info.name, &info.shape);
    match info.ty.dtype() {
        Some(dtype) => {
            fallback::refuse_not_finite(file.path(), name, shape, dtype, file.data(info))?;
        }
        None => {
            let values = tensor::encode_f32(&values(file, info)?, Dtype::F32);
            fallback::refuse_not_finite(file.path(), name, shape, Dtype::F32, &values)?;
        }
    }
    Ok(())
}

/// The fallback of a tensor with a value that the type cannot hold.
fn beyond(file: &Gguf, info: &TensorInfo, ty: GgmlType) -> Result<Option<Fallback>> {
    if ty == GgmlType::F32 || ty == info.ty {
        return Ok(None);
    }
    let single;
    let (data, dtype) = match info.ty.dtype() {
        Some(dtype) => (file.data(info), dtype),
        None => {
            single = tensor::encode_f32(&values(file, info)?, Dtype::F32);
            (single.as_slice(), Dtype::F32)
        }
    };
    let found = tensor::magnitude(data, dtype);
    if ty.dtype().is_none() && found.not_finite.is_some() {
        return Err(Error::failed(format!(
            "{}: tensor {}: {} holds finite values only, found NaN or infinity",
            file.path().display(),
            info.name,
            ty.name()
        )));
    }
    Ok(fallback::overflows(found.largest, ty).then(|| Fallback {
        tensor: info.name.clone(),
        wanted: ty.name().to_owned(),
        used: GgmlType::F32.name().to_owned(),
        reason: format!("{} is beyond the range of {}", found.largest, ty.name()),
    }))
}

fn check_imatrix(imatrix: &Imatrix, path: &Path, file: &Gguf) -> Result<()> {
    for name in imatrix.entries.keys() {
        let Some(info) = file.tensor(name) else {
            return Err(Error::failed(format!(
                "{}: tensor {name}: expected a tensor of the model, found none of that name",
                path.display()
            )));
        };
        let experts = if info.shape.len() == 3 { info.shape[0] } else { 1 };
        imatrix.weights_of(name, experts, info.shape.last().copied().unwrap_or(1))?;
    }
    Ok(())
}

/// The input's keys, with those of the type set anew.
fn metadata(request: &Request, file: &Gguf, imatrix: Option<&Imatrix>) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in file.metadata().iter() {
        // an importance matrix or a split of the input says nothing of this file
        if !key.starts_with("quantize.imatrix.") && !gguf::is_split_key(key) {
            metadata.set(key, value.clone());
        }
    }
    metadata.set("general.file_type", Value::U32(request.file.id()));
    metadata.set("general.quantization_version", Value::U32(2)); // GGML_QNT_VERSION, ggml.h
    if let (Some(imatrix), Some(path)) = (imatrix, &request.imatrix) {
        for (key, value) in imatrix.keys(path) {
            metadata.set(key, value);
        }
    }
    metadata
}
