//! One file of a server to its place: written beside it first, gone on with where it was cut off,
//! checked against its digest, then renamed.

use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use super::digest::{git_id, sha256};
use super::http::{Client, expect_ok};
use super::hub::RemoteFile;
use mmx_converters::{Error, Result};

/// The place of a repository's file in a folder.
///
/// # Errors
/// A name that leads out of the folder.
pub(super) fn place(out: &Path, name: &str) -> Result<PathBuf> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match inside && !name.is_empty() && !name.contains('\\') {
        true => Ok(out.join(name)),
        false => {
            Err(Error::failed(format!("expected paths inside the repository, found {name:?}")))
        }
    }
}

/// Compares a file with what the server reports; the difference in words, or nothing.
///
/// # Errors
/// The file cannot be read.
pub(super) fn differs(expected: &RemoteFile, path: &Path) -> Result<Option<String>> {
    let bytes = fs_err::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if bytes != expected.bytes {
        return Ok(Some(format!("expected {} bytes, found {bytes}", expected.bytes)));
    }
    let (kind, expected, found) = match (&expected.sha256, expected.git_id.as_str()) {
        (Some(digest), _) => ("SHA-256", digest.as_str(), sha256(path)?),
        // a server that has no digest of a file
        (None, "") => return Ok(None),
        (None, id) => ("git id", id, git_id(path)?),
    };
    Ok((expected != found).then(|| format!("expected {kind} {expected}, found {found}")))
}

/// Fetches the file at an address of the server, or the rest of what `part` holds of it. Returns
/// the bytes that came over the wire. `progress` hears how many bytes are here.
///
/// # Errors
/// The server's refusal, a connection that ends (`part` stays), a file that is not what the server
/// reports (it is thrown away).
pub(super) fn fetch(
    client: &Client,
    address: &str,
    file: &RemoteFile,
    part: &Path,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    let here = fs_err::metadata(part).map_or(0, |meta| meta.len());
    let mut here = if here > file.bytes { 0 } else { here };
    let mut fetched = 0;
    let ended = |here: u64, why: String| {
        Error::failed_with_hint(
            format!(
                "{}: the connection ended after {here} of {} bytes{why}",
                file.path, file.bytes
            ),
            "run it again: it goes on from there",
        )
    };
    if here < file.bytes || here == 0 {
        let range = format!("bytes={here}-");
        let headers = [("Range", range.as_str()), ("Accept-Encoding", "identity")];
        let answer = client.get("GET", address, if here > 0 { &headers } else { &headers[1..] })?;
        let answer = expect_ok(&format!("{}: fetching it", file.path), answer)?;
        let goes_on = answer.status().as_u16() == 206;
        if !goes_on {
            here = 0; // from the beginning after all
        }
        let mut open = fs_err::OpenOptions::new();
        open.create(true).write(true).append(goes_on).truncate(!goes_on);
        let mut out = open.open(part).map_err(|e| Error::io(part, e))?;
        let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let read = body.read(&mut buffer).map_err(|e| ended(here, format!(": {e}")))?;
            if read == 0 {
                break;
            }
            out.write_all(&buffer[..read]).map_err(|e| Error::io(part, e))?;
            here += read as u64;
            fetched += read as u64;
            progress(here);
        }
        out.sync_all().map_err(|e| Error::io(part, e))?;
    }
    if here < file.bytes {
        return Err(ended(here, String::new()));
    }
    if let Some(fault) = differs(file, part)? {
        fs_err::remove_file(part).map_err(|e| Error::io(part, e))?;
        return Err(Error::failed(format!("{}: {fault}: it is thrown away", file.path)));
    }
    fs_err::rename(part, path).map_err(|e| Error::io(path, e))?;
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
