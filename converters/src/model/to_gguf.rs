//! A model as a GGUF: every key the readers want, tensors in the order of the forward pass, rows of
//! q and k permuted and experts stacked as the architecture wants them. One tensor is in memory at
//! a time.

use std::borrow::Cow;
use std::path::Path;

use crate::arch::rope_freqs::ROPE_FREQS;
use crate::arch::{self, Config, Layout, Public, Role, Weight, gather, public_tensors};
use crate::error::{Error, Result};
use crate::gguf::{self, Files, GgmlType, Metadata, TensorSpec, Value};
use crate::model::fallback::{Fallback, Weights, range_fallback, refuse_fallbacks};
use crate::model::generation::Generation;
use crate::tensor::{self, Dtype};

/// The type a tensor (GGUF name, shape outermost first) gets, and why if it is not the one asked
/// for.
pub type Recipe<'a> = &'a dyn Fn(&str, &[usize]) -> (GgmlType, Option<Fallback>);
/// Float32 rows of a tensor (GGUF name, type, values, row length) as blocks of a type: ggml's own
/// quantizers, in crate mmx-ggml.
pub type Quantize<'a> = &'a dyn Fn(&str, GgmlType, &[f32], usize) -> Result<Vec<u8>>;

/// Everything that a GGUF is written from besides the weights.
#[derive(Clone, Copy)]
pub struct ToGguf<'a> {
    /// The model's dimensions and constants.
    pub config: &'a Config,
    /// `general.name`.
    pub name: &'a str,
    /// `general.license`, an SPDX name in lower case.
    pub license: Option<&'a str>,
    /// Default sampling: `general.sampling.*`.
    pub generation: &'a Generation,
    /// `general.file_type`.
    pub file_type: u32,
    /// `tokenizer.*`, in order.
    pub tokenizer: &'a [(String, Value)],
    /// The type of each matrix.
    pub recipe: Recipe<'a>,
    /// The function that turns float32 rows into blocks.
    pub quantize: Quantize<'a>,
    /// Further keys, at the end of the others.
    pub extra: &'a [(String, Value)],
    /// A fallback is an error.
    pub strict: bool,
}

/// The tensors of a GGUF, decided.
struct Plan {
    weights: Vec<Weight>,
    publics: Vec<Public>,
    /// Of Llama 3's rotary scaling: the tensor after the others.
    divisors: Option<Vec<f32>>,
    specs: Vec<TensorSpec>,
    metadata: Metadata,
    fallbacks: Vec<Fallback>,
}

impl ToGguf<'_> {
    /// Writes the file, whole or not at all. Returns its size in bytes, and the fallbacks.
    ///
    /// # Errors
    /// A model the architecture cannot carry, whatever `source` and the quantizer return, a
    /// fallback if `strict`, or the system's refusal.
    pub fn write(&self, path: &Path, source: &mut Weights<'_, '_>) -> Result<(u64, Vec<Fallback>)> {
        let (files, fallbacks) = self.write_split(path, None, source)?;
        Ok((files.iter().map(|(_, size)| size).sum(), fallbacks))
    }

    /// [`ToGguf::write`] in files of at most `limit` bytes of tensors: see [`gguf::write_split`].
    /// Returns the files and their sizes in bytes, and the fallbacks.
    ///
    /// # Errors
    /// As [`ToGguf::write`].
    pub fn write_split(
        &self,
        path: &Path,
        limit: Option<u64>,
        source: &mut Weights<'_, '_>,
    ) -> Result<(Files, Vec<Fallback>)> {
        let plan = self.plan(path, source)?;
        let (keys, specs) = (&plan.metadata, &plan.specs);
        let data = |i| self.tensor(&plan, i, source);
        let files = gguf::write_split(path, keys, specs, limit, data)?;
        Ok((files, plan.fallbacks))
    }

    /// The file's bytes, in memory; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`ToGguf::write`].
    pub fn to_bytes(
        &self,
        name: &Path,
        source: &mut Weights<'_, '_>,
    ) -> Result<(Vec<u8>, Vec<Fallback>)> {
        let plan = self.plan(name, source)?;
        let bytes =
            gguf::to_bytes(name, &plan.metadata, &plan.specs, |i| self.tensor(&plan, i, source))?;
        Ok((bytes, plan.fallbacks))
    }

    /// Decides everything and writes nothing: what [`ToGguf::write`] would refuse is refused.
    /// Returns the fallbacks.
    ///
    /// # Errors
    /// As [`ToGguf::write`], but for the quantizer's and the system's.
    pub fn check(&self, name: &Path, source: &mut Weights<'_, '_>) -> Result<Vec<Fallback>> {
        self.plan(name, source).map(|plan| plan.fallbacks)
    }

    fn plan(&self, path: &Path, source: &mut Weights<'_, '_>) -> Result<Plan> {
        let weights = arch::weights(self.config);
        let publics = public_tensors(&weights, Layout::Gguf);
        let mut fallbacks = Vec::new();
        let mut specs = Vec::new();
        let mut quantized = false;
        for public in &publics {
            let (mut ty, mut fallback) = (self.recipe)(&public.name, &public.shape);
            // whatever the recipe says: norms and routers are float32 in every GGUF
            if !public.weights.iter().all(|&i| weights[i].quantize()) {
                (ty, fallback) = (GgmlType::F32, None);
            }
            if let Some(range) = range_fallback(public, &weights, ty, source)? {
                let wanted = fallback.map_or(range.wanted.clone(), |f| f.wanted);
                fallback = Some(Fallback { wanted, ..range });
                ty = GgmlType::F32;
            }
            quantized |= ty.dtype().is_none();
            fallbacks.extend(fallback);
            specs.push(TensorSpec { name: public.name.clone(), shape: public.shape.clone(), ty });
        }
        let divisors = self.config.rope_divisors();
        if let Some(divisors) = &divisors {
            let (name, shape) = (ROPE_FREQS.to_owned(), vec![divisors.len()]);
            specs.push(TensorSpec { name, shape, ty: GgmlType::F32 });
        }
        if self.strict {
            refuse_fallbacks(&path.display().to_string(), &fallbacks)?;
        }
        let metadata = self.metadata(&weights, quantized)?;
        Ok(Plan { weights, publics, divisors, specs, metadata, fallbacks })
    }

    /// Every key, in the order of the file (docs/formats/gguf.md).
    fn metadata(&self, weights: &[Weight], quantized: bool) -> Result<Metadata> {
        let mut metadata = Metadata::new();
        let text = |s: &str| Value::String(s.to_owned());
        metadata.set("general.architecture", text(self.config.family.gguf_arch()));
        metadata.set("general.type", text("model"));
        for (key, value) in self.generation.to_gguf_keys() {
            metadata.set(key, value);
        }
        metadata.set("general.name", text(self.name));
        metadata.set("general.size_label", Value::String(size_label(self.config, weights)));
        if let Some(license) = self.license {
            metadata.set("general.license", text(license));
        }
        metadata.set("general.file_type", Value::U32(self.file_type));
        if quantized {
            metadata.set("general.quantization_version", Value::U32(2)); // GGML_QNT_VERSION, ggml.h
        }
        for (key, value) in self.config.to_gguf_keys()? {
            metadata.set(key, value);
        }
        for (key, value) in self.tokenizer {
            metadata.set(key.as_str(), value.clone());
        }
        for (key, value) in self.extra {
            metadata.set(key.as_str(), value.clone());
        }
        Ok(metadata)
    }

    fn tensor<'a>(
        &self,
        plan: &Plan,
        i: usize,
        source: &mut Weights<'_, 'a>,
    ) -> Result<Cow<'a, [u8]>> {
        let ty = plan.specs[i].ty;
        let Some(public) = plan.publics.get(i) else {
            let divisors = plan.divisors.as_deref().unwrap_or_default();
            return Ok(Cow::Owned(tensor::encode_f32(divisors, Dtype::F32)));
        };
        let dtype = ty.dtype().unwrap_or(Dtype::F32);
        let bytes = gather(public, &plan.weights, Layout::Gguf, dtype.size(), |weight| {
            let (from, bytes) = source(weight)?;
            Ok(tensor::convert(bytes, from, dtype))
        })?;
        if ty.dtype().is_some() {
            return Ok(bytes);
        }
        let row = public.shape.last().copied().unwrap_or(1);
        let blocks = match bytemuck::try_cast_slice(&bytes) {
            Ok(values) => (self.quantize)(&public.name, ty, values, row),
            // a memory map that is not aligned to four bytes
            Err(_) => {
                let view =
                    tensor::TensorView { dtype: Dtype::F32, shape: &public.shape, data: &bytes };
                (self.quantize)(&public.name, ty, &view.to_f32(), row)
            }
        };
        let blocks = blocks.map_err(|e| {
            Error::unsupported(format!("tensor {} as {}", public.name, ty.name()), e.to_string())
        })?;
        Ok(Cow::Owned(blocks))
    }
}

/// `general.size_label` as llama.cpp's converter writes it: `26M`, or `4x26M` for experts (what is
/// shared and one expert's part, times experts).
pub fn size_label(config: &Config, weights: &[Weight]) -> String {
    let total: usize = weights.iter().map(Weight::elements).sum();
    match &config.moe {
        None => rounded(total),
        Some(moe) => {
            // shared experts belong to what every token uses
            let routed = |w: &&Weight| {
                matches!(w.role, Role::Gate | Role::Up | Role::Down)
                    && !w.name.contains("shared_experts")
            };
            let routed: usize = weights.iter().filter(routed).map(Weight::elements).sum();
            let one = total - routed + routed / moe.num_experts;
            format!("{}x{}", moe.num_experts, rounded(one))
        }
    }
}

/// A count in K, M, B or T with at least two digits: `5.3M`, `26M`, `104M`.
fn rounded(count: usize) -> String {
    let count = count as f64;
    let (scaled, unit) = match count {
        n if n > 1e12 => (n / 1e12, "T"),
        n if n > 1e9 => (n / 1e9, "B"),
        n if n > 1e6 => (n / 1e6, "M"),
        n => (n / 1e3, "K"),
    };
    if scaled.round() < 10.0 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") }
}
