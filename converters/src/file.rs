//! Files in and out: bytes by memory map, and files that appear whole or not at all.

#![expect(unsafe_code, reason = "a memory map: see the SAFETY comments at the two calls")]

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

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
        // SAFETY: the map is read only and private to this process. Whoever truncates or rewrites
        // the file in place meanwhile breaks it, as with every program that maps its weights; mmx
        // itself never does: it writes a new file and renames it (`write_whole`), which leaves a
        // map intact.
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

    /// Unmaps the pages that were read, which are read again when they are needed: a map of which
    /// much was read no longer counts as memory of this process. Does nothing for bytes in memory.
    pub fn give_back(&self) {
        #[cfg(unix)]
        if let Inner::Mapped(map) = &self.0 {
            // SAFETY: the map is read only, of a file, and never written through: every page that
            // is dropped is read from the file again, with the bytes it had.
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
    let message = format!("expected the file itself, found a Git LFS pointer{of}");
    Err(Error::format(path, message).with_hint("fetch the real file with `git lfs pull`"))
}

/// Writes a file so that it appears whole or not at all: into a temporary file beside it, flushed,
/// synced and renamed. A file that was there stays as it was until then, and if `fill` fails; of a
/// symlink only the link is replaced. A device or a pipe is written to as it is.
///
/// # Errors
/// The folder or file cannot be written, or `fill` failed.
pub fn write_whole(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let io = |e| Error::io(path, e);
    if let Ok(there) = fs_err::metadata(path)
        && !there.is_file()
    {
        if there.is_dir() {
            return Err(Error::format(path, "expected the place of a file, found a folder"));
        }
        // /dev/null, /dev/stdout: a rename would put a file in the place of the device
        let device = fs_err::OpenOptions::new().write(true).open(path).map_err(io)?;
        let mut out = BufWriter::with_capacity(1 << 20, device);
        fill(&mut out)?;
        return out.flush().map_err(io);
    }
    let temporary = temporary_file(folder_of(path))?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut out)?;
    out.flush().map_err(io)?;
    drop(out);
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Beginning and end, around a random part, of the name of a file that is being written:
/// `.mmx-a1B2c3.part`.
const PART: (&str, &str) = (".mmx-", ".part");
/// Characters of the random part.
const RANDOM: usize = 6;

/// True for the name of a temporary file or folder made here. A download's, which is gone on with,
/// is longer.
fn is_part(name: &str) -> bool {
    let random = name.strip_prefix(PART.0).and_then(|rest| rest.strip_suffix(PART.1));
    random.is_some_and(|r| r.len() == RANDOM && r.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// A builder of names as [`is_part`] knows them, with the permissions that any program's new file
/// or folder gets: the umask takes away from `mode`.
fn parts(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PART.0).suffix(PART.1).rand_bytes(RANDOM);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// A file for what is being written in a folder, gone again if it is dropped. A lock tells that its
/// process lives; what killed processes left there is removed first.
///
/// # Errors
/// The folder cannot be written.
pub fn temporary_file(folder: &Path) -> Result<tempfile::NamedTempFile> {
    remove_abandoned(folder);
    loop {
        let file = parts(0o666).tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        // where files cannot be locked, nobody removes what others left
        let locked = file.as_file().lock();
        // another process may have found it before it was locked, and removed it
        if locked.is_err() || file.path().exists() {
            return Ok(file);
        }
    }
}

/// A folder for what is being written in a folder, gone again if it is dropped, as
/// [`temporary_file`].
#[derive(Debug)]
pub struct TemporaryFolder {
    // dropped, and so removed, before the lock is let go of
    dir: tempfile::TempDir,
    lock: Option<fs_err::File>,
}

impl TemporaryFolder {
    /// Makes a folder in `parent`.
    ///
    /// # Errors
    /// The parent cannot be written.
    pub fn new(parent: &Path) -> Result<Self> {
        remove_abandoned(parent);
        loop {
            let dir = parts(0o777).tempdir_in(parent).map_err(|e| Error::io(parent, e))?;
            // not every system opens folders; where it does not, nobody removes what others left
            let lock = fs_err::File::open(dir.path()).ok().filter(|f| f.file().lock().is_ok());
            if lock.is_none() || dir.path().exists() {
                return Ok(Self { dir, lock });
            }
        }
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Renames the folder to where it stays.
    ///
    /// # Errors
    /// The system's refusal; the folder is removed then.
    pub fn persist(self, path: &Path) -> Result<()> {
        fs_err::rename(self.dir.path(), path).map_err(|e| Error::io(path, e))?;
        let _ = self.dir.keep(); // there is nothing under the old name any more
        drop(self.lock);
        Ok(())
    }
}

/// Removes what processes that live no longer left half-written in a folder. Nothing is said where
/// that does not work: the next one tries again.
fn remove_abandoned(folder: &Path) {
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().to_str().is_some_and(is_part)) {
        let Ok(kind) = entry.file_type() else { continue };
        if !kind.is_file() && !kind.is_dir() {
            continue; // not made here
        }
        let path = entry.path();
        let Ok(file) = fs_err::File::open(&path) else { continue };
        if file.file().try_lock().is_ok() {
            let _ = match kind.is_dir() {
                true => fs_err::remove_dir_all(&path),
                false => fs_err::remove_file(&path),
            };
        }
    }
}

/// True if two paths lead to one file or folder, however they are spelled: by way of a symlink, or
/// as hard links where the system numbers its files (Unix).
pub fn is_same(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| fs_err::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        id(a).is_some_and(|a| Some(a) == id(b))
    }
    #[cfg(not(unix))]
    {
        let full = |path: &Path| fs_err::canonicalize(path).ok();
        full(a).is_some_and(|a| Some(a) == full(b))
    }
}

/// Refuses to write `output` where it is one of `inputs`, or one of the files that a model is read
/// from in a folder among them. Called before anything is written.
///
/// # Errors
/// [`Error::OwnInput`].
pub fn refuse_input<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    /// Endings of the files that a folder's model, adapters or tokenizer are read from.
    const READ: [&str; 7] = ["json", "jsonl", "jinja", "safetensors", "bin", "pth", "pt"];
    // a device is no file that could be lost
    let meta = fs_err::metadata(output);
    if !meta.is_ok_and(|meta| meta.is_file() || meta.is_dir()) {
        return Ok(());
    }
    for input in inputs {
        let read = |path: &PathBuf| {
            path.extension().and_then(|e| e.to_str()).is_some_and(|e| READ.contains(&e))
        };
        let inside = fs_err::read_dir(input).into_iter().flatten().flatten().map(|e| e.path());
        let mut all = std::iter::once(input.to_owned()).chain(inside.filter(read));
        if let Some(input) = all.find(|path| is_same(path, output)) {
            return Err(Error::OwnInput { output: output.to_owned(), input });
        }
    }
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
    fn one_file_is_the_same_by_every_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write_bytes(&at("a"), b"a").unwrap();
        write_bytes(&at("b"), b"a").unwrap();
        fs_err::create_dir(at("f")).unwrap();
        assert!(is_same(&at("a"), &at("f/../a")) && is_same(&at("f"), &at("f/.")));
        assert!(!is_same(&at("a"), &at("b")) && !is_same(&at("none"), &at("none")));
        #[cfg(unix)]
        {
            fs_err::hard_link(at("a"), at("hard")).unwrap();
            fs_err::os::unix::fs::symlink(at("a"), at("soft")).unwrap();
            fs_err::os::unix::fs::symlink(at("none"), at("dangling")).unwrap();
            assert!(is_same(&at("a"), &at("hard")) && is_same(&at("soft"), &at("a")));
            assert!(!is_same(&at("dangling"), &at("dangling")));
        }
        write_bytes(&at("f/config.json"), b"{}").unwrap();
        write_bytes(&at("f/notes.txt"), b"").unwrap();
        let folder = at("f");
        let error = refuse_input(&at("f/config.json"), [folder.as_path()]).unwrap_err().to_string();
        assert!(error.matches("config.json").count() == 2, "{error}");
        refuse_input(&at("f/notes.txt"), [folder.as_path()]).unwrap();
        refuse_input(&at("none"), [folder.as_path(), Path::new("none")]).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let living = temporary_file(dir.path()).unwrap();
        let folder = TemporaryFolder::new(dir.path()).unwrap();
        fs_err::write(at(".mmx-killed.part"), b"half").unwrap();
        fs_err::create_dir(at(".mmx-kill3d.part")).unwrap();
        fs_err::write(at(".mmx-kill3d.part/config.json"), b"{}").unwrap();
        // a download's, which the next one goes on with, and files of others
        let others = [".mmx-0123456789abcdef.part", ".mmx-k.part", "mmx-killed.part", "a.part"];
        others.iter().for_each(|name| fs_err::write(at(name), b"half").unwrap());
        write_bytes(&at("a"), b"new").unwrap();
        assert!(living.path().exists() && folder.path().exists());
        assert!(!at(".mmx-killed.part").exists());
        assert!(cfg!(not(unix)) || !at(".mmx-kill3d.part").exists());
        assert!(others.iter().all(|name| at(name).exists()));
        folder.persist(&at("there")).unwrap();
        drop(living);
        assert!(at("there").is_dir());
        let parts = fs_err::read_dir(dir.path()).unwrap().flatten();
        assert_eq!(parts.filter(|e| e.file_name().to_str().is_some_and(is_part)).count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_written_to_and_stays_one() {
        use std::os::unix::fs::FileTypeExt;
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("null");
        fs_err::os::unix::fs::symlink("/dev/null", &link).unwrap();
        write_bytes(&link, b"gone").unwrap();
        assert!(fs_err::metadata(&link).unwrap().file_type().is_char_device());
        let error = write_bytes(dir.path(), b"x").unwrap_err().to_string();
        assert!(error.contains("expected the place of a file, found a folder"), "{error}");
    }

    #[test]
    fn names_a_git_lfs_pointer_and_the_real_size() {
        let files =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/cases/files/st-lfs-pointer");
        for name in ["model.gguf", "model.safetensors", "model.pth"] {
            let error = Bytes::map(&Path::new(files).join(name)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("Git LFS pointer") && text.contains("52193280 bytes"), "{text}");
            assert!(text.contains(name) && error.hint().is_some());
        }
    }
}
