//! Which files of a folder mmx wrote, and what was in them: the next export replaces those, and
//! nothing that is somebody else's or was changed since.
//!
//! `.mmx-files.json` in the folder: for each file, by its path in the folder, its size and its
//! CRC-32. No clock and no path outside is in it: the same files give the same bytes. A CRC is
//! enough to notice a change, and takes no longer than reading the file does (26M parameters in
//! float32: some 20 ms).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::file;

/// The manifest's name. Hidden, so that `mmx push` leaves it here.
pub const FILE_NAME: &str = ".mmx-files.json";
/// The version of the manifest's form.
const FORMAT: u32 = 1;

/// The mark of a file's content: its size and CRC-32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    bytes: u64,
    crc32: String,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    format: u32,
    files: BTreeMap<String, Mark>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

/// The files of one folder, and of those below it, that mmx wrote.
#[derive(Debug)]
pub struct Manifest {
    dir: PathBuf,
    files: BTreeMap<String, Mark>,
    origin: Option<String>,
    /// Files that were looked at, and whether they are as they were written: each is read once.
    seen: BTreeMap<String, bool>,
}

impl Manifest {
    /// Reads a folder's manifest. One that is not there, or that nobody here wrote, knows no files.
    ///
    /// # Errors
    /// The system refuses to read it.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        let (files, origin) = match fs_err::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<OnDisk>(&bytes) {
                Ok(disk) if disk.format == FORMAT => (disk.files, disk.origin),
                _ => Default::default(),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Default::default(),
            Err(e) => return Err(Error::io(&path, e)),
        };
        Ok(Self { dir: dir.to_owned(), files, origin, seen: BTreeMap::new() })
    }

    /// The mark of the model that an import into this folder was made of
    /// ([`Model::mark`](crate::Model::mark)).
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Takes note of the model that an import is made of.
    pub fn set_origin(&mut self, mark: String) {
        self.origin = Some(mark);
    }

    /// The name of a file of the folder; none for what lies elsewhere.
    fn name(&self, path: &Path) -> Option<String> {
        let inside = path.strip_prefix(&self.dir).ok()?;
        let parts = inside.components().map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        Some(parts.collect::<Option<Vec<_>>>()?.join("/"))
    }

    /// True for a file that mmx wrote and that is as it was then.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_own(&mut self, path: &Path) -> Result<bool> {
        let Some((name, mark)) = self.name(path).and_then(|name| {
            let mark = self.files.get(&name)?.clone();
            Some((name, mark))
        }) else {
            return Ok(false);
        };
        if let Some(own) = self.seen.get(&name) {
            return Ok(*own);
        }
        let own = match fs_err::symlink_metadata(path) {
            Ok(meta) => meta.is_file() && meta.len() == mark.bytes && self::mark(path)? == mark,
            Err(_) => false,
        };
        self.seen.insert(name, own);
        Ok(own)
    }

    /// True where a file may be written: nothing is there, or what [`Manifest::is_own`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_free(&mut self, path: &Path) -> Result<bool> {
        Ok(fs_err::symlink_metadata(path).is_err() || self.is_own(path)?)
    }

    /// Takes note of a file just written.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn add(&mut self, path: &Path) -> Result<()> {
        if let Some(name) = self.name(path) {
            self.files.insert(name.clone(), mark(path)?);
            self.seen.insert(name, true);
        }
        Ok(())
    }

    /// Writes the manifest, without the files that are gone.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn save(&mut self) -> Result<()> {
        let dir = &self.dir;
        self.files.retain(|name, _| dir.join(name).exists());
        let disk =
            OnDisk { format: FORMAT, files: self.files.clone(), origin: self.origin.clone() };
        let path = self.dir.join(FILE_NAME);
        let mut text =
            serde_json::to_string_pretty(&disk).map_err(|e| Error::format(&path, e.to_string()))?;
        text.push('\n');
        file::write_bytes(&path, text.as_bytes())
    }
}

/// Measures a file: its size and CRC-32.
fn mark(path: &Path) -> Result<Mark> {
    let io = |e| Error::io(path, e);
    let mut file = fs_err::File::open(path).map_err(io)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut hash, mut bytes) = (crc32fast::Hasher::new(), 0);
    loop {
        let read = file.read(&mut buffer).map_err(io)?;
        if read == 0 {
            return Ok(Mark { bytes, crc32: format!("{:08x}", hash.finalize()) });
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_own_until_it_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs_err::create_dir(at("hf")).unwrap();
        for name in ["a", "hf/b", "other"] {
            fs_err::write(at(name), name).unwrap();
        }
        let mut manifest = Manifest::open(dir.path()).unwrap();
        assert!(!manifest.is_free(&at("a")).unwrap() && manifest.is_free(&at("none")).unwrap());
        manifest.add(&at("a")).unwrap();
        manifest.add(&at("hf/b")).unwrap();
        manifest.save().unwrap();
        let first = fs_err::read(at(FILE_NAME)).unwrap();
        manifest.save().unwrap();
        assert_eq!(fs_err::read(at(FILE_NAME)).unwrap(), first);

        let mut manifest = Manifest::open(dir.path()).unwrap();
        assert!(manifest.is_own(&at("a")).unwrap() && manifest.is_free(&at("hf/b")).unwrap());
        assert!(!manifest.is_own(&at("other")).unwrap());
        assert!(!manifest.is_own(&dir.path().join("hf/../other")).unwrap());
        fs_err::write(at("hf/b"), "hf/c").unwrap(); // of the same length
        fs_err::remove_file(at("a")).unwrap();
        let mut manifest = Manifest::open(dir.path()).unwrap();
        assert!(!manifest.is_free(&at("hf/b")).unwrap() && manifest.is_free(&at("a")).unwrap());
        manifest.save().unwrap();
        assert!(!fs_err::read_to_string(at(FILE_NAME)).unwrap().contains("\"a\""));
    }

    #[test]
    fn a_file_of_the_users_under_the_manifests_name_knows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs_err::write(&path, "a").unwrap();
        for text in
            ["", "[]", r#"{"format": 2, "files": {"a": {"bytes": 1, "crc32": "e8b7be43"}}}"#]
        {
            fs_err::write(dir.path().join(FILE_NAME), text).unwrap();
            assert!(!Manifest::open(dir.path()).unwrap().is_free(&path).unwrap(), "{text}");
        }
    }
}
