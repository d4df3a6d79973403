//! The download of a repository to a folder of the user's: each file is written beside its place
//! first, gone on with where it was cut off, checked against the digest the hub reports, then
//! renamed.

use std::path::PathBuf;

use mmx_converters::manifest::{self, Manifest};
use serde::Serialize;

use super::hub::{Hub, Kind};
use super::transfer::{differs, fetch, place};
use mmx_converters::{Error, Result};

/// A request for a download.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the repository holds.
    pub kind: Kind,
    /// `owner/name`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// The folder written.
    pub out: PathBuf,
    /// Endings of the names of the files wanted; empty for all files.
    pub only: Vec<String>,
}

/// A file of the download.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Downloaded {
    /// Path of the file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Number of bytes that came over the wire; fewer than its size where part of it was there
    /// already.
    pub fetched: u64,
}

/// The outcome of a download.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The repository.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// The folder.
    pub out: PathBuf,
    /// The files, by path.
    pub files: Vec<Downloaded>,
}

/// Downloads a repository. `progress` hears of the bytes that are here and of all.
///
/// # Errors
/// A repository or revision that is not there, a path that would leave the folder, a file of
/// another content in its place that was not pulled or was changed since, the server's refusal, a
/// file that is not what the hub reports. What came whole stays, what came in part is gone on with
/// at the next try.
pub fn download(
    hub: &Hub,
    request: &Request,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    let mut manifest = Manifest::open(&request.out)?;
    super::hub::check_name(&request.repo)?;
    super::hub::check_revision(&request.revision)?;
    let (repo, revision) = (&request.repo, &request.revision);
    let commit = hub.commit_of(request.kind, repo, revision)?;
    let commit = commit.ok_or_else(|| hub.not_there(repo, revision))?;
    let mut files = hub.files(request.kind, repo, &commit)?;
    // the list of files that mmx wrote elsewhere says nothing of this folder
    files.retain(|file| !file.path.ends_with(manifest::FILE_NAME));
    if !request.only.is_empty() {
        files.retain(|file| request.only.iter().any(|end| file.path.ends_with(end)));
        if files.is_empty() {
            return Err(Error::failed(format!(
                "{repo}: expected files that end in {}, found none",
                request.only.join(", ")
            )));
        }
    }
    let places: Vec<PathBuf> =
        files.iter().map(|file| place(&request.out, &file.path)).collect::<Result<_>>()?;
    let mut there = Vec::new();
    for (file, path) in files.iter().zip(&places) {
        let same = path.is_file() && differs(file, path)?.is_none();
        if !same && !manifest.is_free(path)? {
            let fault = mmx_converters::Error::Foreign { path: path.clone() };
            return Err(Error::failed_with_hint(
                fault.to_string(),
                "the repository's file differs from it: move it away, or give another `out`",
            ));
        }
        there.push(same);
    }
    let all: u64 = files.iter().map(|file| file.bytes).sum();
    let mut before = 0;
    let mut done = Vec::new();
    for ((file, path), there) in files.iter().zip(places).zip(there) {
        let folder = path.parent().unwrap_or(&request.out);
        fs_err::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let fetched = match there {
            true => 0,
            false => {
                // the name says what it is a part of: another version's part is not gone on with
                let part = path.with_file_name(format!(".mmx-{}.part", file.digest()));
                let address = hub.address_of(request.kind, repo, &commit, &file.path);
                let mut report = |here| progress(before + here, all);
                fetch(&hub.client, &address, file, &part, &path, &mut report)?
            }
        };
        if fetched > 0 {
            manifest.add(&path)?;
            manifest.save()?;
        }
        before += file.bytes;
        progress(before, all);
        done.push(Downloaded { path, bytes: file.bytes, fetched });
    }
    Ok(Report { repo: repo.clone(), commit, out: request.out.clone(), files: done })
}
