//! Which model is meant, and what its files are called.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A model's name from its path, as a file name may hold it: `runs/first` and `runs/first/checkpoint-000100`
/// are `first`.
pub(super) fn model_name(path: &Path) -> String {
    let full = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
    // a run's checkpoint has the run's name
    let checkpoint = stem.is_some_and(|s| s.as_encoded_bytes().starts_with(b"checkpoint-"));
    let run = full.parent().and_then(Path::file_name).filter(|_| checkpoint);
    let text = run.or(stem).map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let plain: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    let plain = plain.trim_matches(['.', '-']).to_owned();
    if plain.is_empty() { "model".to_owned() } else { plain }
}

/// The folder with config.json and model.safetensors under `runs` whose weights were written last.
/// Exports are not looked at.
///
/// # Errors
/// There is none.
pub fn newest_checkpoint(runs: &Path) -> Result<PathBuf> {
    /// Folders below `runs` that are looked into: runs/NAME/checkpoints/STEP.
    const DEPTH: usize = 4;
    let mut newest: Option<(std::time::SystemTime, PathBuf)> = None;
    let mut folders = vec![(runs.to_owned(), 0)];
    while let Some((dir, depth)) = folders.pop() {
        let weights = dir.join(mmx_converters::safetensors::FILE_NAME);
        if dir.join("config.json").is_file()
            && let Ok(written) = fs_err::metadata(&weights).and_then(|m| m.modified())
            && newest.as_ref().is_none_or(|(time, path)| (written, &dir) > (*time, path))
        {
            newest = Some((written, dir.clone()));
        }
        let Ok(entries) = fs_err::read_dir(&dir) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let hidden = path
                .file_name()
                .is_none_or(|n| n == "export" || n.as_encoded_bytes().starts_with(b"."));
            if depth < DEPTH && !hidden && path.is_dir() {
                folders.push((path, depth + 1));
            }
        }
    }
    newest.map(|(_, path)| path).ok_or_else(|| {
        Error::failed_with_hint(
            format!(
                "{}: expected a checkpoint (config.json and model.safetensors), found none",
                runs.display()
            ),
            "name the model: mmx export MODEL",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_files() {
        assert_eq!(model_name(Path::new("runs/my model (1)")), "my-model--1");
        assert_eq!(model_name(Path::new("/")), "model");
        assert_eq!(model_name(Path::new("a/b/tiny")), "tiny");
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("first/checkpoint-000100");
        fs_err::create_dir_all(&checkpoint).unwrap();
        assert_eq!(model_name(&checkpoint), "first");
    }

    #[test]
    fn the_newest_checkpoint_is_found_and_exports_are_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest_checkpoint(dir.path()).is_err());
        let put = |path: &str, seconds: u64| {
            let folder = dir.path().join(path);
            fs_err::create_dir_all(&folder).unwrap();
            fs_err::write(folder.join("config.json"), "{}").unwrap();
            let weights = folder.join(mmx_converters::safetensors::FILE_NAME);
            fs_err::write(&weights, "").unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            let file = fs_err::OpenOptions::new().write(true).open(&weights).unwrap();
            file.file().set_modified(time).unwrap();
        };
        put("a", 1000);
        put("b/checkpoints/step-2", 3000);
        put("b/checkpoints/step-1", 2000);
        put("b/export/hf-f32", 4000);
        assert_eq!(newest_checkpoint(dir.path()).unwrap(), dir.path().join("b/checkpoints/step-2"));
    }
}
