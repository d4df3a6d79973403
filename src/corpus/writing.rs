//! Records to a file: JSON Lines, packed with gzip or zstd where the name ends so, or Parquet.

use std::io::Write;
use std::path::Path;

use flate2::{Compression, GzBuilder};
use mmx_converters::{Error, Result};

/// Something that records are written to, one after another.
pub struct Output<'a> {
    sink: Sink<'a>,
    /// The file's name, for messages.
    path: std::path::PathBuf,
    records: u64,
}

enum Sink<'a> {
    Plain(&'a mut dyn Write),
    Gzip(flate2::write::GzEncoder<&'a mut dyn Write>),
    Zstd(zstd::stream::write::Encoder<'static, &'a mut dyn Write>),
}

/// The forms of files that can be written, by the ends of their names.
pub const ENDINGS: &str = ".jsonl, .jsonl.gz, .jsonl.zst or .parquet";

/// True for a name that a file of JSON Lines can have, packed or not.
#[must_use]
pub fn is_lines(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase());
    let name = name.unwrap_or_default();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    // a device, such as /dev/stdout, takes lines
    [".jsonl", ".ndjson"].iter().any(|end| name.ends_with(end)) || !name.contains('.')
}

/// Refuses a name that says nothing about the form to write.
///
/// # Errors
/// Names of no known ending.
pub fn check_lines(path: &Path) -> Result<()> {
    match is_lines(path) {
        true => Ok(()),
        false => Err(Error::setting(
            "out",
            "a name that ends in .jsonl, .jsonl.gz or .jsonl.zst",
            path.display(),
        )),
    }
}

impl<'a> Output<'a> {
    /// JSON Lines as they are.
    pub fn lines(out: &'a mut dyn Write) -> Self {
        Self { sink: Sink::Plain(out), path: "output".into(), records: 0 }
    }

    /// JSON Lines, packed as the name of the file says.
    ///
    /// # Errors
    /// The packer cannot be started.
    pub fn named(path: &Path, out: &'a mut dyn Write) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
        let sink = match ending.as_str() {
            // no time and no name inside: the same records give the same bytes
            "gz" => Sink::Gzip(GzBuilder::new().mtime(0).write(out, Compression::default())),
            "zst" => {
                let packer = zstd::stream::write::Encoder::new(out, 3);
                Sink::Zstd(packer.map_err(|e| Error::io(path, e))?)
            }
            _ => Sink::Plain(out),
        };
        Ok(Self { sink, path: path.to_owned(), records: 0 })
    }

    /// Writes a record: a line of JSON without its end.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn push(&mut self, line: &str) -> Result<()> {
        let out: &mut dyn Write = match &mut self.sink {
            Sink::Plain(out) => out,
            Sink::Gzip(out) => out,
            Sink::Zstd(out) => out,
        };
        self.records += 1;
        let written = out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n"));
        written.map_err(|e| Error::io(&self.path, e))
    }

    /// Records written so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Writes the end of a packed file.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn finish(self) -> Result<()> {
        match self.sink {
            Sink::Plain(_) => Ok(()),
            Sink::Gzip(out) => out.finish().map(drop).map_err(|e| Error::io(&self.path, e)),
            Sink::Zstd(out) => out.finish().map(drop).map_err(|e| Error::io(&self.path, e)),
        }
    }
}
