//! Where a training run's checkpoints are: `DIR/checkpoint-STEP`, and `DIR/checkpoint-STEP.N` for
//! one taken N micro-steps into the accumulation after that step. The highest is the newest.

use std::path::{Path, PathBuf};

use crate::gguf;
use crate::model::adapter;
use crate::safetensors;

use crate::error::{Error, Result};

/// The part of a checkpoint's name before the step.
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
        if let Some(number) = entry.file_name().to_str().and_then(number) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Step and micro-step of a checkpoint's name; nothing for other names.
fn number(name: &str) -> Option<(usize, usize)> {
    let number = name.strip_prefix(PREFIX)?;
    let (step, beyond) = number.split_once('.').unwrap_or((number, "0"));
    Some((step.parse().ok()?, beyond.parse().ok()?))
}

/// The run's folder of a checkpoint; nothing for other folders.
pub fn run_of(checkpoint: &Path) -> Option<&Path> {
    number(checkpoint.file_name()?.to_str()?)?;
    checkpoint.parent()
}

/// A run's folder stands for its newest checkpoint, everything else for itself.
///
/// # Errors
/// The folder cannot be read.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() || path.join("config.json").exists() {
        return Ok(path.to_owned());
    }
    Ok(checkpoints(path)?.pop().unwrap_or_else(|| path.to_owned()))
}

/// The newest model below a folder of runs: within a run the one of the most steps, among runs and
/// lone model folders the one written last. Exports and hidden folders are passed over; nothing
/// where there is none.
pub fn newest(root: &Path) -> Option<PathBuf> {
    /// Folders below `root` that are looked into: runs/NAME/checkpoints/STEP.
    const DEPTH: usize = 4;
    let written = |dir: &Path| {
        [("config.json", safetensors::FILE_NAME), (adapter::CONFIG_NAME, adapter::WEIGHTS_NAME)]
            .iter()
            .filter(|(config, _)| dir.join(config).is_file())
            .find_map(|(_, weights)| fs_err::metadata(dir.join(weights)).ok()?.modified().ok())
    };
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    let mut folders = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = folders.pop() {
        if let Some(time) = written(&dir) {
            found.push((time, dir.clone()));
        }
        let steps = checkpoints(&dir).unwrap_or_default();
        if let Some((time, path)) = steps.iter().rev().find_map(|p| Some((written(p)?, p.clone())))
        {
            found.push((time, path));
        }
        let Ok(entries) = fs_err::read_dir(&dir) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            let passed_over = name == b"export" || name.starts_with(b".") || steps.contains(&path);
            if depth < DEPTH && !passed_over && path.is_dir() {
                folders.push((path, depth + 1));
            }
        }
    }
    found.into_iter().max().map(|(_, path)| path)
}

/// The models to choose from in a folder that is none itself: its GGUFs, its model folders and its
/// runs, or else those of the folders below it. In the order of their names.
pub fn choices(dir: &Path) -> Vec<PathBuf> {
    /// Folders below `dir` that are looked into: runs/NAME/checkpoints.
    const DEPTH: usize = 2;
    let is_model = |path: &Path| {
        let gguf = path.extension().is_some_and(|e| e == "gguf") && path.is_file();
        let configured = ["config.json", adapter::CONFIG_NAME].map(|name| path.join(name));
        (gguf && !gguf::is_further_part(path))
            || configured.iter().any(|config| config.is_file())
            || checkpoints(path).is_ok_and(|steps| !steps.is_empty())
    };
    let mut level = vec![dir.to_owned()];
    for _ in 0..=DEPTH {
        let entries = level.iter().filter_map(|dir| fs_err::read_dir(dir).ok()).flatten().flatten();
        let (mut models, below): (Vec<PathBuf>, Vec<PathBuf>) =
            entries.map(|entry| entry.path()).partition(|path| is_model(path));
        if !models.is_empty() {
            models.sort();
            return models;
        }
        level = below.into_iter().filter(|path| path.is_dir()).collect();
    }
    Vec::new()
}

/// A run's folder, taken by this process for as long as the value lives.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "holds the lock")] Option<fs_err::File>);

/// Takes a run's folder, so that no second training writes into it. The system lets go of it when
/// the process ends, however it ends. Where folders cannot be locked (not on Unix, some network
/// disks) nothing is taken.
///
/// # Errors
/// Another process has it; the folder cannot be opened.
pub fn claim(dir: &Path) -> Result<Claim> {
    #[cfg(unix)]
    {
        let folder = fs_err::File::open(dir).map_err(|e| Error::io(dir, e))?;
        match folder.file().try_lock() {
            Ok(()) => Ok(Claim(Some(folder))),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::failed_with_hint(
                format!("{}: another training is writing here", dir.display()),
                "wait for its end, or give another `out`",
            )),
            Err(std::fs::TryLockError::Error(_)) => Ok(Claim(None)),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        Ok(Claim(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_model_has_the_most_steps_of_the_run_written_last() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(newest(dir.path()), None);
        let seconds = std::cell::Cell::new(1000);
        let model = |name: &str, config: &str, weights: &str| {
            let path = dir.path().join(name);
            fs_err::create_dir_all(&path).expect("a folder");
            fs_err::write(path.join(config), "{}").expect("a file");
            let weights = path.join(weights);
            fs_err::write(&weights, "").expect("a file");
            seconds.set(seconds.get() + 1000); // each is written after the one before
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.get());
            let file = fs_err::OpenOptions::new().write(true).open(&weights).expect("a file");
            file.file().set_modified(time).expect("a time");
            path
        };
        let whole = |name: &str| model(name, "config.json", "model.safetensors");
        let old = whole("b/checkpoints/step-2");
        assert_eq!(newest(dir.path()), Some(old));
        let last = whole("run/checkpoint-000010");
        whole("run/checkpoint-000009"); // copied back later: the run's newest is the one of the most steps
        whole("run/export/hf-f32");
        whole("run/.mmx-checkpoint-x.part/checkpoint");
        assert_eq!(newest(dir.path()), Some(last));
        let adapters =
            model("lora/checkpoint-000001", "adapter_config.json", "adapter_model.safetensors");
        assert_eq!(newest(dir.path()), Some(adapters));
    }

    #[test]
    fn the_models_to_choose_from_are_those_of_the_nearest_folders() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        for file in [
            "export/m-q4_0.gguf",
            "export/m-f16-00001-of-00002.gguf",
            "export/m-f16-00002-of-00002.gguf",
            "export/hf-f32/config.json",
            "export/README.md",
            "runs/sft/checkpoint-000010/config.json",
            "runs/lora/adapter_config.json",
            "runs/notes/a.txt",
        ] {
            fs_err::create_dir_all(at(file).parent().expect("a folder")).expect("a folder");
            fs_err::write(at(file), "").expect("a file");
        }
        let exports = ["hf-f32", "m-f16-00001-of-00002.gguf", "m-q4_0.gguf"];
        assert_eq!(choices(&at("export")), exports.map(|name| at("export").join(name)));
        let runs = ["lora", "sft"].map(|name| at("runs").join(name));
        assert_eq!(choices(&at("runs")), runs);
        let all = [choices(&at("export")), runs.into()].concat();
        assert_eq!(choices(dir.path()), all);
        assert!(choices(&at("runs/notes")).is_empty() && choices(&at("none")).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_is_claimed_by_one_and_free_again_afterwards() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = claim(dir.path()).expect("free");
        let said = claim(dir.path()).expect_err("taken").to_string();
        assert!(said.contains("another training is writing here"), "{said}");
        drop(first);
        claim(dir.path()).expect("free again");
    }

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
