//! Products of bfloat16 pairs by AVX-512 BF16, and what is computed beside them in its registers.
//!
//! Rows of `a`, whose neighbours in the inner dimension are pairs, times `b`, where the two numbers
//! of a pair of rows lie in one dword: the instruction adds both products to one float32.

use std::arch::x86_64::*;

/// Floats of a register.
pub(super) const LANES: usize = 16;

/// `b [inner, columns]`, `to [rows, columns]` and `a [rows, inner]` with rows `stride` apart: `to`
/// becomes a * b, or that is added to it; inner counts pairs, `columns` is a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn product(
    to: &mut [f32],
    a: (&[u32], usize),
    b: &[u32],
    (rows, inner, columns): (usize, usize, usize),
    add: bool,
) {
    let (a, stride) = a;
    assert!(columns.is_multiple_of(LANES), "{columns} columns");
    assert!(to.len() >= rows * columns && b.len() >= inner * columns, "room");
    assert!(rows == 0 || a.len() >= (rows - 1) * stride + inner, "rows of a");
    let mut column = 0;
    while column < columns {
        let four = columns - column >= 4 * LANES;
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            // SAFETY: tiles of rows and columns that are there, as asserted.
            unsafe {
                let to = to.as_mut_ptr().add(row * columns + column);
                let a = (a.as_ptr().add(row * stride), stride);
                let b = (b.as_ptr().add(column), columns);
                row += match (four, left) {
                    (true, 6..) => tile::<6, 4>(to, a, b, inner, add),
                    (true, 2..) => tile::<2, 4>(to, a, b, inner, add),
                    (true, _) => tile::<1, 4>(to, a, b, inner, add),
                    (false, 6..) => tile::<6, 1>(to, a, b, inner, add),
                    (false, _) => tile::<1, 1>(to, a, b, inner, add),
                };
            }
        }
        column += if four { 4 * LANES } else { LANES };
    }
}

/// A tile of [`product`]; gives its rows.
///
/// # Safety
/// All of it lies in the matrices.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const ROWS: usize, const WIDE: usize>(
    to: *mut f32,
    (a, stride): (*const u32, usize),
    (b, columns): (*const u32, usize),
    inner: usize,
    add: bool,
) -> usize {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); WIDE]; ROWS];
        if add {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(to.add(i * columns + j * LANES));
                }
            }
        }
        for k in 0..inner {
            let mut right = [_mm512_setzero_si512(); WIDE];
            for (j, right) in right.iter_mut().enumerate() {
                *right = _mm512_loadu_si512(b.add(k * columns + j * LANES).cast());
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_epi32(*a.add(i * stride + k) as i32);
                for (sum, right) in sums.iter_mut().zip(right) {
                    let (left, right) = (pairs_of(left), pairs_of(right));
                    *sum = _mm512_dpbf16_ps(*sum, left, right);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(to.add(i * columns + j * LANES), *sum);
            }
        }
    }
    ROWS
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs_of(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of any value.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}

/// Two registers rounded to bfloat16, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 64 bytes of any value.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Two registers rounded to bfloat16, number by number in one dword.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn paired(low: __m512, high: __m512) -> __m512i {
    let order = {
        let mut order = [0u16; 32];
        for (i, at) in order.iter_mut().enumerate() {
            *at = (i / 2 + i % 2 * 16) as u16;
        }
        order
    };
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    _mm512_permutexvar_epi16(order, rounded(low, high))
}

/// e^x of x at most 88, to 2 units in the last place; the polynomial of `element::exp`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp(x: __m512) -> __m512 {
    let all = _mm512_set1_ps;
    let n = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, all(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, all(355.0 / 512.0), x);
    let r = _mm512_fnmadd_ps(n, all(-2.121_944_4e-4), r);
    let mut p = all(1.0 / 5040.0);
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, r, all(factor));
    }
    _mm512_scalef_ps(p, n)
}
