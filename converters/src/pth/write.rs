//! A state dict out, as `torch.save` writes it: names of MiniMind's own, one storage per weight,
//! and for a tied model both names over one storage, so that the reference loads it strictly.

#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a writer: sizes are its own, and checked where a file could be too large"
)]

use std::io::Write;
use std::path::Path;

use crate::arch::{self, Config, Role};
use crate::error::{Error, Result};
use crate::file;
use crate::model::fallback::Weights;
use crate::tensor::{self, Dtype};

/// Where torch aligns storages to, by padding in the zip's extra fields.
const ALIGNMENT: u64 = 64;
/// The root folder in the zip.
const ROOT: &str = "archive";

/// Writes a checkpoint, whole or not at all; the same weights give the same bytes. Returns its size
/// in bytes.
///
/// # Errors
/// Whatever `source` returns, a file beyond 4 GiB (which would need zip64), or the system's
/// refusal.
pub fn write(
    path: &Path,
    config: &Config,
    dtype: Dtype,
    source: &mut Weights<'_, '_>,
) -> Result<u64> {
    let weights = arch::weights(config);
    let storage = match dtype {
        Dtype::F16 => "HalfStorage",
        Dtype::Bf16 => "BFloat16Storage",
        Dtype::F32 => "FloatStorage",
        other => {
            return Err(Error::unsupported(
                path.display().to_string(),
                format!("a checkpoint holds f32, f16 or bf16, found {other:?}"),
            ));
        }
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    for (i, weight) in weights.iter().enumerate() {
        put_tensor(&mut pickle, &weight.name, storage, i, &weight.shape);
    }
    if config.tie_word_embeddings
        && let Some(i) = weights.iter().position(|w| w.role == Role::Embedding)
    {
        put_tensor(&mut pickle, "lm_head.weight", storage, i, &weights[i].shape);
    }
    pickle.extend(b"u.");
    let mut size = 0;
    file::write_whole(path, |out| {
        let mut zip = Zip { path, out, at: 0, directory: Vec::new(), entries: 0 };
        zip.entry("data.pkl", &pickle)?;
        zip.entry("byteorder", b"little")?;
        for (i, weight) in weights.iter().enumerate() {
            let (from, bytes) = source(weight)?;
            zip.entry(&format!("data/{i}"), &tensor::convert(bytes, from, dtype))?;
        }
        zip.entry("version", b"3\n")?;
        size = zip.finish()?;
        Ok(())
    })?;
    Ok(size)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A number as LONG1 where it does not fit the four signed bytes of BININT.
fn put_int(out: &mut Vec<u8>, n: usize) {
    match i32::try_from(n) {
        Ok(n) => {
            out.push(b'J');
            out.extend(n.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((n as i64).to_le_bytes());
        }
    }
}

fn put_sizes(out: &mut Vec<u8>, sizes: &[usize]) {
    out.push(b'(');
    sizes.iter().for_each(|n| put_int(out, *n));
    out.push(b't');
}

/// `key: _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
fn put_tensor(out: &mut Vec<u8>, key: &str, class: &str, storage: usize, shape: &[usize]) {
    put_text(out, key);
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    put_text(out, "storage");
    out.extend(format!("ctorch\n{class}\n").as_bytes());
    put_text(out, &storage.to_string());
    put_text(out, "cpu");
    put_int(out, shape.iter().product());
    out.extend(b"tQ");
    put_int(out, 0);
    put_sizes(out, shape);
    let stride = (0..shape.len()).map(|d| shape[d + 1..].iter().product());
    put_sizes(out, &stride.collect::<Vec<usize>>());
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR"); // requires_grad False, no hooks
}

/// A zip of stored entries, written in one pass.
struct Zip<'a> {
    path: &'a Path,
    out: &'a mut dyn Write,
    at: u64,
    directory: Vec<u8>,
    entries: u16,
}

impl Zip<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| Error::io(self.path, e))
    }

    fn u32(&self, n: u64) -> Result<[u8; 4]> {
        u32::try_from(n).map(u32::to_le_bytes).map_err(|_| {
            Error::unsupported(
                self.path.display().to_string(),
                format!("a .pth is written up to 4 GiB, found a position at {n} bytes"),
            )
        })
    }

    fn entry(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let name = format!("{ROOT}/{name}");
        let local = self.at;
        let crc = crc32fast::hash(data).to_le_bytes();
        let size = self.u32(data.len() as u64)?;
        // version 2.0, no flags, stored, the zip format's first day as time
        let shared = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0][..],
            &crc,
            &size,
            &size,
            &(name.len() as u16).to_le_bytes(),
        ]
        .concat();
        // an extra field (id, length, zeros) that brings the data to its alignment
        let begin = local + 30 + name.len() as u64 + 4;
        let padding = (begin.next_multiple_of(ALIGNMENT) - begin) as u16;
        let mut header = 0x0403_4b50u32.to_le_bytes().to_vec();
        header.extend(&shared);
        header.extend((4 + padding).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(b"FB"); // torch's own padding has this id
        header.extend(padding.to_le_bytes());
        header.resize(header.len() + usize::from(padding), b'Z');
        self.put(&header)?;
        self.put(data)?;

        let local = self.u32(local)?;
        self.directory.extend(0x0201_4b50u32.to_le_bytes());
        self.directory.extend([20, 0]); // made by version 2.0
        self.directory.extend(&shared);
        self.directory.extend([0; 12]); // no extra field, comment, disk, attributes
        self.directory.extend(local);
        self.directory.extend(name.as_bytes());
        self.entries = self.entries.checked_add(1).ok_or_else(|| {
            Error::unsupported(
                self.path.display().to_string(),
                "a .pth is written with up to 65535 entries, found more",
            )
        })?;
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        let start = self.u32(self.at)?;
        let directory = std::mem::take(&mut self.directory);
        let mut end = 0x0605_4b50u32.to_le_bytes().to_vec();
        end.extend([0; 4]);
        end.extend(self.entries.to_le_bytes());
        end.extend(self.entries.to_le_bytes());
        end.extend(self.u32(directory.len() as u64)?);
        end.extend(start);
        end.extend([0; 2]);
        self.put(&directory)?;
        self.put(&end)?;
        Ok(self.at)
    }
}
