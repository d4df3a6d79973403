//! The meaning of a path where a model is wanted.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mmx_converters::Result;
use mmx_converters::model::run_folder;
use mmx_converters::progress::{Listener, Silent};

use crate::choose::choose;
use crate::hub::{Hub, Kind};
use crate::modelscope::{self, ModelScope};
use crate::name::Name;
use crate::ollama_store;
use crate::snapshot::{Request, snapshot};

/// Who hears of what [`resolve`] fetches and chooses.
static LISTENER: OnceLock<Arc<dyn Listener>> = OnceLock::new();

/// Sets the listener of this process: a path is resolved far below the program that knows a
/// terminal. The first one stays.
pub fn listen(listener: Arc<dyn Listener>) {
    let _ = LISTENER.set(listener);
}

/// The listener of this process.
pub fn listener() -> Arc<dyn Listener> {
    LISTENER.get().cloned().unwrap_or_else(|| Arc::new(Silent))
}

/// Resolves a path where a model is wanted: a run's folder stands for its newest checkpoint,
/// `hf:owner/name` and its like for a copy on this machine, everything else for itself.
///
/// - `hf:owner/name[/FILE or FOLDER][:TYPE][@REVISION]`: a hub's repository; of one of GGUFs one is
///   taken.
/// - `ms:owner/name...`: the same of ModelScope.
/// - `ollama:NAME[:TAG]`: a model in the store of the Ollama on this machine.
///
/// # Errors
/// The folder cannot be read; see [`snapshot`], [`modelscope::snapshot`] and [`ollama_store::find`].
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let Some((scheme, text)) = path.to_str().and_then(|text| text.split_once(':')) else {
        return run_folder::resolve(path);
    };
    let listener = listener();
    let found = match scheme {
        "ollama" => return ollama_store::find(text),
        "hf" => {
            let name = Name::read(text)?;
            let called = format!("hf:{}", name.repo);
            let pick = |files: &[_]| choose(&called, files, &name.wanted);
            let hub = Hub::from_environment();
            snapshot(&hub, &request(&name, "main"), &pick, listener.as_ref())?
        }
        "ms" => {
            let name = Name::read(text)?;
            let called = format!("ms:{}", name.repo);
            let pick = |files: &[_]| choose(&called, files, &name.wanted);
            let server = ModelScope::from_environment();
            let request = request(&name, modelscope::MAIN);
            modelscope::snapshot(&server, &request, &pick, listener.as_ref())?
        }
        _ => return run_folder::resolve(path),
    };
    Ok(found.opened)
}

/// The request for a model's files; `main` is the branch where none is named.
fn request<'a>(name: &'a Name, main: &'a str) -> Request<'a> {
    let revision = name.revision.as_deref().unwrap_or(main);
    Request { kind: Kind::Model, repo: &name.repo, revision, file: name.wanted.path.as_deref() }
}
