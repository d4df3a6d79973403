//! Files in and out: bytes by memory map, and files that appear whole or not at all.

#![expect(unsafe_code, reason = "a memory map: see the SAFETY comments at the two calls")]

use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// The bytes of a file: a memory map, or bytes that were in memory already.
#[derive(Debug)]
pub struct Bytes(Inner);

#[derive(Debug)]
enum Inner {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or is a Git LFS pointer.
    pub fn map(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !meta.is_file() {
            return Err(Error::format(path, "expected a file, found a folder or device"));
        }
        // SAFETY: the map is read only and private to this process. Whoever truncates or rewrites the
        // file in place meanwhile breaks it, as with every program that maps its weights; mmx itself
        // never does: it writes a new file and renames it (`write_whole`), which leaves a map intact.
        let map = unsafe { memmap2::Mmap::map(file.file()) }.map_err(|e| Error::io(path, e))?;
        let bytes = Self(Inner::Mapped(map));
        refuse_lfs_pointer(&bytes, path)?;
        Ok(bytes)
    }

    /// Takes bytes that are in memory; `path` is for the message about Git LFS.
    ///
    /// # Errors
    /// The bytes are a Git LFS pointer.
    pub fn owned(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        refuse_lfs_pointer(&bytes, path)?;
        Ok(Self(Inner::Owned(bytes)))
    }

    /// Unmaps the pages that were read, which are read again when they are needed: a map of which much was read no
    /// longer counts as memory of this process. Does nothing for bytes in memory.
    pub fn give_back(&self) {
        #[cfg(unix)]
        if let Inner::Mapped(map) = &self.0 {
            // SAFETY: the map is read only, of a file, and never written through: every page that is dropped is
            // read from the file again, with the bytes it had.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// True for a memory map: page-aligned, and shared with the system's cache.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Inner::Mapped(_))
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Inner::Mapped(map) => map,
            Inner::Owned(bytes) => bytes,
        }
    }
}

/// Says of a Git LFS pointer what it is and how large the real file would be.
fn refuse_lfs_pointer(bytes: &[u8], path: &Path) -> Result<()> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    // a pointer is some 130 bytes of text; its last line is `size N`
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let of = size.map_or_else(String::new, |n| format!(" of a file of {n} bytes"));
    Err(Error::format(path, format!("expected the file itself, found a Git LFS pointer{of}")))
}

/// Writes a file so that it appears whole or not at all: into a temporary file beside it, flushed,
/// synced and renamed. A file that was there stays as it was until then, and if `fill` fails.
///
/// # Errors
/// The folder or file cannot be written, or `fill` failed.
pub fn write_whole(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let io = |e| Error::io(path, e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".mmx-").suffix(".part");
    #[cfg(unix)]
    {
        // what any program's new file gets: the umask takes away from this
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(folder).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut out)?;
    out.flush().map_err(io)?;
    drop(out);
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// [`write_whole`] of bytes.
///
/// # Errors
/// The folder or file cannot be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |out| out.write_all(bytes).map_err(|e| Error::io(path, e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_bytes(&path, b"old").unwrap();
        let failed = write_whole(&path, |out| {
            out.write_all(b"half").map_err(|e| Error::io(&path, e))?;
            Err(Error::format(&path, "the source failed"))
        });
        assert!(failed.is_err());
        assert_eq!(fs_err::read(&path).unwrap(), b"old");
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_a_git_lfs_pointer_and_the_real_size() {
        let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/cases/files/st-lfs-pointer");
        for name in ["model.gguf", "model.safetensors", "model.pth"] {
            let error = Bytes::map(&Path::new(files).join(name)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("Git LFS pointer") && text.contains("52193280 bytes"), "{text}");
            assert!(text.contains(name) && error.hint().is_some());
        }
    }
}
