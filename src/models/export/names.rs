//! Names of an export: the model that is meant, and the names of its files.

use std::path::{Path, PathBuf};

use mmx_converters::model::run_folder;
use mmx_converters::{Error, Result};

/// A model's name from its path, as a file name may hold it: `runs/first` and
/// `runs/first/checkpoint-000100` are `first`.
pub(super) fn model_name(path: &Path) -> String {
    let full = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    // a part of a split model has the model's name
    let whole = mmx_converters::gguf::without_part(&full);
    let stem = if full.is_dir() { full.file_name() } else { whole.file_stem() };
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

/// Checks a name of the user's, which becomes part of file names.
///
/// # Errors
/// One that no file name can hold, or that would lie in another folder or be hidden there.
pub(super) fn check_name(name: &str) -> Result<()> {
    /// Longest name in bytes: file systems hold names of 255, and size, type and ending follow.
    const MOST: usize = 200;
    let fit = !name.trim().is_empty()
        && name.len() <= MOST
        && !name.starts_with(['.', '-'])
        && !name.contains(|c: char| c.is_control() || c == '/' || c == '\\');
    match fit {
        true => Ok(()),
        false => Err(Error::setting(
            "name",
            format!(
                "a part of file names (1 to {MOST} bytes, without / and \\, not beginning with . or -)"
            ),
            format!("{name:?}"),
        )),
    }
}

/// The newest checkpoint below `runs`, as [`run_folder::newest`] finds it.
///
/// # Errors
/// There is none.
pub fn newest_checkpoint(runs: &Path) -> Result<PathBuf> {
    run_folder::newest(runs).ok_or_else(|| {
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
    fn names_that_no_file_can_have_are_refused() {
        for bad in ["", " ", "a/b", "..", ".hidden", "-x", "a\\b", "a\nb", &"a".repeat(201)] {
            let error = check_name(bad).expect_err(bad);
            assert!(error.to_string().starts_with("name: expected"), "{error}");
            assert!(error.is_misuse());
        }
        for good in ["first", "my model 2.1", "小模型", "a-b_c.d", &"a".repeat(200)] {
            check_name(good).expect(good);
        }
    }

    #[test]
    fn names_are_fit_for_files() {
        assert_eq!(model_name(Path::new("runs/my model (1)")), "my-model--1");
        assert_eq!(model_name(Path::new("/")), "model");
        assert_eq!(model_name(Path::new("a/b/tiny")), "tiny");
        assert_eq!(model_name(Path::new("a/tiny-00002-of-00003.gguf")), "tiny");
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("first/checkpoint-000100");
        fs_err::create_dir_all(&checkpoint).unwrap();
        assert_eq!(model_name(&checkpoint), "first");
    }
}
