//! The one product of all types and sets: 16 rows with a few rows of activations.
//!
//! A block of 32 columns is eight fours of columns; four columns of 16 rows meet four activations,
//! repeated, in one or two instructions. The sums of a block are whole numbers and exact; then
//! `sum += sums * (scale of the weights * scale of the activations)` in float32, block by block, in
//! the same order for any number of rows at a time and from any form of the weights: a row's result
//! is the same to the last bit whatever is computed beside it.
#![expect(unsafe_code, reason = "vector instructions")]

use std::marker::PhantomData;

use super::layout::{BLOCK, LANES, Layout, QUAD, QUADS};
use super::lines;
use super::vector::{Task, Vector, written_out};

/// Where a product's weights come from: packed; as they are in the file; packed and then laid out
/// in bytes by [`Expand`].
pub(super) const PACKED: u8 = 0;
pub(super) const FILE: u8 = 1;
pub(super) const EXPANDED: u8 = 2;

/// A rounded row of activations: where its values, scales and sums begin.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub(super) values: *const i8,
    pub(super) scales: *const f32,
    pub(super) starts: *const i32,
    pub(super) mins: *const f32,
}

/// 16 rows of weights: `units` of them (of blocks of 32 columns where they are expanded).
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) units: usize,
    /// The values; or, in a file, the first row's first block.
    pub(super) values: *const u8,
    pub(super) scales: *const u8,
    /// Bytes from one row in the file to the next.
    pub(super) stride: usize,
}

/// The most rows of activations that packed weights are multiplied with as they are: for more they
/// are laid out as bytes first.
pub(super) const DIRECT: usize = 4;

/// True for types that are laid out as bytes for many rows of activations.
pub(super) const fn is_expanded<L: Layout>() -> bool {
    L::BITS < 8
}

/// Bytes of an expanded block's numbers and of its scales and mins.
#[inline(always)]
pub(super) fn expanded_bytes<L: Layout>() -> (usize, usize) {
    (QUADS * QUAD, L::PARTS * (1 + usize::from(L::MINS)) * LANES * size_of::<f32>())
}

/// The products of groups of 16 rows with `T` rows of activations.
///
/// What its `run` asks for: groups and rows are complete; there is room for the results.
pub(super) struct Tiles<'a, L, G, const T: usize, const FROM: u8> {
    /// Groups of rows, each with the place of its results in a row of them.
    pub(super) groups: G,
    pub(super) inputs: [Input; T],
    /// Where the rows of results begin.
    pub(super) outputs: [*mut f32; T],
    pub(super) layout: PhantomData<&'a L>,
}

impl<L: Layout, G: Iterator<Item = (Rows, usize)>, const T: usize, const FROM: u8> Task
    for Tiles<'_, L, G, T, FROM>
{
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // what nobody asks for is not compiled
        if const {
            T > V::MOST
                || match FROM {
                    FILE => !L::IN_FILE,
                    EXPANDED => !is_expanded::<L>(),
                    _ => is_expanded::<L>() && T > DIRECT,
                }
        } {
            unreachable!("{T} rows of activations, form {FROM}");
        }
        for (rows, place) in self.groups {
            // SAFETY: as the task says.
            unsafe {
                let sums = multiply::<V, L, T, FROM>(&rows, &self.inputs);
                for (sum, to) in sums.into_iter().zip(self.outputs) {
                    V::store_f32(to.add(place), sum);
                }
            }
        }
    }
}

/// The products of 16 rows.
///
/// # Safety
/// The CPU has the set; the rows and inputs are complete.
#[inline(always)]
unsafe fn multiply<V: Vector, L: Layout, const T: usize, const FROM: u8>(
    rows: &Rows,
    inputs: &[Input; T],
) -> [V::F; T] {
    // SAFETY: units and blocks are within the rows, as the caller says.
    unsafe {
        let mut sums = [V::zero(); T];
        // unknown to the compiler, so that it does not write the turns out
        let turns = std::hint::black_box(QUADS / L::PARTS / 2);
        for unit in 0..rows.units {
            match FROM {
                PACKED => {
                    let values = rows.values.add(unit * L::VALUES);
                    let [scales, mins] = L::scales::<V>(rows.scales.add(unit * L::SCALES));
                    let (scales, mins) = (scales.as_ref(), mins.as_ref());
                    for block in 0..L::UNIT / BLOCK {
                        let at = block * L::PARTS;
                        let last = at + L::PARTS - 1;
                        let (scale, min) = ([scales[at], scales[last]], [mins[at], mins[last]]);
                        let numbers = Packed::<L>(values.add(packed_at::<L>(block)), PhantomData);
                        let place = (unit * (L::UNIT / BLOCK) + block, turns);
                        add_block::<V, L, _, T>(&numbers, scale, min, inputs, place, &mut sums);
                    }
                }
                EXPANDED => {
                    let (value_bytes, scale_bytes) = expanded_bytes::<L>();
                    let numbers = Bytes(rows.values.add(unit * value_bytes));
                    let scales = rows.scales.add(unit * scale_bytes).cast::<f32>();
                    let last = (L::PARTS - 1) * LANES;
                    let scale = [V::load_f32(scales), V::load_f32(scales.add(last))];
                    let mut min = [V::zero(); 2];
                    if L::MINS {
                        let mins = scales.add(L::PARTS * LANES);
                        min = [V::load_f32(mins), V::load_f32(mins.add(last))];
                    }
                    let place = (unit, turns);
                    add_block::<V, L, _, T>(&numbers, scale, min, inputs, place, &mut sums);
                }
                _ => {
                    let from = rows.values.add(unit * L::UNIT_BYTES);
                    let scale = [V::gather_f16(from, rows.stride); 2];
                    let halves =
                        [V::rows(from.add(2), rows.stride), V::rows(from.add(18), rows.stride)];
                    let min = [V::zero(); 2];
                    let numbers = Turned::<V>(halves);
                    let place = (unit, turns);
                    add_block::<V, L, _, T>(&numbers, scale, min, inputs, place, &mut sums);
                }
            }
        }
        sums
    }
}

/// Bytes of a unit's packed values before those of a block.
#[inline(always)]
fn packed_at<L: Layout>(block: usize) -> usize {
    block * BLOCK * LANES * L::BITS / 8
}

/// The numbers of a block, as they are multiplied.
trait Numbers<V: Vector> {
    /// True where it takes no constant to find those of four columns.
    const BYTES: bool;

    /// Those of four columns.
    ///
    /// # Safety
    /// The CPU has the set; the block is there.
    unsafe fn four(&self, four: usize) -> V::I;
}

/// The numbers that bits stand for, plus 128 or signed.
const fn table<V: Vector, L: Layout>() -> Option<[u8; 16]> {
    let Some(mut table) = L::TABLE else { return None };
    let mut i = 0;
    while V::SIGNED && i < table.len() {
        table[i] ^= 0x80;
        i += 1;
    }
    Some(table)
}

/// Numbers as they are packed.
struct Packed<L>(*const u8, PhantomData<L>);

impl<V: Vector, L: Layout> Numbers<V> for Packed<L> {
    const BYTES: bool = L::BITS == 8;

    #[inline(always)]
    unsafe fn four(&self, four: usize) -> V::I {
        // SAFETY: as the caller says.
        unsafe {
            let number = lines::quad::<V>(self.0, L::BITS, four);
            match const { table::<V, L>() } {
                Some(table) => V::look_up(table, number),
                None => number,
            }
        }
    }
}

/// Numbers laid out as bytes.
struct Bytes(*const u8);

impl<V: Vector> Numbers<V> for Bytes {
    const BYTES: bool = true;

    #[inline(always)]
    unsafe fn four(&self, four: usize) -> V::I {
        // SAFETY: as the caller says.
        unsafe { V::load(self.0.add(four * QUAD)) }
    }
}

/// Signed bytes, turned.
struct Turned<V: Vector>([[V::I; 4]; 2]);

impl<V: Vector> Numbers<V> for Turned<V> {
    const BYTES: bool = false;

    #[inline(always)]
    unsafe fn four(&self, four: usize) -> V::I {
        let number = self.0[four / 4][four % 4];
        // SAFETY: as the caller says.
        if V::SIGNED { number } else { unsafe { V::xor(number, V::splat(0x80)) } }
    }
}

/// Adds the products of a block, the `at`-th of its rows, a part in `turns` turns of two fours.
///
/// # Safety
/// The CPU has the set; the inputs have such a block.
#[inline(always)]
unsafe fn add_block<V: Vector, L: Layout, N: Numbers<V>, const T: usize>(
    numbers: &N,
    scale: [V::F; 2],
    min: [V::F; 2],
    inputs: &[Input; T],
    (at, turns): (usize, usize),
    sums: &mut [V::F; T],
) {
    // SAFETY: as the caller says.
    unsafe {
        let mut dots = [[V::begin(None); 2]; T];
        for (dots, input) in dots.iter_mut().zip(inputs) {
            for (part, dots) in dots.iter_mut().enumerate().take(L::PARTS) {
                *dots = V::begin(start::<V, L>(input, at, part));
            }
        }
        let per_part = QUADS / L::PARTS;
        if V::IN_PAIRS && T.is_multiple_of(2) {
            for [first, last] in dots.as_chunks_mut::<2>().0 {
                for (first, last) in first.iter_mut().zip(last).take(L::PARTS) {
                    [*first, *last] = V::together([*first, *last]);
                }
            }
            written_out!(k in [0 2 4 6], {
                let weights = V::eight(
                    V::weights(numbers.four(k), L::VALUE_BITS),
                    V::weights(numbers.four(k + 1), L::VALUE_BITS),
                );
                let part = k / per_part;
                let pairs = dots.as_chunks_mut::<2>().0.iter_mut().zip(inputs.as_chunks::<2>().0);
                for ([first, last], [a, b]) in pairs {
                    let at = at * BLOCK + 4 * k;
                    let eights = [a.values.add(at), b.values.add(at)];
                    let sums = V::pair([first[part], last[part]], weights, eights);
                    [first[part], last[part]] = sums;
                }
            });
            for [first, last] in dots.as_chunks_mut::<2>().0 {
                for (first, last) in first.iter_mut().zip(last).take(L::PARTS) {
                    [*first, *last] = V::apart([*first, *last]);
                }
            }
        } else if L::PARTS <= V::IN_TURNS && N::BYTES && T > 1 {
            for part in 0..L::PARTS {
                for turn in 0..turns {
                    for last in [false, true] {
                        let k = part * per_part + 2 * turn + usize::from(last);
                        let weights = V::weights(numbers.four(k), L::VALUE_BITS);
                        for (dots, input) in dots.iter_mut().zip(inputs) {
                            let four = V::four(input.values.add(at * BLOCK + 4 * k));
                            let dots = &mut dots[part];
                            *dots = V::turn(*dots, weights, four, L::VALUE_BITS, last);
                        }
                    }
                }
                for dots in &mut dots {
                    dots[part] = V::end_of_turns(dots[part], L::VALUE_BITS);
                }
            }
        } else {
            // so that every four's shifts are constants
            written_out!(k in [0 1 2 3 4 5 6 7], {
                let weights = V::weights(numbers.four(k), L::VALUE_BITS);
                for (dots, input) in dots.iter_mut().zip(inputs) {
                    let four = V::four(input.values.add(at * BLOCK + 4 * k));
                    let dots = &mut dots[k / per_part];
                    *dots = V::step(*dots, weights, four, L::VALUE_BITS, k % per_part, per_part);
                }
            });
        }
        for ((dots, input), sum) in dots.iter().zip(inputs).zip(sums) {
            let factor = V::repeat(input.scales.add(at));
            let first = V::float(V::end(dots[0], start::<V, L>(input, at, 0)));
            if L::PARTS == 1 {
                *sum = V::mul_add(first, V::mul(scale[0], factor), *sum);
            } else {
                let last = V::float(V::end(dots[1], start::<V, L>(input, at, 1)));
                let both = V::mul_add(last, scale[1], V::mul(first, scale[0]));
                *sum = V::mul_add(both, factor, *sum);
            }
            if L::MINS {
                let mins = input.mins.add(at * L::PARTS);
                *sum = V::mul_add(min[0], V::repeat(mins), *sum);
                if L::PARTS > 1 {
                    *sum = V::mul_add(min[1], V::repeat(mins.add(1)), *sum);
                }
            }
        }
    }
}

/// What the sums of a part of a block begin at, if not at 0.
///
/// # Safety
/// The input has such a block.
#[inline(always)]
unsafe fn start<V: Vector, L: Layout>(input: &Input, at: usize, part: usize) -> Option<*const i32> {
    if L::OFFSET == 0 || (V::SIGNED && L::VALUE_BITS == 8) {
        return None;
    }
    // SAFETY: as the caller says.
    Some(unsafe { input.starts.add(at * L::PARTS + part) })
}

/// Lays packed rows out as bytes and float32 scales: worth it for many rows of activations.
///
/// What its `run` asks for: the rows are complete, and there is room of [`expanded_bytes`] for each
/// block.
pub(super) struct Expand<'a, L> {
    pub(super) rows: Rows,
    pub(super) values: *mut u8,
    pub(super) scales: *mut f32,
    pub(super) layout: PhantomData<&'a L>,
}

impl<L: Layout> Task for Expand<'_, L> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (value_bytes, scale_bytes) = expanded_bytes::<L>();
        for unit in 0..self.rows.units {
            // SAFETY: as the task says.
            unsafe {
                let values = self.rows.values.add(unit * L::VALUES);
                let [scales, mins] = L::scales::<V>(self.rows.scales.add(unit * L::SCALES));
                for block in 0..L::UNIT / BLOCK {
                    let place = unit * (L::UNIT / BLOCK) + block;
                    let numbers = Packed::<L>(values.add(packed_at::<L>(block)), PhantomData);
                    let to = self.values.add(place * value_bytes);
                    written_out!(k in [0 1 2 3 4 5 6 7], {
                        V::store(to.add(k * QUAD), Numbers::<V>::four(&numbers, k));
                    });
                    let to = self.scales.byte_add(place * scale_bytes);
                    for part in 0..L::PARTS {
                        let at = block * L::PARTS + part;
                        V::store_f32(to.add(part * LANES), scales.as_ref()[at]);
                        if L::MINS {
                            V::store_f32(to.add((L::PARTS + part) * LANES), mins.as_ref()[at]);
                        }
                    }
                }
            }
        }
    }
}
