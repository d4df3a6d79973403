//! Memory for weights in an order of our own: one anonymous map with large pages, given out in
//! pieces.
//!
//! Pieces begin at a line of the cache, so that no load of a register touches two, and large pages
//! spare the processor most look-ups of addresses while all weights are read once per token.
//!
//! To a memory checker all of a map is one thing: with the feature `asan` (scripts/check-asan) what
//! has not been given out is forbidden, the padding behind each piece included.
#![expect(unsafe_code, reason = "pieces of one map that do not overlap")]

use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Bytes of a line of the cache, and of an AVX-512 register.
pub(crate) const LINE: usize = 64;

/// An arena: gives out pieces of memory until it is full.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Arc<Memory>,
    start: NonNull<u8>,
    used: usize,
    size: usize,
}

/// The map, kept alive by every piece of it; reached through pieces only.
#[derive(Debug)]
struct Memory(
    #[cfg_attr(not(feature = "asan"), expect(dead_code, reason = "kept for its memory"))] MmapMut,
);

/// A piece of memory, at first zeros.
#[derive(Debug)]
pub(crate) struct Piece {
    start: NonNull<u8>,
    size: usize,
    _memory: Arc<Memory>,
}

// SAFETY: a piece is the only way to its bytes, like a boxed slice.
unsafe impl Send for Piece {}
// SAFETY: as above; shared pieces are only read.
unsafe impl Sync for Piece {}

impl Arena {
    /// Makes an arena of `size` bytes; pages that are never written cost nothing.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new(size: usize) -> Result<Self> {
        let size = size.max(1);
        let refused = |error| Error::Library {
            doing: format!("{size} bytes for weights"),
            message: format!("{error}"),
        };
        let mut map = MmapMut::map_anon(size).map_err(refused)?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage); // a wish; small pages do as well
        let Some(start) = NonNull::new(map.as_mut_ptr()) else {
            return Err(refused(std::io::ErrorKind::OutOfMemory.into()));
        };
        #[cfg(feature = "asan")]
        asan::forbid(start, size);
        Ok(Self { memory: Arc::new(Memory(map)), start, used: 0, size })
    }

    /// The next `size` bytes.
    ///
    /// # Errors
    /// The arena was made for less.
    pub(crate) fn take(&mut self, size: usize) -> Result<Piece> {
        let end = self.used.checked_add(size).filter(|&end| end <= self.size);
        let Some(end) = end else {
            return Err(Error::Library {
                doing: format!("{size} bytes for weights"),
                message: format!("{} of {} are left", self.size - self.used, self.size),
            });
        };
        // SAFETY: `used` is within the map.
        let start = unsafe { self.start.add(self.used) };
        self.used = end.next_multiple_of(LINE).min(self.size);
        #[cfg(feature = "asan")]
        asan::allow(start, size);
        Ok(Piece { start, size, _memory: self.memory.clone() })
    }
}

/// Bytes that a piece of `size` takes of an arena.
pub(crate) fn padded(size: usize) -> usize {
    size.next_multiple_of(LINE)
}

impl Piece {
    /// Where its bytes begin, for who writes them though others refer to them.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is within the map, which lives as long as the piece; nobody else writes
        // it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and pieces do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

/// AddressSanitizer's marks on memory that is not its own.
#[cfg(feature = "asan")]
mod asan {
    use std::ffi::c_void;
    use std::ptr::NonNull;

    /// Maps end at a page's end. Source: x86-64 and most others have pages of 4 KiB, or multiples
    /// of it.
    const PAGE: usize = 4096;

    // Source: sanitizer/asan_interface.h
    unsafe extern "C" {
        fn __asan_poison_memory_region(start: *const c_void, size: usize);
        fn __asan_unpoison_memory_region(start: *const c_void, size: usize);
    }

    /// A map's memory up to the end of its last page is not to be touched.
    pub(super) fn forbid(start: NonNull<u8>, size: usize) {
        // SAFETY: marks memory of a live map, changes none of it.
        unsafe {
            __asan_poison_memory_region(start.as_ptr().cast(), size.next_multiple_of(PAGE));
        }
    }

    /// A part of it may be used.
    pub(super) fn allow(start: NonNull<u8>, size: usize) {
        // SAFETY: as above.
        unsafe { __asan_unpoison_memory_region(start.as_ptr().cast(), size) }
    }

    impl Drop for super::Memory {
        fn drop(&mut self) {
            // the addresses may be another map's next
            if let Some(start) = NonNull::new(self.0.as_mut_ptr()) {
                allow(start, self.0.len().next_multiple_of(PAGE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeros_apart_and_aligned() {
        let mut arena = Arena::new(200).unwrap();
        let mut first = arena.take(70).unwrap();
        let mut second = arena.take(72).unwrap();
        for piece in [&first, &second] {
            assert_eq!(piece.bytes().as_ptr().align_offset(LINE), 0);
            assert!(piece.bytes().iter().all(|&b| b == 0));
        }
        first.bytes_mut().fill(1);
        second.bytes_mut().fill(2);
        assert!(first.bytes().iter().all(|&b| b == 1) && first.bytes().len() == 70);
        assert!(arena.take(1).is_err(), "128 + 72 bytes are all there are");
        drop(arena);
        assert!(second.bytes().iter().all(|&b| b == 2));
    }
}
