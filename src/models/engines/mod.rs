//! The engines that turn ids into logits, behind one trait: tch (`native`), mmx's own ggml runner
//! (`ggml`), and llama.cpp itself (`llama.cpp`), the judge.

pub mod engine;
mod ggml;
mod llama_cpp;
mod native;

use mmx_ggml::run::LoadOptions;

use crate::open::Form;
pub use engine::{Engine, Kind};
use mmx_converters::{Error, Result};

/// Opens a form in an engine.
///
/// # Errors
/// A form the engine cannot open, or an engine this build lacks.
pub fn open(kind: Kind, form: &Form, threads: usize) -> Result<Box<dyn Engine>> {
    open_on(kind, form, threads, LoadOptions::default())
}

/// Opens a form in an engine; the runner loads its model as `options` say, on a device for
/// instance.
///
/// # Errors
/// As [`open`].
pub fn open_on(
    kind: Kind,
    form: &Form,
    threads: usize,
    options: LoadOptions,
) -> Result<Box<dyn Engine>> {
    // whether the file is of a kind that the engine opens; that mmx-train is missing is said by
    // `native` itself
    if !form.engines().contains(&kind) && (kind != Kind::Native || form.is_gguf()) {
        return Err(Error::misuse(format!(
            "{}: the engine {} cannot open this kind of file",
            form.path().display(),
            kind.name(),
        )));
    }
    match kind {
        Kind::Native => Ok(Box::new(native::Native::open(form, threads, "cpu", false)?)),
        Kind::Ggml => Ok(Box::new(ggml::Ggml::open(form, threads, options)?)),
        Kind::LlamaCpp => Ok(Box::new(llama_cpp::LlamaCpp::open(form, threads)?)),
    }
}

/// The error for a form that no engine of those asked for opens.
pub fn none_of(asked: &[Kind], form: &Form) -> Error {
    let names =
        |kinds: &[Kind]| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
    let missing = match asked.contains(&Kind::Native) && crate::trainer::program().is_none() {
        true => " (native is mmx-train, which is not there)",
        false => "",
    };
    Error::misuse(format!(
        "{}: `engine`: expected one that opens it ({}), found {}{missing}",
        form.path().display(),
        names(&form.engines()),
        names(asked)
    ))
}

/// Opens a form in tch on a device (`auto`, `cpu`, `cuda`, `cuda:N`, `mps`), computing in float32 or
/// bfloat16. [`open`] takes the CPU and float32, which other engines are compared with.
///
/// # Errors
/// As [`open`]; a device that is not there.
pub fn open_native(
    form: &Form,
    threads: usize,
    device: &str,
    bf16: bool,
) -> Result<Box<dyn Engine>> {
    if form.is_gguf() {
        return open(Kind::Native, form, threads); // which says why not
    }
    Ok(Box::new(native::Native::open(form, threads, device, bf16)?))
}
