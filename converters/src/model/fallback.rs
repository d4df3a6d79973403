//! Weights on their way into a file, for every writer: where they come from, and which tensors
//! cannot have the type that was asked for.

use std::borrow::Cow;
use std::path::Path;

use half::{bf16, f16};
use serde::Serialize;

use crate::arch::{Layout, Public, Weight, public_tensors};
use crate::error::{Error, Result};
use crate::gguf::GgmlType;
use crate::tensor::{self, Dtype, Magnitude};

/// Where a writer gets a weight: its element type, and its bytes in MiniMind's layout and row
/// order. An open [`crate::Model`] is one (`&mut |w| model.weight(w)`), a training run another.
pub type Weights<'s, 'a> = dyn FnMut(&Weight) -> Result<(Dtype, Cow<'a, [u8]>)> + 's;

/// A tensor that did not get the type asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// The tensor, by its name in the file written.
    pub tensor: String,
    /// The type asked for.
    pub wanted: String,
    /// The type it got.
    pub used: String,
    /// Why, in a sentence.
    pub reason: String,
}

impl std::fmt::Display for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} instead of {}: {}", self.tensor, self.used, self.wanted, self.reason)
    }
}

/// Makes a fallback an error where the user asked for none (`--strict`).
///
/// # Errors
/// [`Error::Unsupported`] with the first fallback and how many there are.
pub fn refuse_fallbacks(what: &str, fallbacks: &[Fallback]) -> Result<()> {
    let Some(first) = fallbacks.first() else { return Ok(()) };
    let more = match fallbacks.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more tensors)"),
    };
    Err(Error::unsupported(what, format!("{first}{more}")))
}

/// True when rounding a finite `value` to `ty` gives an infinity, in the value or in its block's
/// scale.
pub fn overflows(value: f32, ty: GgmlType) -> bool {
    let f16_max = f16::MAX.to_f32();
    match ty {
        GgmlType::F32 | GgmlType::F64 => false,
        GgmlType::F16 => f16::from_f32(value).is_infinite(),
        GgmlType::BF16 => bf16::from_f32(value).is_infinite(),
        // the f16 scale is the largest magnitude divided by the largest quantum
        GgmlType::Q8_0 => value > 127.0 * f16_max,
        GgmlType::Q4_0 => value > 8.0 * f16_max,
        // a bound that holds for every other type; what a type cannot hold below it, its own
        // quantizer refuses
        _ => value > f16_max,
    }
}

/// True when no value of element type `from` can overflow in `ty`.
fn always_fits(from: Dtype, ty: GgmlType) -> bool {
    match from {
        Dtype::F16 => true,
        Dtype::Bf16 => matches!(ty, GgmlType::BF16 | GgmlType::F32),
        _ => ty == GgmlType::F32,
    }
}

/// Looks through the values of a public tensor for one that `ty` cannot hold: then the tensor is
/// kept as float32, and this is the fallback to report.
///
/// # Errors
/// What `source` returns; for block types, a NaN or infinity in the source.
pub fn range_fallback(
    tensor: &Public,
    weights: &[Weight],
    ty: GgmlType,
    source: &mut Weights<'_, '_>,
) -> Result<Option<Fallback>> {
    if ty == GgmlType::F32 {
        return Ok(None);
    }
    for &i in &tensor.weights {
        let weight = &weights[i];
        let (dtype, bytes) = source(weight)?;
        if always_fits(dtype, ty) && ty.dtype().is_some() {
            continue;
        }
        let Magnitude { largest, at, not_finite } = tensor::magnitude(&bytes, dtype);
        if let Some(at) = not_finite.filter(|_| ty.dtype().is_none()) {
            return Err(Error::unsupported(
                format!("tensor {}", weight.name),
                format!(
                    "{} holds finite values only, found NaN or infinity at {}",
                    ty.name(),
                    index(&weight.shape, at)
                ),
            ));
        }
        if overflows(largest, ty) {
            let shape = [weight.elements()];
            let view = tensor::TensorView { dtype, shape: &shape, data: &bytes };
            let value = view.value(at);
            return Ok(Some(Fallback {
                tensor: tensor.name.clone(),
                wanted: ty.name().to_owned(),
                used: GgmlType::F32.name().to_owned(),
                reason: format!(
                    "{}{} is {value}, beyond the range of {}",
                    weight.name,
                    index(&weight.shape, at),
                    ty.name()
                ),
            }));
        }
    }
    Ok(None)
}

/// Refuses a NaN or infinity among the values of a tensor, whatever they are to be written as.
/// `file` is what messages call the place the tensor comes from.
///
/// # Errors
/// The first one, with tensor and index.
pub fn refuse_not_finite(
    file: &Path,
    name: &str,
    shape: &[usize],
    dtype: Dtype,
    bytes: &[u8],
) -> Result<()> {
    let Some(at) = tensor::first_not_finite(bytes, dtype) else { return Ok(()) };
    let value = tensor::TensorView { dtype, shape, data: bytes }.value(at);
    Err(Error::unsupported(
        format!("{}: tensor {name}", file.display()),
        format!("expected finite values, found {value} at {}", index(shape, at)),
    )
    .with_hint(
        "the model has diverged, or its file is damaged; `allow_non_finite` takes it as it is",
    ))
}

/// A flat position as `[row, column]`.
fn index(shape: &[usize], mut at: usize) -> String {
    let mut parts = Vec::new();
    for &n in shape.iter().rev() {
        parts.push((at % n).to_string());
        at /= n;
    }
    parts.reverse();
    format!("[{}]", parts.join(", "))
}

/// The fallbacks of a file of one element type in `layout`.
///
/// # Errors
/// What `source` returns.
pub fn float_fallbacks(
    weights: &[Weight],
    layout: Layout,
    dtype: Dtype,
    source: &mut Weights<'_, '_>,
) -> Result<Vec<Fallback>> {
    let ty = GgmlType::from_dtype(dtype).unwrap_or(GgmlType::F32);
    let mut fallbacks = Vec::new();
    for tensor in public_tensors(weights, layout) {
        fallbacks.extend(range_fallback(&tensor, weights, ty, source)?);
    }
    Ok(fallbacks)
}
