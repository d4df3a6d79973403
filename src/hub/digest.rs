//! Digests of files, as hubs and Ollama name contents.

use std::path::Path;

use mmx_converters::digest;
use mmx_converters::{Error, Result};
use sha1::{Digest, Sha1};

/// A file's SHA-256 in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    digest::of_file(path).map_err(|e| Error::io(path, e))
}

/// A file's id in git: SHA-1 over its length and bytes.
pub(crate) fn git_id(path: &Path) -> Result<String> {
    let io = |e| Error::io(path, e);
    let size = fs_err::metadata(path).map_err(io)?.len();
    let mut hash = Sha1::new();
    hash.update(format!("blob {size}\0"));
    digest::read_through(path, |piece| hash.update(piece)).map_err(io)?;
    Ok(digest::hexadecimal(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_git_and_sha256sum() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs_err::write(file.path(), "hello\n").expect("written");
        // git hash-object, sha256sum
        assert_eq!(
            git_id(file.path()).expect("readable"),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
        assert_eq!(
            sha256(file.path()).expect("readable"),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
    }
}
