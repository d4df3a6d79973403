//! What mmx does with models besides training them: any model opened, run by an engine, compared,
//! exported, quantized, and told what each runtime will make of it.
//!
//! ```
//! use mmx_ggml::FileType;
//! use mmx_models::compare;
//! use mmx_models::engines::{self, Kind};
//! use mmx_models::export::{self, Request};
//! use mmx_models::open::Form;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("tiny.gguf");
//! # std::fs::write(&path, mmx_ggml::run::random_model::tiny_gguf(1)?)?;
//! // `path` is any model: a run's folder, a Transformers folder, a GGUF, hf:owner/name
//! let form = Form::open(&path)?;
//! let ids = form.expect_tokenizer()?.encode("Hello")?;
//! let expected = engines::open(Kind::Ggml, &form, 1)?.logits(&ids)?; // [ids.len(), vocab]
//!
//! // every file of an export, and every tensor that did not get the type asked for
//! let out = Some(dir.path().join("export"));
//! let gguf = vec![FileType::Q8_0];
//! let request = Request { model: Some(path), out, gguf, ..Request::default() };
//! let report = export::export(&request)?;
//! let file = report.files.iter().find(|file| file.format == "gguf").ok_or("no GGUF")?;
//!
//! // how far the quantized model is from the first one
//! let mut engine = engines::open(Kind::Ggml, &Form::open(&file.path)?, 1)?;
//! let far = compare::difference(&expected, &engine.logits(&ids)?, engine.vocab());
//! assert!(far.mean_kl < 0.01);
//! # Ok(()) }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | [`open`] | the opener of any model, with its tokenizer, and as a GGUF in memory |
//! | [`engines`] | logits by mmx's runner, by llama.cpp, or by `mmx-train` as a child |
//! | [`trainer`] | where the program `mmx-train` is, and what it says of itself |
//! | [`compare`] | distances of two sets of logits |
//! | [`mod@verify`] | every form of a model in every engine against a reference |
//! | `limit` | how far a form may be from the reference |
//! | [`live`] | running servers against the reference: text token by token, probabilities |
//! | [`export`] | a checkpoint to Transformers folders, GGUFs, adapters, Modelfiles, model cards |
//! | [`mod@quantize`], [`blocks`] | a GGUF to another type; ggml's quantizers for the writers |
//! | [`imatrix`] | the importance matrix of a model on a text |
//! | [`speaker`] | a model asked in a chat |
//! | [`consumers`] | the programs that open what mmx writes: what each carries, and its text beside the runner's |
//! | [`doctor`] | what this machine has, and what each runtime will make of a model |

pub mod blocks;
pub mod compare;
pub mod consumers;
pub mod doctor;
pub mod engines;
pub mod export;
pub mod imatrix;
mod limit;
pub mod live;
pub mod open;
pub mod quantize;
mod sample_text;
pub mod speaker;
pub mod trainer;
pub mod verify;
