//! A repository's files on this machine: fetched as far as they are not there, into the cache that
//! is shared with the hub's official client, or taken from it where the hub is out of reach.
//!
//! The transfers are mmx's own. The hub's Rust client could not take their place: its 1.0 does not
//! go on with a download that was cut off (hf-hub issue 196), checks no digest, sends large files
//! inline where a hub has no Xet storage, and brings 125 crates; 0.5, from which the names of the
//! cache's folders come, does the first two no better.

use std::path::{Path, PathBuf};

use mmx_converters::progress::{Listener, Progress};
use mmx_converters::{Error, Result};

use super::cache::{self, Place};
use super::checked::{differs_now, own_cache, remember};
use super::environment::is_offline;
use super::http::escaped;
use super::hub::{Hub, Kind, RemoteFile};
use super::transfer::{fetch, place};

/// The files of a repository that are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The files that are needed, as places in the list.
    pub files: Vec<usize>,
    /// What is opened: a file's path, or a folder's; empty for the repository's own folder.
    pub opened: String,
    /// A sentence on the choice, where another one could have been made: without the network one
    /// that is here is taken.
    pub word: Option<String>,
}

/// A request for a repository's files.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What the repository holds.
    pub kind: Kind,
    /// `owner/name`.
    pub repo: &'a str,
    /// A branch, tag or commit.
    pub revision: &'a str,
    /// The file that was named, if one was.
    pub file: Option<&'a str>,
}

/// Chooses among a repository's files, sorted by path.
pub type Choose<'a> = &'a dyn Fn(&[RemoteFile]) -> Result<Choice>;

/// A repository, or a part of it, on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit.
    pub commit: String,
    /// The folder of the repository's files, which are not to be written to.
    pub folder: PathBuf,
    /// What is opened.
    pub opened: PathBuf,
    /// The files that were chosen.
    pub files: Vec<PathBuf>,
}

/// Fetches the chosen files of a repository, as far as they are not here. Without the network
/// (`HF_HUB_OFFLINE` says so, or the hub does not answer) the files that are here are taken, and
/// `listener` hears of it. What was verified once is not read through again.
///
/// # Errors
/// Names that are none, a repository or revision that is not there, the hub's refusal, a choice
/// that cannot be made, a file that is not what the hub reports, no network and no copy.
pub fn snapshot(
    hub: &Hub,
    request: &Request<'_>,
    choose: Choose<'_>,
    listener: &dyn Listener,
) -> Result<Snapshot> {
    let Request { kind, repo, revision, file } = *request;
    super::hub::check_name(repo)?;
    super::hub::check_revision(revision)?;
    let copies = Place::of(kind, repo, revision)?;
    let work = Work { hub, kind, repo, revision, file, copies, choose, listener };
    let there = work.copies.commit();
    if is_offline() {
        return work.copied(there.as_deref()).map_err(|why| {
            why.with_hint("HF_HUB_OFFLINE is set: without it the hub is asked for what is missing")
        });
    }
    if let Some(commit) = there.as_deref().filter(|_| cache::is_commit(revision))
        && let Ok(whole) = work.copied(Some(commit))
    {
        return Ok(whole); // a commit never changes
    }
    let commit = match there.is_some() || work.earlier().is_some() {
        false => hub.commit_of(kind, repo, revision)?,
        true => match hub.commit_soon(kind, repo, revision)? {
            Ok(commit) => commit,
            Err(why) => {
                let copy = work.copied(there.as_deref()).map_err(|_| why)?;
                let commit = copy.commit.get(..12).unwrap_or(&copy.commit);
                listener.say(&format!(
                    "{repo}: {} does not answer: using the copy of {commit} that is here",
                    hub.endpoint()
                ));
                return Ok(copy);
            }
        },
    };
    let commit = commit.ok_or_else(|| hub.not_there(repo, revision))?;
    work.fetched(&commit)
}

/// A request under way.
struct Work<'a> {
    hub: &'a Hub,
    kind: Kind,
    repo: &'a str,
    revision: &'a str,
    file: Option<&'a str>,
    copies: Place,
    choose: Choose<'a>,
    listener: &'a dyn Listener,
}

impl Work<'_> {
    fn fetched(&self, commit: &str) -> Result<Snapshot> {
        let files = match self.copies.tree(commit) {
            Some(files) => files,
            None => {
                let files = self.hub.files(self.kind, self.repo, commit)?;
                // a cache that cannot be written serves what is in it all the same
                let _ = self.copies.set_tree(commit, &files);
                files
            }
        };
        if let Some(name) = self.file.filter(|name| !is_among(name, &files)) {
            self.copies.set_missing(commit, name);
        }
        let choice = (self.choose)(&files)?;
        let chosen: Vec<&RemoteFile> = choice.files.iter().map(|&i| &files[i]).collect();
        let total = chosen.iter().map(|file| file.bytes).sum();
        let (mut before, mut fetched) = (0, false);
        let mut paths = Vec::new();
        for file in chosen {
            let mut progress = |here: u64| {
                fetched = true;
                let done = before + here;
                self.listener.progress(Progress::Bytes { doing: "fetching", done, total });
            };
            paths.push(self.bring(commit, file, &mut progress)?);
            before += file.bytes;
        }
        if fetched {
            self.listener.progress(Progress::Finished);
        }
        let _ = self.copies.set_commit(commit);
        self.done(commit, self.copies.snapshot(commit), &choice, paths)
    }

    /// One file to its place, if it is not there already.
    fn bring(
        &self,
        commit: &str,
        file: &RemoteFile,
        progress: &mut dyn FnMut(u64),
    ) -> Result<PathBuf> {
        let digest = file.digest();
        let (path, blob) =
            (place(&self.copies.snapshot(commit), &file.path)?, self.copies.blob(&digest));
        if path.exists() && differs_now(file, &path)?.is_none() {
            return Ok(path);
        }
        let _lock = self.copies.lock(&digest)?;
        if path.exists() && differs_now(file, &path)?.is_some() {
            fs_err::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
        if blob.exists() && differs_now(file, &blob)?.is_some() {
            fs_err::remove_file(&blob).map_err(|e| Error::io(&blob, e))?;
        }
        if !blob.exists() && !path.exists() {
            let folder = blob.parent().unwrap_or(Path::new("."));
            fs_err::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
            if !self.taken_over(file, &blob)? {
                let address = self.hub.address_of(self.kind, self.repo, commit, &file.path);
                let part = blob.with_file_name(format!(".mmx-{digest}.part"));
                fetch(&self.hub.client, &address, file, &part, &blob, progress)?;
            }
            remember(&blob, file);
        }
        self.copies.link(commit, &file.path, &digest)
    }

    /// The files of a commit that are here, chosen among.
    fn copied(&self, commit: Option<&str>) -> Result<Snapshot> {
        let Some(commit) = commit else {
            return self.kept_earlier();
        };
        let folder = self.copies.snapshot(commit);
        let here = |file: &RemoteFile| place(&folder, &file.path).is_ok_and(|path| path.exists());
        let tree = self.copies.tree(commit);
        let mut found = None;
        if let Some(tree) = &tree {
            let choice = (self.choose)(tree)?;
            let missing = choice.files.iter().map(|&i| &tree[i]).find(|file| !here(file));
            match missing {
                None => found = Some((choice, tree.clone())),
                Some(file) if choice.word.is_none() => {
                    return Err(Error::failed(format!(
                        "{}: expected a copy of {} of commit {commit}, found none",
                        self.repo, file.path
                    )));
                }
                Some(_) => (),
            }
        }
        let (choice, files) = match found {
            Some(found) => found,
            None => {
                let files = walk(&folder)?;
                ((self.choose)(&files)?, files)
            }
        };
        let mut paths = Vec::new();
        for &i in &choice.files {
            let path = place(&folder, &files[i].path)?;
            if let Some(fault) = differs_now(&files[i], &path)? {
                return Err(Error::format(&path, format!("the copy is damaged: {fault}")));
            }
            paths.push(path);
        }
        self.done(commit, folder, &choice, paths)
    }

    fn done(
        &self,
        commit: &str,
        folder: PathBuf,
        choice: &Choice,
        files: Vec<PathBuf>,
    ) -> Result<Snapshot> {
        if let Some(word) = &choice.word {
            self.listener.say(&format!("{}: {word}", self.repo));
        }
        let opened = match choice.opened.as_str() {
            "" => folder.clone(),
            inside => place(&folder, inside)?,
        };
        Ok(Snapshot { commit: commit.to_owned(), folder, opened, files })
    }

    /// The folder in which mmx kept its own copies of this revision up to 0.1.0.
    fn earlier(&self) -> Option<PathBuf> {
        let plain = |text: &str| escaped(text, false).replace('%', "_");
        let folder = format!("{}--{}", plain(self.hub.endpoint()), plain(self.repo));
        let folder = own_cache()?.join("hub").join(folder).join(plain(self.revision));
        (self.kind == Kind::Model && folder.is_dir()).then_some(folder)
    }

    /// Takes a content over from the earlier copies, if it is among them.
    fn taken_over(&self, file: &RemoteFile, blob: &Path) -> Result<bool> {
        let Some(copy) = self.earlier().and_then(|folder| place(&folder, &file.path).ok()) else {
            return Ok(false);
        };
        if !copy.is_file() || differs_now(file, &copy)?.is_some() {
            return Ok(false);
        }
        // another file system: what is there stays there, and is fetched again
        Ok(fs_err::rename(&copy, blob).is_ok())
    }

    fn kept_earlier(&self) -> Result<Snapshot> {
        let Some(folder) = self.earlier() else {
            return Err(Error::failed(format!(
                "{}: expected a copy of revision {} in {}, found none",
                self.repo,
                self.revision,
                cache::folder()?.display()
            )));
        };
        let files = walk(&folder)?;
        let choice = (self.choose)(&files)?;
        let paths = choice.files.iter().map(|&i| place(&folder, &files[i].path));
        let paths = paths.collect::<Result<Vec<_>>>()?;
        self.listener.say(&format!(
            "{}: using mmx's earlier copy in {}",
            self.repo,
            folder.display()
        ));
        self.done("unknown", folder, &choice, paths)
    }
}

/// True for a file of the list, and for a folder.
fn is_among(name: &str, files: &[RemoteFile]) -> bool {
    files
        .iter()
        .any(|f| f.path.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('/')))
}

/// The files of a folder, by path; a link into the cache tells the digest of its content.
pub(super) fn walk(folder: &Path) -> Result<Vec<RemoteFile>> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(below) = folders.pop() {
        let here = folder.join(&below);
        for entry in fs_err::read_dir(&here).map_err(|e| Error::io(&here, e))? {
            let entry = entry.map_err(|e| Error::io(&here, e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{below}{name}");
            // a link that leads nowhere is a file that is not here
            let Ok(meta) = fs_err::metadata(entry.path()) else { continue };
            if meta.is_dir() {
                folders.push(format!("{path}/"));
                continue;
            }
            let target = fs_err::read_link(entry.path()).ok();
            let target = target.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
            let digest = target.unwrap_or_default();
            let is = |length: usize| {
                digest.len() == length && digest.bytes().all(|b| b.is_ascii_hexdigit())
            };
            files.push(RemoteFile {
                path,
                bytes: meta.len(),
                git_id: if is(40) { digest.to_owned() } else { String::new() },
                sha256: is(64).then(|| digest.to_owned()),
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
