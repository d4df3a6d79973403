//! The directory of a zip whose entries are stored uncompressed, as torch writes them (so that they
//! can be mapped): names to byte ranges. Source: PKWARE's APPNOTE, sections 4.3 and 4.5.3 (zip64).

#![warn(clippy::arithmetic_side_effects)]

use std::collections::HashMap;
use std::ops::Range;

/// Signatures of the records.
const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const END64_LOCATOR: u32 = 0x0706_4b50;
/// Bytes of the end record without its comment, and the longest comment.
const END_BYTES: usize = 22;
const MAX_COMMENT: usize = 65_535;

/// An entry as the central directory describes it.
struct Entry {
    method: u16,
    bytes: u64,
    local: u64,
}

/// An archive's directory.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    names: Vec<String>,
    entries: HashMap<String, Entry>,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

impl<'a> Archive<'a> {
    /// Reads the directory at the end of the file.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.first() == Some(&0x80) {
            return Err(
                "expected a zip, found a pickle: torch's format before 1.6 (load it in torch and save it again)"
                    .to_owned(),
            );
        }
        let (count, start) = directory(bytes).ok_or(
            "expected a zip with its directory at the end, found none: truncated, or no checkpoint",
        )?;
        let mut archive = Self { bytes, names: Vec::new(), entries: HashMap::new() };
        let mut at = usize::try_from(start).map_err(|e| e.to_string())?;
        for i in 0..count {
            let (name, entry, next) = central(bytes, at)
                .ok_or_else(|| format!("zip entry {i} of {count}: expected a directory record"))?;
            if archive.entries.insert(name.clone(), entry).is_some() {
                return Err(format!("zip entry {name}: expected once, found twice"));
            }
            archive.names.push(name);
            at = next;
        }
        Ok(archive)
    }

    /// Names in the order of the directory.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Where an entry's bytes lie, if there is such an entry.
    pub(super) fn get(&self, name: &str) -> Result<Option<Range<usize>>, String> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        if entry.method != 0 {
            return Err(format!(
                "zip entry {name}: expected it stored as torch does, found compression method {}",
                entry.method
            ));
        }
        let range = self.locate(entry).ok_or_else(|| {
            format!(
                "zip entry {name}: expected {} bytes within the file of {}: truncated",
                entry.bytes,
                self.bytes.len()
            )
        })?;
        Ok(Some(range))
    }

    fn locate(&self, entry: &Entry) -> Option<Range<usize>> {
        let local = usize::try_from(entry.local).ok()?;
        if u32_at(self.bytes, local)? != LOCAL {
            return None;
        }
        let name = usize::from(u16_at(self.bytes, local.checked_add(26)?)?);
        let extra = usize::from(u16_at(self.bytes, local.checked_add(28)?)?);
        let start = local.checked_add(30)?.checked_add(name)?.checked_add(extra)?;
        let end = start.checked_add(usize::try_from(entry.bytes).ok()?)?;
        (end <= self.bytes.len()).then_some(start..end)
    }
}

/// Number of entries, and where their records begin.
fn directory(bytes: &[u8]) -> Option<(u64, u64)> {
    let last = bytes.len().checked_sub(END_BYTES)?;
    let first = last.saturating_sub(MAX_COMMENT);
    let end = (first..=last).rev().find(|&at| u32_at(bytes, at) == Some(END))?;
    let count = u64::from(u16_at(bytes, end.checked_add(10)?)?);
    let start = u64::from(u32_at(bytes, end.checked_add(16)?)?);
    let Some(locator) = end.checked_sub(20) else { return Some((count, start)) };
    if u32_at(bytes, locator) != Some(END64_LOCATOR) {
        return Some((count, start));
    }
    let end64 = usize::try_from(u64_at(bytes, locator.checked_add(8)?)?).ok()?;
    if u32_at(bytes, end64)? != END64 {
        return None;
    }
    Some((u64_at(bytes, end64.checked_add(32)?)?, u64_at(bytes, end64.checked_add(48)?)?))
}

/// One record of the directory, and where the next one begins.
fn central(bytes: &[u8], at: usize) -> Option<(String, Entry, usize)> {
    if u32_at(bytes, at)? != CENTRAL {
        return None;
    }
    let method = u16_at(bytes, at.checked_add(10)?)?;
    let mut size = u64::from(u32_at(bytes, at.checked_add(24)?)?);
    let packed = u32_at(bytes, at.checked_add(20)?)?;
    let name_bytes = usize::from(u16_at(bytes, at.checked_add(28)?)?);
    let extra_bytes = usize::from(u16_at(bytes, at.checked_add(30)?)?);
    let comment_bytes = usize::from(u16_at(bytes, at.checked_add(32)?)?);
    let mut local = u64::from(u32_at(bytes, at.checked_add(42)?)?);
    let name_at = at.checked_add(46)?;
    let extra_at = name_at.checked_add(name_bytes)?;
    let next = extra_at.checked_add(extra_bytes)?.checked_add(comment_bytes)?;
    let name = std::str::from_utf8(bytes.get(name_at..extra_at)?).ok()?.to_owned();
    // zip64: fields that are all ones stand in the extra field, in this order
    let mut extra = extra_at;
    let extra_end = extra_at.checked_add(extra_bytes)?;
    while extra.checked_add(4)? <= extra_end {
        let id = u16_at(bytes, extra)?;
        let length = usize::from(u16_at(bytes, extra.checked_add(2)?)?);
        let mut value = extra.checked_add(4)?;
        if id == 1 {
            let mut take = || {
                let found = u64_at(bytes, value)?;
                value = value.checked_add(8)?;
                Some(found)
            };
            if size == u64::from(u32::MAX) {
                size = take()?;
            }
            if packed == u32::MAX {
                take()?;
            }
            if local == u64::from(u32::MAX) {
                local = take()?;
            }
        }
        extra = extra.checked_add(4)?.checked_add(length)?;
    }
    Some((name, Entry { method, bytes: size, local }, next))
}
