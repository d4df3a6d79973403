//! Where a packed matrix lies: in memory of its own, or in the file until it is packed.
#![expect(
    unsafe_code,
    reason = "addresses in a file's map are shared by threads; vector instructions"
)]

use std::marker::PhantomData;
use std::sync::Mutex;

use mmx_converters::gguf::GgmlType;
use rayon::prelude::*;

use super::by_type::layout;
use super::layout::{LANES, Layout};
use super::set::{self, Set};
use super::vector::{Task, Vector};
use crate::kernel::arena::Piece;
use crate::kernel::vector::prefetch;

/// The memory of a packed matrix.
#[derive(Debug)]
pub(super) struct Own {
    /// Numbers of each group, then of the next.
    pub(super) values: Piece,
    /// Scales of each group.
    pub(super) scales: Piece,
}

/// A matrix that is not packed yet.
#[derive(Debug)]
pub(super) struct InFile {
    /// The first block of the first row of each group of 16.
    pub(super) groups: Vec<Group>,
    /// The memory that it will be packed into.
    pub(super) room: Mutex<Option<Own>>,
}

/// The first of 16 rows in a file's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group(pub(super) *const u8);

// SAFETY: only read, and kept by whoever made the matrix.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// The bytes of its rows.
    ///
    /// # Safety
    /// There are so many, and they stay unchanged as long as the slice is used.
    pub(super) unsafe fn bytes<'a>(self, count: usize) -> &'a [u8] {
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts(self.0, count) }
    }
}

impl Own {
    /// Packs groups of 16 rows; `all_cores`: what it takes is mostly the system's, who hands out
    /// pages.
    pub(super) fn fill(
        &mut self,
        set: Set,
        ty: GgmlType,
        cols: usize,
        groups: &[&[u8]],
        all_cores: bool,
        read: &dyn Fn(),
    ) {
        layout!(ty, self.fill_as::<L>(set, cols, groups, all_cores, read), ());
    }

    /// Packs one group of 16 rows over what lies there.
    ///
    /// # Safety
    /// The group is there; meanwhile nobody else reads or writes it.
    pub(super) unsafe fn overwrite(
        &self,
        set: Set,
        ty: GgmlType,
        cols: usize,
        group: usize,
        rows: &[u8],
    ) {
        layout!(
            ty,
            {
                let units = cols / L::UNIT;
                let (values, scales) = (units * L::VALUES, units * L::SCALES);
                // SAFETY: the group's bytes lie there, one group's after the other's, and nobody
                // else touches them, as the caller says.
                unsafe {
                    let at = |piece: &Piece, bytes: usize| {
                        let start = piece.as_ptr().add(group * bytes);
                        std::slice::from_raw_parts_mut(start, bytes)
                    };
                    pack::<L>(set, rows, at(&self.values, values), at(&self.scales, scales));
                }
            },
            ()
        );
    }

    fn fill_as<L: Layout>(
        &mut self,
        set: Set,
        cols: usize,
        groups: &[&[u8]],
        all_cores: bool,
        read: &dyn Fn(),
    ) {
        /// Bytes of the file that are worth a thread: of less, two take as long as one (measured).
        const SHARE: usize = 1 << 20;
        /// Bytes of the file between two calls of `read`.
        const PART: usize = 8 << 20;
        let units = cols / L::UNIT;
        let (values_bytes, scales_bytes) = (units * L::VALUES, units * L::SCALES);
        let group_bytes = LANES * units * L::UNIT_BYTES;
        let part = PART.div_ceil(group_bytes);
        let values = self.values.bytes_mut().chunks_mut(part * values_bytes);
        let scales = self.scales.bytes_mut().chunks_mut(part * scales_bytes);
        for (groups, (values, scales)) in groups.chunks(part).zip(values.zip(scales)) {
            if all_cores {
                let values = values.par_chunks_exact_mut(values_bytes);
                let scales = scales.par_chunks_exact_mut(scales_bytes);
                let groups = groups.par_iter().zip(values.zip(scales));
                groups
                    .with_min_len(SHARE.div_ceil(group_bytes))
                    .for_each(|(group, (values, scales))| pack::<L>(set, group, values, scales));
            } else {
                let values = values.chunks_exact_mut(values_bytes);
                let scales = scales.chunks_exact_mut(scales_bytes);
                for (group, (values, scales)) in groups.iter().zip(values.zip(scales)) {
                    pack::<L>(set, group, values, scales);
                }
            }
            read();
        }
    }
}

/// Packs a group of rows side by side.
pub(super) fn pack<L: Layout>(set: Set, group: &[u8], values: &mut [u8], scales: &mut [u8]) {
    bring(group);
    let task = Pack { group, values, scales, layout: PhantomData::<L> };
    // SAFETY: a matrix's set is one that this CPU has; the task asks for nothing else.
    unsafe { set::enter(set, task) }
}

/// Reads memory once from its beginning to its end, as a CPU fetches ahead, and has as much after it
/// fetched: rows side by side are 16 short runs at a time, which no CPU foresees (measured: half of
/// the rate, from memory as from the third cache).
pub(super) fn bring(bytes: &[u8]) {
    const LINE: usize = 64;
    let mut all = 0;
    for line in bytes.chunks(LINE) {
        all ^= line[0];
        prefetch(line.as_ptr().wrapping_add(bytes.len()));
    }
    std::hint::black_box(all);
}

/// A group of rows to be packed.
struct Pack<'a, L> {
    group: &'a [u8],
    values: &'a mut [u8],
    scales: &'a mut [u8],
    layout: PhantomData<L>,
}

impl<L: Layout> Task for Pack<'_, L> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let stride = self.group.len() / LANES;
        let values = self.values.chunks_exact_mut(L::VALUES);
        let scales = self.scales.chunks_exact_mut(L::SCALES);
        for (unit, (values, scales)) in values.zip(scales).enumerate() {
            // SAFETY: as the caller says.
            unsafe { L::pack::<V>(&self.group[unit * L::UNIT_BYTES..], stride, values, scales) };
        }
    }
}
