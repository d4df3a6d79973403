//! The download of a repository to a folder: each file is written beside its place first, gone on
//! with where it was cut off, checked against the digest the hub reports, then renamed.

use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use mmx_converters::manifest::{self, Manifest};
use serde::Serialize;

use super::digest::{git_id, sha256};
use super::http::{escaped, expect_ok};
use super::hub::{Hub, RemoteFile};
use mmx_converters::{Error, Result};

/// A request for a download.
#[derive(Clone, Debug)]
pub struct Request {
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
    fetch_all(hub, request, Some(&mut manifest), progress)
}

/// Downloads a repository; without a manifest the folder is mmx's alone.
fn fetch_all(
    hub: &Hub,
    request: &Request,
    mut manifest: Option<&mut Manifest>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report> {
    super::hub::check_name(&request.repo)?;
    super::hub::check_revision(&request.revision)?;
    let (repo, revision) = (&request.repo, &request.revision);
    let commit = hub.commit_of(repo, revision)?.ok_or_else(|| {
        Error::failed_with_hint(
            format!(
                "{repo}: expected a repository with revision {revision} on {}, found none",
                hub.endpoint()
            ),
            "for a private one HF_TOKEN must be set; HF_ENDPOINT names another hub",
        )
    })?;
    let mut files = hub.files(repo, &commit)?;
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
        if let Some(manifest) = manifest.as_deref_mut()
            && !same
            && !manifest.is_free(path)?
        {
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
            false => fetch(hub, request, &commit, file, &path, &mut |here| {
                progress(before + here, all);
            })?,
        };
        if let Some(manifest) = manifest.as_deref_mut()
            && fetched > 0
        {
            manifest.add(&path)?;
            manifest.save()?;
        }
        before += file.bytes;
        progress(before, all);
        done.push(Downloaded { path, bytes: file.bytes, fetched });
    }
    Ok(Report { repo: repo.clone(), commit, out: request.out.clone(), files: done })
}

/// The folder of private copies (`MMX_CACHE`, else `~/.cache/mmx`) with a repository's current
/// files, fetched as far as they are not there. `repo` is `owner/name` or `owner/name@revision`.
///
/// # Errors
/// As [`download`]; no place for the copies.
pub fn cached(repo: &str) -> Result<PathBuf> {
    let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
    super::hub::check_name(repo)?;
    super::hub::check_revision(revision)?;
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = variable("MMX_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache/mmx")));
    let cache = cache.ok_or_else(|| {
        Error::failed(
            "MMX_CACHE or HOME: expected a folder for copies from the hub, found neither set",
        )
    })?;
    let hub = Hub::from_environment();
    let plain = |text: &str| escaped(text, false).replace('%', "_");
    // hubs may have different repositories of one name: each hub has a folder
    let place = format!("{}--{}", plain(hub.endpoint()), plain(repo));
    let out = cache.join("hub").join(place).join(plain(revision));
    let request = Request {
        repo: repo.to_owned(),
        revision: revision.to_owned(),
        out: out.clone(),
        only: Vec::new(),
    };
    fetch_all(&hub, &request, None, &mut |_, _| ())?;
    Ok(out)
}

/// The place of a file in the folder.
fn place(out: &Path, name: &str) -> Result<PathBuf> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match inside && !name.is_empty() && !name.contains('\\') {
        true => Ok(out.join(name)),
        false => {
            Err(Error::failed(format!("expected paths inside the repository, found {name:?}")))
        }
    }
}

/// Compares a file with what the hub reports; the difference in words, or nothing.
fn differs(expected: &RemoteFile, path: &Path) -> Result<Option<String>> {
    let bytes = fs_err::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes != expected.bytes {
        return Ok(Some(format!("expected {} bytes, found {bytes}", expected.bytes)));
    }
    let (kind, expected, found) = match &expected.sha256 {
        Some(digest) => ("SHA-256", digest, sha256(path)?),
        None => ("git id", &expected.git_id, git_id(path)?),
    };
    Ok((*expected != found).then(|| format!("expected {kind} {expected}, found {found}")))
}

/// Fetches one file, or the rest of it. Returns the bytes that came over the wire.
fn fetch(
    hub: &Hub,
    request: &Request,
    commit: &str,
    file: &RemoteFile,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    // the name says what it is a part of: another version's part is not gone on with
    let id = file.sha256.as_ref().unwrap_or(&file.git_id);
    let name =
        format!(".mmx-{}.part", id.chars().filter(char::is_ascii_alphanumeric).collect::<String>());
    let part = path.with_file_name(name);
    let here = fs_err::metadata(&part).map_or(0, |meta| meta.len());
    let mut here = if here > file.bytes { 0 } else { here };
    let mut fetched = 0;
    if here < file.bytes || here == 0 {
        let address = format!(
            "/{}/resolve/{}/{}",
            escaped(&request.repo, true),
            escaped(commit, false),
            escaped(&file.path, true)
        );
        let range = format!("bytes={here}-");
        let headers = [("Range", range.as_str()), ("Accept-Encoding", "identity")];
        let answer =
            hub.client.get("GET", &address, if here > 0 { &headers } else { &headers[1..] })?;
        let answer = expect_ok(&format!("{}: fetching it", file.path), answer)?;
        let goes_on = answer.status().as_u16() == 206;
        if !goes_on {
            here = 0; // from the beginning after all
        }
        let mut open = fs_err::OpenOptions::new();
        open.create(true).write(true).append(goes_on).truncate(!goes_on);
        let mut out = open.open(&part).map_err(|e| Error::io(&part, e))?;
        let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let read = body.read(&mut buffer).map_err(|e| {
                Error::failed_with_hint(
                    format!(
                        "{}: the connection ended after {here} of {} bytes: {e}",
                        file.path, file.bytes
                    ),
                    "run it again: it goes on from there",
                )
            })?;
            if read == 0 {
                break;
            }
            out.write_all(&buffer[..read]).map_err(|e| Error::io(&part, e))?;
            here += read as u64;
            fetched += read as u64;
            progress(here);
        }
        out.sync_all().map_err(|e| Error::io(&part, e))?;
    }
    if here < file.bytes {
        return Err(Error::failed_with_hint(
            format!("{}: the connection ended after {here} of {} bytes", file.path, file.bytes),
            "run it again: it goes on from there",
        ));
    }
    if let Some(fault) = differs(file, &part)? {
        fs_err::remove_file(&part).map_err(|e| Error::io(&part, e))?;
        return Err(Error::failed(format!("{}: {fault}: it is thrown away", file.path)));
    }
    fs_err::rename(&part, path).map_err(|e| Error::io(path, e))?;
    Ok(fetched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_out_of_the_folder_are_refused() {
        let out = Path::new("out");
        assert_eq!(place(out, "a/b.txt").expect("inside"), out.join("a/b.txt"));
        for bad in ["../x", "/etc/passwd", "a/../../x", "", ".", "a\\b"] {
            assert!(place(out, bad).is_err(), "{bad}");
        }
    }
}
