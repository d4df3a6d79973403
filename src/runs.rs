//! Where a training run's checkpoints are: `DIR/checkpoint-STEP`, and `DIR/checkpoint-STEP.N` for one taken
//! N micro-steps into the accumulation after that step. The highest is the newest.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What goes before the step in a checkpoint's name.
const PREFIX: &str = "checkpoint-";

/// A checkpoint's name; `accumulated` micro-steps lie beyond the step.
pub fn name(step: usize, accumulated: usize) -> String {
    match accumulated {
        0 => format!("{PREFIX}{step:06}"),
        n => format!("{PREFIX}{step:06}.{n}"),
    }
}

/// The checkpoints below a run's folder, oldest first; none where the folder does not exist.
///
/// # Errors
/// The folder cannot be read.
pub fn checkpoints(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<((usize, usize), PathBuf)> = Vec::new();
    if !dir.exists() {
        return Ok(Vec::new());
    }
    for entry in fs_err::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let file_name = entry.file_name();
        let Some(number) = file_name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
            continue;
        };
        let (step, beyond) = number.split_once('.').unwrap_or((number, "0"));
        if let (Ok(step), Ok(beyond)) = (step.parse(), beyond.parse()) {
            found.push(((step, beyond), entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// What a path stands for where a model is wanted: a run's folder for its newest checkpoint, `hf:owner/name` (or
/// `hf:owner/name@revision`) for a folder of private copies from the hub, everything else for itself.
///
/// # Errors
/// The folder cannot be read; the hub refuses.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if let Some(repo) = path.to_str().and_then(|text| text.strip_prefix("hf:")) {
        return crate::publish::download::cached(repo);
    }
    if !path.is_dir() || path.join("config.json").exists() {
        return Ok(path.to_owned());
    }
    Ok(checkpoints(path)?.pop().unwrap_or_else(|| path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_ordered_by_step_then_micro_step() {
        let dir = tempfile::tempdir().expect("a folder");
        let names: Vec<String> = [(1_000_000, 0), (9, 0), (123, 2), (123, 0), (123, 10)]
            .map(|(step, beyond)| name(step, beyond))
            .into();
        for name in names.iter().chain(&["checkpoint-last".to_owned(), "tb".to_owned()]) {
            fs_err::create_dir(dir.path().join(name)).expect("a folder");
        }
        let found = checkpoints(dir.path()).expect("readable");
        let expected = [&names[1], &names[3], &names[2], &names[4], &names[0]];
        assert_eq!(found, expected.map(|name| dir.path().join(name)));
        assert_eq!(resolve(dir.path()).expect("readable"), dir.path().join("checkpoint-1000000"));
        assert!(
            checkpoints(&dir.path().join("none")).expect("no folder, no checkpoints").is_empty()
        );
    }

    #[test]
    fn a_model_folder_stands_for_itself() {
        let dir = tempfile::tempdir().expect("a folder");
        fs_err::create_dir(dir.path().join(name(1, 0))).expect("a folder");
        fs_err::write(dir.path().join("config.json"), "{}").expect("a file");
        assert_eq!(resolve(dir.path()).expect("readable"), dir.path());
    }
}
