//! Attention of bfloat16 by the instruction that adds two products at a time (AVX-512 BF16).
//!
//! Scores lie key by key, a query to each lane: what is taken over keys (the largest, the sum) needs
//! no sum across lanes, and a row of keys or values is a factor as it lies in memory. Softmax and
//! sums are float32; weights and the gradients of scores are rounded to bfloat16 before they are
//! multiplied, as libtorch's attention does.
//!
//! # Limits
//! 64 queries of 64 numbers beside 250 keys: 2 products of 2 MFLOP forward, 5 backward, at 128
//! operations per cycle; exponentials take about a fifth of that.

use std::arch::x86_64::*;

use half::bf16;
use tch::{Kind, TchError, Tensor};

use super::keys::gradients_of_keys;
use super::product::{LANES, exp, paired, product, rounded};
use super::shape::{Saved, Shape, Task};
use crate::kernel::memory::{Rows, empty, read, write};

/// Queries at a time: tokens times the query heads that share a key and value head.
const COLUMNS: usize = 64;
/// Registers of a row of scores.
const REGISTERS: usize = COLUMNS / LANES;

/// Whether heads of this width, so many to a key and value head, are computed here.
pub(super) fn fits(head_dim: usize, group: usize) -> bool {
    static HAS: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
    });
    *HAS && head_dim > 0 && head_dim.is_multiple_of(LANES) && (1..=COLUMNS).contains(&group)
}

/// One thread's matrices.
#[derive(Default)]
struct Buffers {
    /// Keys and values as they are, `[keys, head_dim / 2]` pairs.
    keys: Vec<u32>,
    values: Vec<u32>,
    /// Keys (backward) or values (forward) turned, `[head_dim, keys / 2]` pairs of keys.
    turned: Vec<u32>,
    /// Queries and the output's gradient turned, `[head_dim / 2, COLUMNS]`.
    query: Vec<u32>,
    d_out: Vec<u32>,
    /// Pairs of queries, `[COLUMNS / 2, head_dim]`.
    query_pairs: Vec<u32>,
    d_out_pairs: Vec<u32>,
    /// `[keys, COLUMNS]`
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    /// Weights, or gradients of scores, in pairs of keys, `[keys / 2, COLUMNS]`.
    key_pairs: Vec<u32>,
    /// Weights, and gradients of scores, in pairs of queries, `[keys, COLUMNS / 2]`.
    weights: Vec<u32>,
    slopes: Vec<u32>,
    /// `[head_dim, COLUMNS]`
    out: Vec<f32>,
    /// Of keys and values, `[keys, head_dim]`.
    d_key: Vec<f32>,
    d_value: Vec<f32>,
}

/// Some tokens of a task, with all query heads that share its keys.
struct Block {
    /// Rows of `[tokens, heads]`, those of a token side by side.
    first_row: usize,
    heads: usize,
    group: usize,
    /// Queries, a token's beside one another.
    columns: usize,
    /// Keys that all of them see, and keys that the last token sees.
    all_see: usize,
    end: usize,
}

impl Block {
    /// The blocks of a task.
    fn all(shape: &Shape, task: &Task) -> impl Iterator<Item = Self> {
        let (group, heads) = (shape.group(), shape.heads);
        let (start, length, before) = (task.tokens.start, task.tokens.len(), task.before.len());
        let first_of = task.kv_head * group;
        let tokens = COLUMNS / group;
        (0..length).step_by(tokens).map(move |first| {
            let count = tokens.min(length - first);
            Self {
                first_row: (start + first) * heads + first_of,
                heads,
                group,
                columns: count * group,
                all_see: before + first + 1,
                end: before + first + count,
            }
        })
    }

    /// The row of `[tokens, heads]` that a column is.
    fn row(&self, column: usize) -> usize {
        self.first_row + column / self.group * self.heads + column % self.group
    }

    /// The columns that see a key, 64 bits.
    fn seen(&self, key: usize) -> u64 {
        let hidden = (key + 1).saturating_sub(self.all_see) * self.group;
        let there = u64::MAX >> (COLUMNS - self.columns);
        if hidden >= COLUMNS { 0 } else { there & (u64::MAX << hidden) }
    }
}

fn sized<T: Copy + Default>(buffer: &mut Vec<T>, size: usize) {
    if buffer.len() < size {
        buffer.resize(size, T::default());
    }
}

/// Pairs of neighbours of a row, as dwords.
fn neighbours(row: &[bf16]) -> impl Iterator<Item = u32> {
    row.as_chunks::<2>().0.iter().map(|&[a, b]| both(a, b))
}

fn both(low: bf16, high: bf16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

impl Buffers {
    /// Rows of keys or values, a pair of zeros after an odd number.
    fn gather(to: &mut Vec<u32>, from: &[bf16], width: usize, rows: impl Iterator<Item = usize>) {
        to.clear();
        rows.for_each(|row| to.extend(neighbours(&from[row * width..(row + 1) * width])));
    }

    /// Turns rows `[count, width]`, given as pairs of neighbours, to `[width, count / 2]` pairs of rows.
    fn turn(to: &mut Vec<u32>, rows: &[u32], count: usize, width: usize) {
        let pairs = count.div_ceil(2);
        sized(to, width * pairs);
        let half = width / 2;
        for i in 0..pairs {
            let low = &rows[2 * i * half..(2 * i + 1) * half];
            let high = rows.get((2 * i + 1) * half..(2 * i + 2) * half).unwrap_or_default();
            for (x, &a) in low.iter().enumerate() {
                let b = high.get(x).copied().unwrap_or_default();
                to[2 * x * pairs + i] = a & 0xffff | b << 16;
                to[(2 * x + 1) * pairs + i] = a >> 16 | b & 0xffff_0000;
            }
        }
    }

    /// A block's rows turned, `[width / 2, COLUMNS]`, zeros where there is no column.
    fn columns(to: &mut Vec<u32>, from: &[bf16], width: usize, block: &Block) {
        sized(to, width / 2 * COLUMNS);
        if block.columns < COLUMNS {
            to.fill(0);
        }
        for column in 0..block.columns {
            let row = block.row(column);
            let pairs = neighbours(&from[row * width..(row + 1) * width]);
            pairs.enumerate().for_each(|(x, pair)| to[x * COLUMNS + column] = pair);
        }
    }

    /// A block's rows as pairs of rows, `[COLUMNS / 2, width]`, zeros where there is none.
    fn row_pairs(to: &mut Vec<u32>, from: &[bf16], width: usize, block: &Block) {
        sized(to, COLUMNS / 2 * width);
        let row = |column: usize| match column < block.columns {
            true => &from[block.row(column) * width..][..width],
            false => &[],
        };
        for (i, to) in to.chunks_exact_mut(width).take(COLUMNS / 2).enumerate() {
            match (row(2 * i), row(2 * i + 1)) {
                ([], _) => to.fill(0),
                (low, []) => {
                    to.iter_mut().zip(low).for_each(|(to, &low)| *to = both(low, bf16::ZERO))
                }
                (low, high) => {
                    let pairs = low.iter().zip(high);
                    to.iter_mut().zip(pairs).for_each(|(to, (&low, &high))| *to = both(low, high));
                }
            }
        }
    }
}

/// The output, and the logarithm of each softmax's sum, float32 `[tokens, heads]`.
pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &Shape,
) -> Result<(Tensor, Tensor), TchError> {
    let (d, kv_heads) = (shape.head_dim, shape.kv_heads);
    let mut out = empty(&q.size(), Kind::BFloat16)?;
    let mut sums = empty(&[q.numel() as i64 / d.max(1) as i64], Kind::Float)?;
    let (q, k, v): (&[bf16], &[bf16], &[bf16]) = (read(q)?, read(k)?, read(v)?);
    let out_to = Rows::new(write::<bf16>(&mut out)?, d);
    let sums_to = Rows::new(write::<f32>(&mut sums)?, 1);
    shape.on_all_threads(Buffers::default, |task, b: &mut Buffers| {
        let all = task.key_count();
        let rows = || task.keys().map(|token| token * kv_heads + task.kv_head);
        Buffers::gather(&mut b.keys, k, d, rows());
        Buffers::gather(&mut b.values, v, d, rows());
        Buffers::turn(&mut b.turned, &b.values, all, d);
        sized(&mut b.scores, all * COLUMNS);
        sized(&mut b.key_pairs, all.div_ceil(2) * COLUMNS);
        sized(&mut b.out, d * COLUMNS);
        for block in Block::all(shape, task) {
            Buffers::columns(&mut b.query, q, d, &block);
            let mut logs = [0.0; COLUMNS];
            // SAFETY: the CPU has the features, or this is not called (`fits`).
            unsafe {
                product(
                    &mut b.scores,
                    (&b.keys, d / 2),
                    &b.query,
                    (block.end, d / 2, COLUMNS),
                    false,
                );
                let inverses =
                    softmax(&mut b.scores, &mut b.key_pairs, &block, shape.scale(), &mut logs);
                let (pairs, stride) = (block.end.div_ceil(2), all.div_ceil(2));
                product(&mut b.out, (&b.turned, stride), &b.key_pairs, (d, pairs, COLUMNS), false);
                turned_back(&mut b.out, d, &inverses);
            }
            let pairs: &[u32] = bytemuck::cast_slice(&b.out);
            for (column, log) in logs.into_iter().enumerate().take(block.columns) {
                let row = block.row(column);
                // SAFETY: a token's head belongs to one task, and to one of its blocks.
                unsafe {
                    sums_to.take(row..row + 1).fill(log);
                    column_to_row(pairs, column, out_to.take(row..row + 1));
                }
            }
        }
    });
    Ok((out, sums))
}

/// A column of `[width / 2, COLUMNS]` pairs as a row.
fn column_to_row(pairs: &[u32], column: usize, row: &mut [bf16]) {
    for (to, pairs) in row.as_chunks_mut::<2>().0.iter_mut().zip(pairs.chunks_exact(COLUMNS)) {
        let pair = pairs[column];
        *to = [bf16::from_bits(pair as u16), bf16::from_bits((pair >> 16) as u16)];
    }
}

/// Rows `[width, COLUMNS]`, each column times a factor, to pairs of rows in bfloat16
/// `[width / 2, COLUMNS]` in the first half of their memory.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn turned_back(rows: &mut [f32], width: usize, factors: &[f32; COLUMNS]) {
    assert!(rows.len() >= width * COLUMNS, "room");
    let rows = rows.as_mut_ptr();
    for pair in 0..width / 2 {
        for at in (0..COLUMNS).step_by(LANES) {
            // SAFETY: of the rows and columns that are there; what is written was read before.
            unsafe {
                let factor = _mm512_loadu_ps(factors.as_ptr().add(at));
                let low = _mm512_loadu_ps(rows.add(2 * pair * COLUMNS + at));
                let high = _mm512_loadu_ps(rows.add((2 * pair + 1) * COLUMNS + at));
                let both = paired(_mm512_mul_ps(low, factor), _mm512_mul_ps(high, factor));
                _mm512_storeu_si512(rows.add(pair * COLUMNS + at).cast(), both);
            }
        }
    }
}

/// Scores `[keys, COLUMNS]` to weights that are not yet divided by their sums, in pairs of keys; gives
/// what they are divided by, turned over, and the logarithms of the sums of exponentials.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn softmax(
    scores: &mut [f32],
    pairs: &mut [u32],
    block: &Block,
    scale: f32,
    logs: &mut [f32; COLUMNS],
) -> [f32; COLUMNS] {
    let end = block.end;
    assert!(scores.len() >= end * COLUMNS && pairs.len() >= end.div_ceil(2) * COLUMNS, "room");
    let scale = _mm512_set1_ps(scale);
    let mut inverses = [0.0f32; COLUMNS];
    for register in 0..REGISTERS {
        let at = register * LANES;
        let seen = |key: usize| (block.seen(key) >> at) as u16;
        let score = |key: usize| {
            // SAFETY: a row that is there, as asserted.
            unsafe { _mm512_loadu_ps(scores.as_ptr().add(key * COLUMNS + at)) }
        };
        let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
        for key in 0..end {
            most = _mm512_mask_max_ps(most, seen(key), most, score(key));
        }
        // columns that are not there see nothing
        let there = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(most, _mm512_set1_ps(f32::NEG_INFINITY));
        let most = _mm512_maskz_mul_ps(there, most, scale);
        let mut sum = _mm512_setzero_ps();
        let weight = |key: usize| match key < end {
            true => {
                let x = _mm512_fmsub_ps(score(key), scale, most);
                _mm512_maskz_mov_ps(seen(key), exp(x))
            }
            false => _mm512_setzero_ps(),
        };
        for key in (0..end).step_by(2) {
            let (low, high) = (weight(key), weight(key + 1));
            sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
            // SAFETY: a row that is there, as asserted.
            unsafe {
                let to = pairs.as_mut_ptr().add(key / 2 * COLUMNS + at);
                _mm512_storeu_si512(to.cast(), paired(low, high));
            }
        }
        let mut one = [[0.0f32; LANES]; 2];
        // SAFETY: 16 floats each.
        unsafe {
            _mm512_storeu_ps(one[0].as_mut_ptr(), sum);
            _mm512_storeu_ps(one[1].as_mut_ptr(), most);
        }
        for lane in (0..LANES).filter(|&lane| at + lane < block.columns) {
            inverses[at + lane] = 1.0 / one[0][lane];
            logs[at + lane] = one[1][lane] + one[0][lane].ln();
        }
    }
    inverses
}

/// What a block's columns have for the gradient of a softmax.
struct Columns {
    /// Logarithms of the sums of exponentials.
    logs: [f32; COLUMNS],
    /// Sums of the output times its gradient.
    along: [f32; COLUMNS],
}

/// Scores and gradients of weights, `[keys, COLUMNS]`, to weights and gradients of scores, in pairs of
/// queries, and the latter in pairs of keys too.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn slopes(b: &mut Buffers, block: &Block, columns: &Columns, scale: f32) {
    let (end, half) = (block.end, COLUMNS / 2);
    assert!(b.scores.len() >= end * COLUMNS && b.d_scores.len() >= end * COLUMNS, "scores");
    assert!(b.weights.len() >= end * half && b.slopes.len() >= end * half, "pairs of queries");
    assert!(b.key_pairs.len() >= end.div_ceil(2) * COLUMNS, "pairs of keys");
    let scale = _mm512_set1_ps(scale);
    for at in (0..COLUMNS).step_by(2 * LANES) {
        // SAFETY: rows that are there, as asserted, and 64 numbers of columns.
        unsafe {
            let of = |numbers: &[f32; COLUMNS]| {
                [0, LANES].map(|more| _mm512_loadu_ps(numbers.as_ptr().add(at + more)))
            };
            let (logs, along) = (of(&columns.logs), of(&columns.along));
            for pair in 0..end.div_ceil(2) {
                let mut both = [[_mm512_setzero_ps(); 2]; 2];
                for (key, slopes) in (2 * pair..end).zip(&mut both) {
                    let seen = block.seen(key) >> at;
                    let mut weights = [_mm512_setzero_ps(); 2];
                    for i in 0..2 {
                        let place = key * COLUMNS + at + i * LANES;
                        let seen = (seen >> (i * LANES)) as u16;
                        let score = _mm512_loadu_ps(b.scores.as_ptr().add(place));
                        let d_weight = _mm512_loadu_ps(b.d_scores.as_ptr().add(place));
                        let weight = exp(_mm512_fmsub_ps(score, scale, logs[i]));
                        weights[i] = _mm512_maskz_mov_ps(seen, weight);
                        let slope = _mm512_mul_ps(weight, _mm512_sub_ps(d_weight, along[i]));
                        slopes[i] = _mm512_maskz_mul_ps(seen, slope, scale);
                    }
                    let place = key * half + at / 2;
                    let to = b.weights.as_mut_ptr().add(place);
                    _mm512_storeu_si512(to.cast(), rounded(weights[0], weights[1]));
                    let to = b.slopes.as_mut_ptr().add(place);
                    _mm512_storeu_si512(to.cast(), rounded(slopes[0], slopes[1]));
                }
                let [first, second] = both;
                for (i, (first, second)) in first.into_iter().zip(second).enumerate() {
                    let to = b.key_pairs.as_mut_ptr().add(pair * COLUMNS + at + i * LANES);
                    _mm512_storeu_si512(to.cast(), paired(first, second));
                }
            }
        }
    }
}

/// Gradients of query, key and value: dV = P' dO, dS = P * (dO V' - D) * scale,
/// dQ = dS K, dK = dS' Q, with P the softmax and D the sums of dO * O.
pub(super) fn backward(
    saved: &Saved<'_>,
    d_out: &Tensor,
    shape: &Shape,
) -> Result<[Tensor; 3], TchError> {
    let (d, kv_heads) = (shape.head_dim, shape.kv_heads);
    let mut dq = empty(&saved.q.size(), Kind::BFloat16)?;
    let (q, k, v): (&[bf16], &[bf16], &[bf16]) = (read(saved.q)?, read(saved.k)?, read(saved.v)?);
    let (out, d_out): (&[bf16], &[bf16]) = (read(saved.out)?, read(d_out)?);
    let sums: &[f32] = read(saved.sums)?;
    let dq_to = Rows::new(write::<bf16>(&mut dq)?, d);
    let [dk, dv] = gradients_of_keys::<bf16>(saved, shape, |gradients| {
        shape.on_all_threads(Buffers::default, |task, b: &mut Buffers| {
            let all = task.key_count();
            let rows = || task.keys().map(|token| token * kv_heads + task.kv_head);
            Buffers::gather(&mut b.keys, k, d, rows());
            Buffers::gather(&mut b.values, v, d, rows());
            Buffers::turn(&mut b.turned, &b.keys, all, d);
            for scores in [&mut b.scores, &mut b.d_scores] {
                sized(scores, all * COLUMNS);
            }
            for pairs in [&mut b.weights, &mut b.slopes] {
                sized(pairs, all * COLUMNS / 2);
            }
            sized(&mut b.key_pairs, all.div_ceil(2) * COLUMNS);
            sized(&mut b.out, d * COLUMNS);
            for sum in [&mut b.d_key, &mut b.d_value] {
                sized(sum, all * d);
                sum[..all * d].fill(0.0);
            }
            for block in Block::all(shape, task) {
                Buffers::columns(&mut b.query, q, d, &block);
                Buffers::columns(&mut b.d_out, d_out, d, &block);
                Buffers::row_pairs(&mut b.query_pairs, q, d, &block);
                Buffers::row_pairs(&mut b.d_out_pairs, d_out, d, &block);
                let mut columns = Columns { logs: [0.0; COLUMNS], along: [0.0; COLUMNS] };
                for column in 0..block.columns {
                    let row = block.row(column);
                    let at = row * d..(row + 1) * d;
                    columns.logs[column] = sums[row];
                    columns.along[column] = dot(&out[at.clone()], &d_out[at]);
                }
                let (end, half, wide) = (block.end, COLUMNS / 2, COLUMNS);
                let stride = all.div_ceil(2);
                // SAFETY: the CPU has the features, or this is not called (`fits`).
                unsafe {
                    product(&mut b.scores, (&b.keys, d / 2), &b.query, (end, d / 2, wide), false);
                    product(
                        &mut b.d_scores,
                        (&b.values, d / 2),
                        &b.d_out,
                        (end, d / 2, wide),
                        false,
                    );
                    slopes(b, &block, &columns, shape.scale());
                    product(
                        &mut b.d_value,
                        (&b.weights, half),
                        &b.d_out_pairs,
                        (end, half, d),
                        true,
                    );
                    product(&mut b.d_key, (&b.slopes, half), &b.query_pairs, (end, half, d), true);
                    let size = (d, end.div_ceil(2), wide);
                    product(&mut b.out, (&b.turned, stride), &b.key_pairs, size, false);
                    turned_back(&mut b.out, d, &[1.0; COLUMNS]);
                }
                let pairs: &[u32] = bytemuck::cast_slice(&b.out);
                for column in 0..block.columns {
                    let row = block.row(column);
                    // SAFETY: a token's head belongs to one task, and to one of its blocks.
                    column_to_row(pairs, column, unsafe { dq_to.take(row..row + 1) });
                }
            }
            gradients.put(task, &b.d_key, &b.d_value);
        });
    })?;
    Ok([dq, dk, dv])
}

/// Sum of products, in a fixed order.
fn dot(a: &[bf16], b: &[bf16]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            sums[lane] += a[lane].to_f32() * b[lane].to_f32();
        }
    }
    sums.iter().sum()
}
