//! Transfers to and from the places where models are kept: a Hugging Face hub, ModelScope, Ollama.
//!
//! It speaks plain HTTP. The hub's Rust client sends large files through one storage service only,
//! which mirrors and private hubs do not have (on what comes down see [`mod@snapshot`]), and
//! Ollama's does not send files at all.
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
//!     let kind = hub::Kind::Model;
//!     let request = Request { kind, repo: repo.to_owned(), revision: "main".to_owned(), out, only };
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
//! | [`mod@snapshot`] | a repository's files in the cache shared with the official client, or from it |
//! | [`dataset`] | `hf:datasets/owner/name` to the data files that it means |
//! | [`download`] | a repository to a folder of the user's |
//! | [`upload`] | a folder to a repository, as one commit |
//! | [`modelscope`] | ModelScope's repositories and the cache of its client |
//! | [`ollama`] | a GGUF and its Modelfile to a running Ollama |
//! | [`ollama_store`] | a model in the store of the Ollama on this machine |
//! | [`live`] | a running server asked for text and the probabilities of its tokens |
//! | [`drawn`] | a running server asked to go on after ids, with the ids it drew |
//! | [`chat`] | chats asked of a server, and which refusals are worth asking again |
//! | [`mod@resolve`] | a path, `hf:owner/name` or another such name to the model that it stands for |
//! | `name`, `choose` | `hf:owner/name:q8_0` taken apart, and the files of a repository that it means |
//! | [`environment`] | variables, the user's folders, the token |
//! | `cache`, `checked` | how the cache is laid out, and which of its files were verified |
//! | `transfer` | one file to its place, gone on with where it was cut off |
//! | `http`, `digest` | requests with their errors, and digests of files |

mod cache;
pub mod chat;
mod checked;
mod choose;
pub mod dataset;
mod digest;
pub mod download;
pub mod drawn;
pub mod environment;
mod http;
pub mod hub;
pub mod live;
pub mod modelscope;
mod name;
pub mod ollama;
pub mod ollama_store;
pub mod resolve;
pub mod snapshot;
mod transfer;
pub mod upload;

pub use dataset::resolve_data;
pub use resolve::{listen, resolve};
