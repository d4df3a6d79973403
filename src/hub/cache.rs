//! The cache that is shared with the hub's official client, as that client lays it out.
//!
//! ```text
//! models--owner--name/blobs/DIGEST              contents, by SHA-256 or git id
//!                     snapshots/COMMIT/PATH     links to them
//!                     refs/REVISION             the commit of a branch or tag
//!                     trees/COMMIT.json         the files of a commit
//!                     .no_exist/COMMIT/PATH     what was asked for and is not there
//! .locks/models--owner--name/DIGEST.lock        held while a content is fetched
//! ```
//!
//! The folders are named by the crate hf-hub. Source for the rest: huggingface_hub 2.4,
//! file_download.py and _tree_cache.py; the peers hold it to that client both ways.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};
use serde_json::{Map, Value, json};

use super::environment::{expanded, home, variable};
use super::hub::{Kind, RemoteFile};
use super::transfer::place;
use mmx_converters::{Error, Result, file};

/// The folder of all repositories.
///
/// # Errors
/// Neither a variable nor a user's folder says where it is.
pub(super) fn folder() -> Result<PathBuf> {
    let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    let folder = named.map(|path| expanded(&path));
    folder.or_else(|| Some(home()?.join("hub"))).ok_or_else(|| {
        Error::failed(
            "HF_HOME or HOME: expected a folder for copies from the hub, found neither set",
        )
    })
}

/// One repository's part of the cache.
pub(super) struct Place {
    cache: Cache,
    repo: Repo,
}

/// Held while a content is fetched; let go when it is dropped.
pub(super) struct Lock {
    _file: fs_err::File,
}

impl Place {
    /// The place of a repository in the environment's cache.
    ///
    /// # Errors
    /// See [`folder`].
    pub(super) fn of(kind: Kind, repo: &str, revision: &str) -> Result<Self> {
        let kind = match kind {
            Kind::Model => RepoType::Model,
            Kind::Dataset => RepoType::Dataset,
        };
        let repo = Repo::with_revision(repo.to_owned(), kind, revision.to_owned());
        Ok(Self { cache: Cache::new(folder()?), repo })
    }

    fn root(&self) -> PathBuf {
        self.cache.path().join(self.repo.folder_name())
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.repo(self.repo.clone()).pointer_path(commit)
    }

    /// The place of a content.
    pub(super) fn blob(&self, digest: &str) -> PathBuf {
        self.root().join("blobs").join(digest)
    }

    /// The commit that the revision stood for when it was last looked up, if its files are here.
    pub(super) fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => {
                let text = fs_err::read_to_string(self.root().join("refs").join(revision)).ok()?;
                Some(text.trim().to_owned()).filter(|commit| is_commit(commit))?
            }
        };
        self.snapshot(&commit).is_dir().then_some(commit)
    }

    /// Notes the commit of the revision.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn set_commit(&self, commit: &str) -> Result<()> {
        let path = self.root().join("refs").join(self.repo.revision());
        if is_commit(self.repo.revision())
            || fs_err::read_to_string(&path).is_ok_and(|text| text == commit)
        {
            return Ok(());
        }
        written(&path, commit.as_bytes())
    }

    /// The files of a commit, as they were listed once.
    pub(super) fn tree(&self, commit: &str) -> Option<Vec<RemoteFile>> {
        let path = self.root().join("trees").join(format!("{commit}.json"));
        let value: Value = serde_json::from_slice(&fs_err::read(path).ok()?).ok()?;
        if value["format_version"] != 1 {
            return None;
        }
        let files = value["files"].as_object()?.iter().map(|(path, file)| {
            Some(RemoteFile {
                path: path.clone(),
                bytes: file["lfs_size"].as_u64().or(file["size"].as_u64())?,
                git_id: file["blob_id"].as_str()?.to_owned(),
                sha256: file["lfs_sha256"].as_str().map(str::to_owned),
            })
        });
        let mut files = files.collect::<Option<Vec<_>>>()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Some(files)
    }

    /// Keeps the list of a commit's files, which never changes.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn set_tree(&self, commit: &str, files: &[RemoteFile]) -> Result<()> {
        let files: Map<String, Value> = files
            .iter()
            .map(|file| {
                let mut entry = json!({"size": file.bytes, "blob_id": file.git_id});
                if let Some(digest) = &file.sha256 {
                    entry["lfs_sha256"] = json!(digest);
                    entry["lfs_size"] = json!(file.bytes);
                }
                (file.path.clone(), entry)
            })
            .collect();
        let text = json!({"format_version": 1, "files": files}).to_string();
        written(&self.root().join("trees").join(format!("{commit}.json")), text.as_bytes())
    }

    /// Notes that a file was asked for which the commit does not have. Nobody needs to know where
    /// this fails.
    pub(super) fn set_missing(&self, commit: &str, path: &str) {
        if let Ok(path) = place(&self.root().join(".no_exist").join(commit), path) {
            let _ = written(&path, b"");
        }
    }

    /// Waits until no other process fetches a content.
    ///
    /// # Errors
    /// The lock's file cannot be made.
    pub(super) fn lock(&self, digest: &str) -> Result<Lock> {
        let locks = self.cache.path().join(".locks").join(self.repo.folder_name());
        locked(&locks.join(format!("{digest}.lock")))
    }

    /// Puts a content in its place in a commit's folder: a link where there can be one, else the
    /// content itself (as the official client does where the system refuses links).
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn link(&self, commit: &str, path: &str, digest: &str) -> Result<PathBuf> {
        let to = place(&self.snapshot(commit), path)?;
        let folder = to.parent().unwrap_or(Path::new("."));
        fs_err::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        // from snapshots/COMMIT, and from each folder below it
        let up = 2 + path.matches('/').count();
        let from: PathBuf = std::iter::repeat_n("..", up).collect();
        let from = from.join("blobs").join(digest);
        match symlink(&from, &to) {
            Ok(()) => Ok(to),
            Err(_) if to.exists() => Ok(to), // another process was there first
            Err(_) => {
                let _ = fs_err::remove_file(&to); // a link that leads nowhere
                if symlink(&from, &to).is_err() {
                    let blob = self.blob(digest);
                    fs_err::rename(&blob, &to).map_err(|e| Error::io(&to, e))?;
                }
                Ok(to)
            }
        }
    }
}

/// True for a commit's full id.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Waits until no other process holds the lock of this file, which stays.
///
/// # Errors
/// The file cannot be made.
pub(super) fn locked(path: &Path) -> Result<Lock> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut open = fs_err::OpenOptions::new();
    let file = open.create(true).write(true).truncate(false).open(path);
    let file = file.map_err(|e| Error::io(path, e))?;
    // a file system without locks: contents are checked and renamed into place all the same
    let _ = file.file().lock();
    Ok(Lock { _file: file })
}

/// Writes a small file whole, and its folders.
pub(super) fn written(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    file::write_bytes(path, bytes)
}

#[cfg(unix)]
fn symlink(from: &Path, to: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(from, to)
}

#[cfg(windows)]
fn symlink(from: &Path, to: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_told_from_branches() {
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567"));
        assert!(!is_commit("main") && !is_commit("0123456789ABCDEF0123456789ABCDEF01234567"));
    }
}
