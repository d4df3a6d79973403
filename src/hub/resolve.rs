//! The meaning of a path where a model is wanted.

use std::path::{Path, PathBuf};

use mmx_converters::Result;
use mmx_converters::model::run_folder;

/// Resolves a path where a model is wanted: a run's folder stands for its newest checkpoint,
/// `hf:owner/name` (or `hf:owner/name@revision`) for a folder of private copies from the hub,
/// everything else for itself.
///
/// # Errors
/// The folder cannot be read; the hub refuses.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if let Some(repo) = path.to_str().and_then(|text| text.strip_prefix("hf:")) {
        return crate::download::cached(repo);
    }
    run_folder::resolve(path)
}
