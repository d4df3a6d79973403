//! The protocol between `mmx` and its child `mmx-train logits --serve`: ids in, float32 logits out.
//!
//! All numbers are little-endian. The child greets with a status; 0 is followed by the vocabulary
//! as u32. Then each request is the number of ids as u32 and the ids as u32; its answer is a
//! status, 0 followed by the number of values as u64 and the values as float32. Another status is
//! followed by a message and a hint, each as its length in u32 and UTF-8 (no hint: no bytes). The
//! end of the requests ends the child.

use std::io::{self, Read, Write};

use crate::error::{Error, Result};

/// Longest message, and most ids of a request, that are believed.
const MOST: u32 = 1 << 26;
/// Status of an answer.
const OK: u8 = 0;
const FAILED: u8 = 1;

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn limited(count: u32) -> io::Result<usize> {
    match count <= MOST {
        true => Ok(count as usize),
        false => Err(io::Error::other(format!("a count of {count}, expected at most {MOST}"))),
    }
}

fn read_text(from: &mut impl Read) -> io::Result<String> {
    let length = limited(read_u32(from)?)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write_text(to: &mut impl Write, text: &str) -> io::Result<()> {
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(text.as_bytes())
}

/// The status of an answer, and the error of one that failed.
fn read_status(from: &mut impl Read) -> io::Result<Result<()>> {
    let mut status = [0];
    from.read_exact(&mut status)?;
    match status[0] {
        OK => Ok(Ok(())),
        FAILED => {
            let message = read_text(from)?;
            let hint = Some(read_text(from)?).filter(|hint| !hint.is_empty());
            Ok(Err(Error::Failed { message, hint }))
        }
        other => Err(io::Error::other(format!("the status {other}, expected 0 or 1"))),
    }
}

/// Says that it could not be done.
///
/// # Errors
/// The pipe is closed.
pub fn write_error(to: &mut impl Write, error: &Error) -> io::Result<()> {
    to.write_all(&[FAILED])?;
    write_text(to, &error.to_string())?;
    write_text(to, &error.hint().unwrap_or_default())?;
    to.flush()
}

/// The child's greeting: its model is open.
///
/// # Errors
/// The pipe is closed.
pub fn write_greeting(to: &mut impl Write, vocab: usize) -> io::Result<()> {
    to.write_all(&[OK])?;
    to.write_all(&u32::try_from(vocab).map_err(io::Error::other)?.to_le_bytes())?;
    to.flush()
}

/// The vocabulary of the child's model, or why it could not be opened.
///
/// # Errors
/// The child has ended, or speaks another language.
pub fn read_greeting(from: &mut impl Read) -> io::Result<Result<usize>> {
    match read_status(from)? {
        Ok(()) => Ok(Ok(read_u32(from)? as usize)),
        Err(error) => Ok(Err(error)),
    }
}

/// Asks for the logits of ids.
///
/// # Errors
/// The pipe is closed.
pub fn write_ids(to: &mut impl Write, ids: &[u32]) -> io::Result<()> {
    let count = u32::try_from(ids.len()).map_err(io::Error::other)?;
    to.write_all(&count.to_le_bytes())?;
    for id in ids {
        to.write_all(&id.to_le_bytes())?;
    }
    to.flush()
}

/// The next request's ids; nothing at the end.
///
/// # Errors
/// The pipe ends within a request.
pub fn read_ids(from: &mut impl Read) -> io::Result<Option<Vec<u32>>> {
    let mut first = [0];
    if from.read(&mut first)? == 0 {
        return Ok(None);
    }
    let mut rest = [0; 3];
    from.read_exact(&mut rest)?;
    let count = limited(u32::from_le_bytes([first[0], rest[0], rest[1], rest[2]]))?;
    let mut bytes = vec![0; count * 4];
    from.read_exact(&mut bytes)?;
    let ids = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
    Ok(Some(ids.collect()))
}

/// Answers with logits.
///
/// # Errors
/// The pipe is closed.
pub fn write_logits(to: &mut impl Write, logits: &[f32]) -> io::Result<()> {
    to.write_all(&[OK])?;
    to.write_all(&(logits.len() as u64).to_le_bytes())?;
    for piece in logits.chunks(1 << 14) {
        let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
        to.write_all(&bytes)?;
    }
    to.flush()
}

/// `expected` logits, or why there are none.
///
/// # Errors
/// The child has ended, or speaks another language.
pub fn read_logits(from: &mut impl Read, expected: usize) -> io::Result<Result<Vec<f32>>> {
    if let Err(error) = read_status(from)? {
        return Ok(Err(error));
    }
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    let count = u64::from_le_bytes(bytes);
    if count != expected as u64 {
        return Err(io::Error::other(format!("{count} logits, expected {expected}")));
    }
    let mut logits = vec![0f32; expected];
    from.read_exact(bytemuck::cast_slice_mut(&mut logits))?;
    if cfg!(target_endian = "big") {
        logits.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
    }
    Ok(Ok(logits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut pipe = Vec::new();
        write_greeting(&mut pipe, 6400).unwrap();
        write_ids(&mut pipe, &[1, 2, 6399]).unwrap();
        write_logits(&mut pipe, &[0.5, f32::MIN_POSITIVE, -3.25]).unwrap();
        write_error(&mut pipe, &Error::failed_with_hint("no", "yes")).unwrap();
        let mut from = pipe.as_slice();
        assert_eq!(read_greeting(&mut from).unwrap().unwrap(), 6400);
        assert_eq!(read_ids(&mut from).unwrap(), Some(vec![1, 2, 6399]));
        let logits = read_logits(&mut from, 3).unwrap().unwrap();
        assert_eq!(logits, [0.5, f32::MIN_POSITIVE, -3.25]);
        let error = read_logits(&mut from, 3).unwrap().unwrap_err();
        assert_eq!((error.to_string(), error.hint()), ("no".into(), Some("yes".into())));
        assert_eq!(read_ids(&mut from).unwrap(), None);
    }

    #[test]
    fn rejects_another_language() {
        assert!(read_greeting(&mut b"\x07hello".as_slice()).is_err());
        assert!(read_ids(&mut b"\xff\xff\xff\xff".as_slice()).is_err()); // more than is believed
        assert!(read_ids(&mut b"\x02\0\0\0\x01".as_slice()).is_err()); // ends within
        let mut pipe = Vec::new();
        write_logits(&mut pipe, &[1.0]).unwrap();
        assert!(read_logits(&mut pipe.as_slice(), 2).is_err());
    }
}
