//! Which files of a benchmark's folder hold what: its splits and subjects, by the names that they
//! are published with.
//!
//! In: a folder or file. Out: [`Source`]s. `val/accountant_val.csv`, `test/agronomy.csv`,
//! `accountant/val-00000-of-00001.parquet` and `ARC-Easy/ARC-Easy-Test.jsonl` name both split and
//! subject.

use std::path::{Path, PathBuf};

use mmx_converters::{Error, Result};
use mmx_data::blocks::Blocks;
use mmx_data::jsonl;

use super::question::is_han;
use crate::benchmarks::{Benchmark, Layout, Split};
use crate::fault::fault_at;

/// Folders within folders that are looked into.
const DEEPEST: usize = 6;

/// A file of questions.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) split: Option<Split>,
    pub(super) subject: String,
    pub(super) layout: Layout,
    pub(super) benchmark: Benchmark,
}

/// A file that was looked at.
pub(super) enum Look {
    /// It holds questions.
    Questions(Source),
    /// It holds something else, and what.
    Else(Error),
}

/// True for a name that files of questions have, packed or not.
pub(super) fn is_named(path: &Path) -> bool {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
    let path = if packed { path.with_extension("") } else { path.to_owned() };
    let known = ["csv", "jsonl", "ndjson", "json", "parquet"];
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    known.iter().any(|name| extension.eq_ignore_ascii_case(name))
}

/// True for the name of a CSV file that is not packed.
pub(super) fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"))
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
}

/// Looks at the first records of a file.
///
/// # Errors
/// A file that cannot be read or is damaged.
pub(super) fn look(path: &Path) -> Result<Look> {
    if is_csv(path) {
        // told before it is taken apart, so that the encoding is named
        let bytes = fs_err::read(path).map_err(|e| Error::io(path, e))?;
        for line in jsonl::lines(&bytes) {
            jsonl::utf8(&line).map_err(|fault| fault_at(path, fault))?;
        }
    }
    let nothing = || {
        let message = format!("{}: expected at least one question, found none", path.display());
        Ok(Look::Else(Error::failed(message)))
    };
    let Some(block) = Blocks::open(path)?.next_block()? else { return nothing() };
    let lines = block.lines();
    let Some(first) = lines.first() else { return nothing() };
    let object = match jsonl::object(first) {
        Ok(object) => object,
        // what describes a data set is JSON, too, and may be anything
        Err(fault) if is_json(path) => return Ok(Look::Else(fault_at(path, fault))),
        Err(fault) => return Err(fault_at(path, fault)),
    };
    let Some(layout) = Layout::of(&object) else {
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        let fault = jsonl::Fault {
            line: first.number,
            record: first.record,
            message: format!(
                "expected the keys of a benchmark's questions (question, A, B, .., answer; question, choices, \
                 answerKey; goal, sol1, sol2, label; ..), found {}",
                found.join(", ")
            ),
            hint: None,
        };
        return Ok(Look::Else(fault_at(path, fault)));
    };
    let chinese = layout == Layout::Lettered
        && lines.iter().filter_map(|line| jsonl::object(line).ok()).any(|object| {
            object.values().filter_map(|value| value.as_str()).any(|text| text.chars().any(is_han))
        });
    let name = Name::of(path);
    let subject = name.subject(layout);
    let benchmark = Benchmark::of(layout, &object, subject.as_deref().unwrap_or_default(), chinese);
    let subject = subject.unwrap_or_else(|| match benchmark {
        Benchmark::Other => name.whole,
        known => known.title().to_owned(),
    });
    Ok(Look::Questions(Source {
        path: path.to_owned(),
        split: name.split,
        subject,
        layout,
        benchmark,
    }))
}

/// What the names of a file and its folders say.
#[derive(Debug, PartialEq)]
struct Name {
    split: Option<Split>,
    /// What the file's name says besides the split.
    file: Option<String>,
    /// The nearest folder that names no split.
    folder: Option<String>,
    /// The file's name without its endings.
    whole: String,
}

impl Name {
    fn of(path: &Path) -> Self {
        let whole = stem(path);
        let (file, split) = cut(without_shard(&whole));
        let folders = path.ancestors().skip(1).filter_map(Path::file_name);
        let mut folders = folders.map(|name| name.to_string_lossy().into_owned());
        let nearest = folders.next();
        let split = split.or_else(|| Split::of(nearest.as_deref()?));
        // folders that hubs put files of all subjects into
        let is_subject = |name: &String| {
            Split::of(name).is_none() && !["data", "default", "plain_text"].contains(&name.as_str())
        };
        let folder = nearest.into_iter().chain(folders).find(is_subject);
        // a number is a part of a split: `test/0000.parquet`
        let is_number = file.bytes().all(|c| c.is_ascii_digit());
        let file = (!file.is_empty() && !is_number).then(|| file.to_owned());
        Self { split, file, folder, whole }
    }

    /// The subject: benchmarks of one subject have their files in folders by any name.
    fn subject(&self, layout: Layout) -> Option<String> {
        match layout {
            Layout::Lettered => self.file.clone().or_else(|| self.folder.clone()),
            Layout::Choices => self.file.clone().or_else(|| {
                let is_arc = |name: &&String| name.to_ascii_lowercase().starts_with("arc");
                self.folder.as_ref().filter(is_arc).cloned()
            }),
            Layout::Piqa | Layout::HellaSwag | Layout::SocialIqa => self.file.clone(),
        }
    }
}

/// A file's name without its endings.
pub(super) fn stem(path: &Path) -> String {
    let packed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
    let path = if packed { path.with_extension("") } else { path.to_owned() };
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A name without the number of a part of several: `val` of `val-00000-of-00001`.
fn without_shard(name: &str) -> &str {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let parts = name.rsplit_once("-of-").filter(|(_, all)| digits(all));
    let part = parts.and_then(|(before, _)| before.rsplit_once('-'));
    part.filter(|(_, number)| digits(number)).map_or(name, |(name, _)| name)
}

/// What a name says besides the split, and the split: `physics` of `physics_val`, nothing of `val`.
fn cut(name: &str) -> (&str, Option<Split>) {
    if let Some(split) = Split::of(name) {
        return ("", Some(split));
    }
    if let Some(at) = name.rfind(['_', '-', '.']) {
        let split = Split::of(&name[at + 1..]);
        if at > 0 && split.is_some() {
            return (&name[..at], split);
        }
    }
    (name, None)
}

/// The files in a folder and the folders in it, in the order of their paths; hidden ones are passed
/// over.
///
/// # Errors
/// A folder that cannot be read.
pub(super) fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    into(folder, DEEPEST, &mut files)?;
    // AllenAI's archives hold each file as CSV in another layout, too
    let lines = |path: &PathBuf| path.extension().is_some_and(|e| e == "jsonl");
    let twins: Vec<PathBuf> =
        files.iter().filter(|path| lines(path)).map(|path| path.with_extension("csv")).collect();
    files.retain(|path| !twins.contains(path));
    files.sort();
    Ok(files)
}

/// The files right in a folder.
pub(super) fn within(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    into(folder, 0, &mut files)?;
    files.sort();
    Ok(files)
}

fn into(folder: &Path, deeper: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    // a file's parent may be written as nothing
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = fs_err::read_dir(here).map_err(|e| Error::io(here, e))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let path = folder.join(name);
        if path.is_dir() {
            if deeper > 0 {
                into(&path, deeper - 1, files)?;
            }
        } else if is_named(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// The files that may be the other splits of what `path` names: those in the folder, or beside the
/// file, and those in folders of other splits beside it.
///
/// # Errors
/// A folder that cannot be read.
pub(super) fn beside(path: &Path) -> Result<Vec<PathBuf>> {
    let (folder, mut files) = match path.is_dir() {
        true => (path, walk(path)?),
        false => {
            let folder = path.parent().unwrap_or(Path::new(""));
            (folder, within(folder)?)
        }
    };
    let is_split = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| Split::of(&name).is_some())
    };
    if is_split(folder) {
        let parent = folder.parent().unwrap_or(Path::new(""));
        let here = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let entries = fs_err::read_dir(here).map_err(|e| Error::io(here, e))?;
        let mut others: Vec<PathBuf> =
            entries.flatten().map(|entry| parent.join(entry.file_name())).collect();
        others.retain(|other| other != folder && other.is_dir() && is_split(other));
        others.sort();
        for other in others {
            files.extend(within(&other)?);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_they_are_published_say_split_and_subject() {
        use Split::{Dev, Test, Train, Validation};
        for (path, layout, split, subject) in [
            (
                "ceval/val/accountant_val.csv",
                Layout::Lettered,
                Some(Validation),
                Some("accountant"),
            ),
            (
                "accountant/val-00000-of-00001.parquet",
                Layout::Lettered,
                Some(Validation),
                Some("accountant"),
            ),
            ("cmmlu/test/agronomy.csv", Layout::Lettered, Some(Test), Some("agronomy")),
            ("agronomy/dev/0000.parquet", Layout::Lettered, Some(Dev), Some("agronomy")),
            ("data/dev/古音学.csv", Layout::Lettered, Some(Dev), Some("古音学")),
            ("data/accounting_train.csv", Layout::Lettered, Some(Train), Some("accounting")),
            ("ARC-V1/ARC-Easy/ARC-Easy-Test.jsonl", Layout::Choices, Some(Test), Some("ARC-Easy")),
            (
                "ARC-Challenge/test-00000-of-00001.parquet",
                Layout::Choices,
                Some(Test),
                Some("ARC-Challenge"),
            ),
            ("main/test-00000-of-00001.parquet", Layout::Choices, Some(Test), None),
            ("physicaliqa-train-dev/dev.jsonl", Layout::Piqa, Some(Dev), None),
            ("piqa/tests.jsonl", Layout::Piqa, Some(Test), None),
            ("hellaswag_val.jsonl", Layout::HellaSwag, Some(Validation), Some("hellaswag")),
            ("socialIQa_v1.4_trn.jsonl.gz", Layout::SocialIqa, Some(Train), Some("socialIQa_v1.4")),
            ("quiz.csv", Layout::Lettered, None, Some("quiz")),
            ("_val.csv", Layout::Lettered, None, Some("_val")),
        ] {
            let name = Name::of(Path::new(path));
            assert_eq!((name.split, name.subject(layout).as_deref()), (split, subject), "{path}");
        }
    }
}
