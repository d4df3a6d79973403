//! Memory for tests that ends, or begins, at a page that may not be touched: what a kernel reads or
//! writes beside its operands ends the test, on every CPU and without a memory checker.
#![expect(unsafe_code, reason = "a map with pages that are forbidden")]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Which end lies at a forbidden page; at the other one up to a page may be touched unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    Before,
    Behind,
}

/// Bytes with a fence.
#[derive(Debug)]
pub(crate) struct Fenced {
    /// The whole map, forbidden pages included.
    map: NonNull<u8>,
    size: usize,
    /// Where the bytes lie in it.
    offset: usize,
    len: usize,
}

impl Fenced {
    /// A copy of `bytes`.
    pub(crate) fn new(bytes: &[u8], fence: Fence) -> Self {
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let room = bytes.len().next_multiple_of(page);
        let size = room + 2 * page;
        // SAFETY: a new map of nothing's memory, of which the middle is allowed.
        let map = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED, "{size} bytes");
            let allowed = libc::PROT_READ | libc::PROT_WRITE;
            // of nothing, qemu 7.2 says that it cannot be allowed
            let found =
                if room == 0 { 0 } else { libc::mprotect(map.byte_add(page), room, allowed) };
            assert_eq!(found, 0, "{room} bytes");
            NonNull::new(map.cast()).unwrap()
        };
        let offset = page + if fence == Fence::Before { 0 } else { room - bytes.len() };
        let mut fenced = Self { map, size, offset, len: bytes.len() };
        fenced.copy_from_slice(bytes);
        fenced
    }
}

impl Deref for Fenced {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are within the allowed part of the map.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset), self.len) }
    }
}

impl DerefMut for Fenced {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_ptr().add(self.offset), self.len) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the map is this one's own, and nobody borrows it any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.size) };
    }
}

#[test]
fn the_page_beside_is_forbidden() {
    for (fence, len) in [(Fence::Before, 5), (Fence::Behind, 5), (Fence::Behind, 0)] {
        let bytes = Fenced::new(&[7; 5][..len], fence);
        assert_eq!(&bytes[..], &[7; 5][..len]);
        let beside = match fence {
            Fence::Before => bytes.as_ptr().wrapping_sub(1),
            Fence::Behind => bytes.as_ptr().wrapping_add(len),
        };
        // a system call that reads there is refused, which ends no test
        let mut pipe = [0; 2];
        // SAFETY: a pipe of this test's own; the system checks the address.
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            assert_eq!(libc::write(pipe[1], bytes.as_ptr().cast(), len), len as isize);
            assert_eq!(libc::write(pipe[1], beside.cast(), 1), -1, "{fence:?}");
            for end in pipe {
                libc::close(end);
            }
        }
    }
}
