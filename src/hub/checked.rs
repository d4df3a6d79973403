//! What was verified once: a file whose size and time have not changed since is not read through
//! again to know its digest.
//!
//! A small file in mmx's own cache for each one: the name is the SHA-256 of its path, the text its
//! digest, size and time of its last change.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use mmx_converters::digest::of_bytes;
use mmx_converters::{Error, Result};

use super::cache::written;
use super::environment::{user_folder, variable};
use super::hub::RemoteFile;
use super::transfer::differs;

/// mmx's own cache: `MMX_CACHE`, else `~/.cache/mmx`.
pub(super) fn own_cache() -> Option<PathBuf> {
    let named = variable("MMX_CACHE").map(PathBuf::from);
    named.or_else(|| Some(user_folder()?.join(".cache").join("mmx")))
}

/// Where it is noted of a file, and what.
fn note(path: &Path, digest: &str) -> Option<(PathBuf, String)> {
    let path = fs_err::canonicalize(path).ok()?;
    let meta = fs_err::metadata(&path).ok()?;
    let time = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let name = of_bytes(path.as_os_str().as_encoded_bytes());
    let place = own_cache()?.join("checked").join(name);
    Some((place, format!("{digest} {} {time}", meta.len())))
}

/// Notes that a file has this digest. Where it cannot be noted the file is read again.
pub(super) fn remember(path: &Path, file: &RemoteFile) {
    if let Some((place, text)) = note(path, &file.digest()) {
        let _ = written(&place, text.as_bytes());
    }
}

/// Compares a file with what the server reports, if that was not done before; the difference in
/// words, or nothing.
///
/// # Errors
/// The file cannot be read.
pub(super) fn differs_now(file: &RemoteFile, path: &Path) -> Result<Option<String>> {
    let bytes = fs_err::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes == file.bytes
        && let Some((place, text)) = note(path, &file.digest())
        && fs_err::read_to_string(place).is_ok_and(|noted| noted == text)
    {
        return Ok(None);
    }
    let fault = differs(file, path)?;
    if fault.is_none() {
        remember(path, file);
    }
    Ok(fault)
}
