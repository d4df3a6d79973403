//! Data sets of a hub: the files of one split of a repository, in order, on this machine.
//!
//! In: `hf:datasets/owner/name[/FILE or FOLDER][@REVISION]` and the same of `ms:`. Out: the data
//! files it means, fetched into the cache that is shared with the hub's own client. Which files are
//! a split's is told by their names as the Python library `datasets` does (its `data_files.py`).

use std::path::{Path, PathBuf};

use mmx_converters::{Error, Result};

use crate::hub::{Hub, Kind, RemoteFile};
use crate::modelscope::{self, ModelScope};
use crate::name::Name;
use crate::resolve::listener;
use crate::snapshot::{Choice, Request, snapshot};

/// What the names of a data set begin with, after `hf:` or `ms:`.
const PREFIX: &str = "datasets/";
/// Endings of data files, the likelier ones first.
const DATA: [&str; 6] = ["parquet", "jsonl", "ndjson", "json", "csv", "tsv"];
/// Files that are about a data set. Source: `datasets`' data_files.py, FILES_TO_IGNORE.
const ABOUT: [&str; 5] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
/// Words that say a split, and which. Source: `datasets`' data_files.py, SPLIT_KEYWORDS.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// True for the name of a data set elsewhere.
#[must_use]
pub fn is_dataset(path: &Path) -> bool {
    named(path).is_some()
}

/// The scheme and what stands after `datasets/`.
fn named(path: &Path) -> Option<(&str, &str)> {
    let (scheme, rest) = path.to_str()?.split_once(':')?;
    let rest = rest.strip_prefix(PREFIX)?;
    matches!(scheme, "hf" | "ms").then_some((scheme, rest))
}

/// The data files that paths stand for: those of a data set elsewhere, in the order of their names,
/// fetched as far as they are not here; every other path for itself.
///
/// # Errors
/// See [`snapshot`] and [`modelscope::snapshot`]; a repository without data files of a kind that is
/// read, or with several sets of them: they are named.
pub fn resolve_data(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let files = paths.iter().map(|path| match named(path) {
        Some((scheme, text)) => fetched(scheme, text),
        None => Ok(vec![path.clone()]),
    });
    Ok(files.collect::<Result<Vec<_>>>()?.concat())
}

fn fetched(scheme: &str, text: &str) -> Result<Vec<PathBuf>> {
    let name = Name::read(text)?;
    let called = format!("{scheme}:{PREFIX}{}", name.repo);
    if name.wanted.ty.is_some() {
        return Err(Error::misuse(format!(
            "{called}: expected owner/name[/FILE or FOLDER][@REVISION], found a type after :"
        )));
    }
    let path = name.wanted.path.as_deref();
    let pick = |files: &[RemoteFile]| choose(&called, files, path);
    let listener = listener();
    let usual = if scheme == "ms" { modelscope::MAIN } else { "main" };
    let revision = name.revision.as_deref().unwrap_or(usual);
    let request = Request { kind: Kind::Dataset, repo: &name.repo, revision, file: path };
    let found = match scheme {
        "ms" => {
            let server = ModelScope::from_environment();
            modelscope::snapshot(&server, &request, &pick, listener.as_ref())?
        }
        _ => snapshot(&Hub::from_environment(), &request, &pick, listener.as_ref())?,
    };
    Ok(found.files)
}

/// The ending that says a data file's kind, whether it is packed or not.
fn kind(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.starts_with('.') || ABOUT.contains(&name) {
        return None;
    }
    let (bare, packed) = match name.strip_suffix(".gz").or(name.strip_suffix(".zst")) {
        Some(bare) => (bare, true),
        None => (name, false),
    };
    let ending = bare.rsplit_once('.')?.1.to_ascii_lowercase();
    DATA.into_iter().find(|known| *known == ending && !(packed && *known == "parquet"))
}

/// The split that a path names: by a word of a folder's or the file's name.
fn split(path: &str) -> Option<&'static str> {
    let has = |text: &str, words: &[&str]| {
        text.split(|c: char| !c.is_ascii_alphanumeric())
            .any(|part| words.contains(&part.trim_end_matches(|c: char| c.is_ascii_digit())))
    };
    // the file's own name says more than its folders'
    path.to_ascii_lowercase()
        .rsplit('/')
        .find_map(|part| SPLITS.iter().find(|(_, words)| has(part, words)).map(|(split, _)| *split))
}

/// The folder of a data file.
fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Chooses the data files of a repository: the one named, or of a folder (or all) those of the split
/// `train`, or where no name says a split, all. Of several kinds the one with the most files.
fn choose(called: &str, files: &[RemoteFile], wanted: Option<&str>) -> Result<Choice> {
    let wanted = wanted.map(|path| path.trim_end_matches('/')).filter(|path| !path.is_empty());
    if let Some(at) = wanted.and_then(|path| files.iter().position(|file| file.path == path)) {
        return Ok(Choice { files: vec![at], opened: files[at].path.clone(), word: None });
    }
    let below = wanted.map_or(String::new(), |path| format!("{path}/"));
    let data: Vec<(usize, &str)> = files
        .iter()
        .enumerate()
        .filter(|(_, file)| file.path.starts_with(&below))
        .filter_map(|(at, file)| Some((at, kind(&file.path)?)))
        .collect();
    let count = |kind: &str| data.iter().filter(|(_, of)| *of == kind).count();
    let Some(usual) =
        DATA.into_iter().rev().max_by_key(|kind| count(kind)).filter(|k| count(k) > 0)
    else {
        let there: Vec<&str> = files.iter().map(|file| file.path.as_str()).take(20).collect();
        let there = if there.is_empty() { "no file".to_owned() } else { there.join(", ") };
        return Err(Error::failed(format!(
            "{called}: expected {}a file of {}, found {there}",
            wanted.map_or(String::new(), |path| format!("{path}, or in it ")),
            DATA.join(", ")
        )));
    };
    let paths: Vec<(usize, &str)> = data
        .iter()
        .filter(|(_, of)| *of == usual)
        .map(|(at, _)| (*at, files[*at].path.as_str()))
        .collect();
    // below a named folder the names of splits may stand in the folder's own
    let of = |path: &str| split(path.strip_prefix(&below).unwrap_or(path));
    let splits = paths.iter().any(|(_, path)| of(path).is_some());
    let taken: Vec<(usize, &str)> =
        paths.iter().copied().filter(|(_, path)| !splits || of(path) == Some("train")).collect();
    let mut folders: Vec<&str> = taken.iter().map(|(_, path)| folder(path)).collect();
    folders.dedup();
    if taken.is_empty() {
        let names: Vec<&str> = paths.iter().map(|(_, path)| *path).take(20).collect();
        return Err(Error::failed_with_hint(
            format!("{called}: expected files of the split train, found {}", names.join(", ")),
            format!("{called}/{} names one of them", names[0]),
        ));
    }
    if folders.len() > 1 {
        return Err(Error::failed_with_hint(
            format!(
                "{called}: expected data files in one folder, found them in {}",
                folders
                    .iter()
                    .map(|f| if f.is_empty() { "/" } else { f })
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            format!(
                "{called}/{} takes those of one",
                folders.iter().find(|f| !f.is_empty()).unwrap_or(&"")
            ),
        ));
    }
    let word = (taken.len() < data.len()).then(|| {
        format!(
            "{} of {} data files: {}",
            taken.len(),
            data.len(),
            if taken.len() == 1 {
                taken[0].1.to_owned()
            } else {
                format!("{} to {}", taken[0].1, taken[taken.len() - 1].1)
            }
        )
    });
    Ok(Choice {
        files: taken.iter().map(|(at, _)| *at).collect(),
        opened: folders[0].to_owned(),
        word,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(paths: &[&str], wanted: Option<&str>) -> Result<Vec<String>> {
        let files: Vec<RemoteFile> = paths
            .iter()
            .map(|path| RemoteFile {
                path: (*path).to_owned(),
                bytes: 1,
                git_id: String::new(),
                sha256: None,
            })
            .collect();
        let choice = choose("hf:datasets/me/x", &files, wanted)?;
        Ok(choice.files.iter().map(|&at| files[at].path.clone()).collect())
    }

    #[test]
    fn the_train_split_is_taken_where_names_say_splits() {
        let shards = [
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
        ];
        assert_eq!(chosen(&shards, None).unwrap(), shards[2..]);
        assert_eq!(chosen(&shards, Some("data")).unwrap(), shards[2..]);
        assert_eq!(chosen(&shards, Some(shards[1])).unwrap(), [shards[1]]);
        let folders = ["dataset_infos.json", "test/a.jsonl", "train/a.jsonl", "train/b.jsonl"];
        assert_eq!(chosen(&folders, None).unwrap(), folders[2..]);
        assert_eq!(chosen(&folders, Some("test/")).unwrap(), ["test/a.jsonl"]);
        // no name says a split: `restrain` is no `train`
        let all = ["a.json.gz", "b.json", "restrain.json"];
        assert_eq!(chosen(&all, None).unwrap(), all);
    }

    #[test]
    fn what_may_be_meant_is_named() {
        let configs = ["en/train.csv", "zh/train.csv"];
        let error = chosen(&configs, None).unwrap_err();
        assert!(error.to_string().contains("in one folder, found them in en, zh"), "{error}");
        assert_eq!(chosen(&configs, Some("zh")).unwrap(), ["zh/train.csv"]);
        let error = chosen(&["test.csv", "dev.csv"], None).unwrap_err().to_string();
        assert!(
            error.contains("expected files of the split train, found test.csv, dev.csv"),
            "{error}"
        );
        let error = chosen(&["README.md", "dataset_info.json"], None).unwrap_err().to_string();
        assert!(error.contains("expected a file of parquet, jsonl"), "{error}");
        let error = chosen(&["a.csv"], Some("b.csv")).unwrap_err().to_string();
        assert!(error.contains("expected b.csv, or in it a file of"), "{error}");
    }

    #[test]
    fn the_commonest_kind_of_file_is_taken() {
        let mixed = ["a.parquet", "b.parquet", "notes.csv"];
        assert_eq!(chosen(&mixed, None).unwrap(), mixed[..2]);
        assert_eq!(chosen(&["x.csv", "x.parquet"], None).unwrap(), ["x.parquet"]);
    }

    #[test]
    fn names_of_data_sets_are_told_from_paths() {
        for yes in ["hf:datasets/me/x", "ms:datasets/me/x/a.csv@v2"] {
            assert!(is_dataset(Path::new(yes)), "{yes}");
        }
        for no in ["hf:me/x", "datasets/me/x", "data.jsonl", "c:datasets/x"] {
            assert!(!is_dataset(Path::new(no)), "{no}");
        }
    }
}
