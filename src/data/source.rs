//! Files to text: as they are, or unpacked from gzip or zstd (told by their first bytes, not their
//! names), in blocks of whole lines, so that memory does not grow with the file.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use mmx_converters::file::Bytes;

use super::jsonl::{self, Line};
use mmx_converters::{Error, Result};

/// Text read at once. A line longer than this makes its block longer.
const BLOCK_BYTES: u64 = 8 << 20;

/// The text of a file. Errors of a packed file say what is wrong with the archive.
pub struct Source {
    text: Box<dyn BufRead + Send>,
    archive: Option<&'static str>,
}

impl Source {
    /// Opens a file.
    ///
    /// # Errors
    /// No file, a folder, or a Git LFS pointer.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path).map_err(|e| Error::io(path, e))?;
        if !file.metadata().map_err(|e| Error::io(path, e))?.is_file() {
            return Err(Error::failed(format!(
                "{}: expected a file, found a folder or device",
                path.display()
            )));
        }
        let mut file = BufReader::with_capacity(1 << 18, file);
        let head = file.fill_buf().map_err(|e| Error::io(path, e))?;
        Bytes::owned(head[..head.len().min(1024)].to_vec(), path)?;
        if head.starts_with(&[0x1f, 0x8b]) {
            let text =
                BufReader::with_capacity(1 << 18, flate2::bufread::MultiGzDecoder::new(file));
            return Ok(Self { text: Box::new(text), archive: Some("gzip") });
        }
        if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let text = zstd::stream::read::Decoder::with_buffer(file);
            let text = BufReader::with_capacity(1 << 18, text.map_err(|e| Error::io(path, e))?);
            return Ok(Self { text: Box::new(text), archive: Some("zstd") });
        }
        Ok(Self { text: Box::new(file), archive: None })
    }

    fn explain(archive: Option<&str>, error: io::Error) -> io::Error {
        match archive {
            Some(name) if error.kind() == io::ErrorKind::UnexpectedEof => io::Error::other(
                format!("expected a whole {name} archive, found one that is cut off"),
            ),
            Some(name) => {
                io::Error::other(format!("expected a {name} archive, found a damaged one: {error}"))
            }
            None => error,
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.text.read(buffer).map_err(|e| Self::explain(self.archive, e))
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let archive = self.archive;
        self.text.fill_buf().map_err(|e| Self::explain(archive, e))
    }

    fn consume(&mut self, amount: usize) {
        self.text.consume(amount);
    }
}

/// Whole lines of a file.
pub struct Block {
    bytes: Vec<u8>,
    /// Number of the first line, from 1.
    first: usize,
    /// Where it begins in the text, bytes.
    offset: usize,
}

impl Block {
    /// Its lines that are not blank, numbered as in the file.
    pub fn lines(&self) -> Vec<Line<'_>> {
        jsonl::lines_from(&self.bytes, self.first, self.offset).collect()
    }

    /// Bytes of text.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// A file's blocks, in order.
pub struct Blocks {
    source: Source,
    path: PathBuf,
    line: usize,
    offset: usize,
    rest: Vec<u8>,
}

impl Blocks {
    /// Opens a file.
    ///
    /// # Errors
    /// See [`Source::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        Ok(Self { source, path: path.to_owned(), line: 1, offset: 0, rest: Vec::new() })
    }

    /// The next block, or nothing at the end.
    ///
    /// # Errors
    /// The file cannot be read, or is an archive that is damaged or cut off.
    pub fn next_block(&mut self) -> Result<Option<Block>> {
        let mut bytes = std::mem::take(&mut self.rest);
        loop {
            let from = bytes.len();
            let read = self.source.by_ref().take(BLOCK_BYTES).read_to_end(&mut bytes);
            if read.map_err(|e| Error::io(&self.path, e))? == 0 {
                break;
            }
            if let Some(end) = bytes[from..].iter().rposition(|&b| b == b'\n') {
                self.rest = bytes.split_off(from + end + 1);
                break;
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let block = Block { first: self.line, offset: self.offset, bytes };
        self.line += block.bytes.iter().filter(|&&b| b == b'\n').count();
        self.offset += block.bytes.len();
        Ok(Some(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_whole_lines_with_the_numbers_and_offsets_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long.jsonl");
        // longer than two blocks, with a line longer than one
        let mut text = b"\xef\xbb\xbfa\n\n".to_vec();
        text.extend(vec![b'x'; BLOCK_BYTES as usize + 5]);
        for i in 0..1_500_000 {
            text.extend(format!("\n{i}").bytes());
        }
        fs_err::write(&path, &text).unwrap();
        let mut blocks = Blocks::open(&path).unwrap();
        let (mut found, mut count) = (Vec::new(), 0);
        while let Some(block) = blocks.next_block().unwrap() {
            count += 1;
            found.extend(block.lines().iter().map(|l| (l.number, l.offset, l.bytes.len())));
        }
        let whole: Vec<_> =
            jsonl::lines(&text).map(|l| (l.number, l.offset, l.bytes.len())).collect();
        assert!(count > 1 && found == whole, "{count} blocks");
    }
}
