//! Transfers to and from the places where models are kept: a Hugging Face hub, a running Ollama.
//!
//! It speaks plain HTTP. The hub's Rust client sends large files through one storage service only,
//! which mirrors and private hubs do not have, and Ollama's does not send files at all.
//!
//! ```
//! use std::path::{Path, PathBuf};
//!
//! use mmx_hub::download::{self, Request};
//! use mmx_hub::hub::{self, Hub};
//!
//! /// Downloads a repository's tokenizer files (not called below: it asks the hub).
//! fn tokenizer_of(repo: &str, out: PathBuf) -> mmx_converters::Result<download::Report> {
//!     let hub = Hub::from_environment(); // HF_ENDPOINT and HF_TOKEN
//!     let only = vec!["tokenizer.json".to_owned(), "tokenizer_config.json".to_owned()];
//!     let request = Request { repo: repo.to_owned(), revision: "main".to_owned(), out, only };
//!     download::download(&hub, &request, &mut |done, all| eprintln!("{done} of {all} bytes"))
//! }
//!
//! # fn main() -> mmx_converters::Result<()> {
//! // names are checked before anything is asked
//! assert!(hub::check_name("me/my-model").is_ok() && hub::check_name("../elsewhere").is_err());
//! // where a model is wanted, a path that is no run and no `hf:owner/name` stands for itself
//! let path = Path::new("models/my-model.gguf");
//! assert_eq!(mmx_hub::resolve(path)?, path);
//! # Ok(()) }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | [`hub`] | a hub's repositories: commits, files, branches |
//! | [`download`] | a repository to a folder, and the cache of private copies |
//! | [`upload`] | a folder to a repository, as one commit |
//! | [`ollama`] | a GGUF and its Modelfile to a running Ollama |
//! | [`mod@resolve`] | a path or `hf:owner/name` to the model that it stands for |
//! | `http`, `digest` | requests with their errors, and digests of files |

mod digest;
pub mod download;
mod http;
pub mod hub;
pub mod ollama;
pub mod resolve;
pub mod upload;

pub use resolve::resolve;
