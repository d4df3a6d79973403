//! float32 matrix products, and the linear layer made of three of them.
//!
//! The products themselves are the `gemm` crate's: on a server CPU with AVX-512, one thread, sizes
//! of minimind2-small, 150 to 220 GFLOP/s, MKL 125 to 171.
#![expect(unsafe_code, reason = "the gemm crate takes pointers; threads write rows of their own")]

use std::ops::Range;

use tch::{Kind, TchError, Tensor};

use super::memory::{Rows, empty, read, span, write};
use super::parallel::parallel;
use crate::kernel::autograd::differentiable;

/// A matrix in a slice: element (i, j) lies at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` times `columns` values, row-major.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a {rows} x {columns} matrix");
        Self { values, rows, columns, row: columns, column: 1 }
    }

    /// The transposed matrix, over the same values.
    pub(super) fn transposed(self) -> Self {
        let Self { values, rows, columns, row, column } = self;
        Self { values, rows: columns, columns: rows, row: column, column: row }
    }

    /// Some of its rows.
    pub(super) fn cut_rows(self, rows: Range<usize>) -> Self {
        self.cut(rows, 0..self.columns)
    }

    /// Some of its columns.
    pub(super) fn cut_columns(self, columns: Range<usize>) -> Self {
        self.cut(0..self.rows, columns)
    }

    fn cut(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        if rows.is_empty() || columns.is_empty() {
            return Self { values: &[], rows: rows.len(), columns: columns.len(), ..self };
        }
        let first = rows.start * self.row + columns.start * self.column;
        let values = &self.values[first..];
        Self { values, rows: rows.len(), columns: columns.len(), ..self }
    }
}

/// `to [a.rows, b.columns]`, row-major with rows `stride` apart, becomes `scale` * a * b, or that
/// is added to it.
pub(super) fn matmul(
    to: &mut [f32],
    stride: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    add: bool,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions");
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= stride && to.len() >= (m - 1) * stride + n, "{m} x {n} at {stride}");
    let end = |x: &Matrix<'_>| match x.rows * x.columns {
        0 => 0,
        _ => (x.rows - 1) * x.row + (x.columns - 1) * x.column + 1,
    };
    assert!(a.values.len() >= end(&a) && b.values.len() >= end(&b), "matrices in their slices");
    // SAFETY: every element that the strides reach lies in its slice (asserted above); `to` is
    // borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The product on all threads, whole rows of `to` to each.
fn matmul_on_all_threads(to: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    let (rows, width) = (a.rows, b.columns);
    let threads = tch::get_num_threads().max(1) as usize;
    // whole register tiles to each thread
    let share = rows.div_ceil(threads).next_multiple_of(16);
    let to = Rows::new(to, width);
    parallel(rows.div_ceil(share.max(1)), 1, |range| {
        let rows = range.start * share..(range.end * share).min(rows);
        // SAFETY: ranges do not overlap.
        let to = unsafe { to.take(rows.clone()) };
        matmul(to, width, a.cut(rows, 0..a.columns), b, 1.0, add);
    });
}

/// Bias-free linear layers over the same input, computed in float32: `x [.., in]` to `[.., out]` in
/// its type for each of the weights `[out, in]`, float32. The input's gradient is summed as it is
/// made, not in passes of its own.
pub(crate) fn linears(x: &Tensor, weights: &[&Tensor]) -> Result<Vec<Tensor>, TchError> {
    let (size, kind) = (x.size(), x.kind());
    let inputs = size.last().copied().unwrap_or_default();
    let wide = |t: &Tensor, width| t.f_reshape([-1, width])?.f_contiguous()?.f_to_kind(Kind::Float);
    let flat = x.f_detach()?.f_reshape([-1, inputs])?.f_contiguous()?;
    let plain = weights.iter().map(|weight| weight.f_detach()?.f_contiguous());
    let plain = plain.collect::<Result<Vec<_>, TchError>>()?;
    let x_wide = wide(&flat, inputs)?;
    let mut outputs = Vec::with_capacity(weights.len());
    for weight in &plain {
        let mut to = size.clone();
        if let Some(last) = to.last_mut() {
            *last = weight.size2()?.0;
        }
        outputs.push(made(&to, matrix(&x_wide)?, matrix(weight)?.transposed())?.f_to_kind(kind)?);
    }
    drop(x_wide);
    let given: Vec<&Tensor> = [x].into_iter().chain(weights.iter().copied()).collect();
    let results: Vec<&Tensor> = outputs.iter().collect();
    differentiable(&given, &results, move |given, wanted| {
        let x_wide = match wanted[1..].contains(&true) {
            true => Some(wide(&flat, inputs)?),
            false => None,
        };
        let mut of_x: Option<Tensor> = None;
        let mut of_weights = Vec::with_capacity(plain.len());
        for ((dy, weight), wanted_weight) in given.iter().zip(&plain).zip(&wanted[1..]) {
            let Some(dy) = dy else {
                of_weights.push(None);
                continue;
            };
            let outputs = weight.size2()?.0;
            let dy = wide(dy, outputs)?;
            match &mut of_x {
                _ if !wanted[0] => {}
                Some(sum) => {
                    matmul_on_all_threads(write(sum)?, matrix(&dy)?, matrix(weight)?, true);
                }
                none => *none = Some(made(&size, matrix(&dy)?, matrix(weight)?)?),
            }
            of_weights.push(match x_wide.as_ref().filter(|_| *wanted_weight) {
                Some(x) => Some(made(&[outputs, inputs], matrix(&dy)?.transposed(), matrix(x)?)?),
                None => None,
            });
        }
        let of_x = of_x.map(|of_x| of_x.f_to_kind(kind)).transpose()?;
        Ok([of_x].into_iter().chain(of_weights).collect())
    })?;
    Ok(outputs)
}

/// One of them.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    let none = || TchError::Torch("linear: expected one output, found none".into());
    linears(x, &[weight])?.pop().ok_or_else(none)
}

/// a `[m, k]` times b `[k, n]`, both float32 with any strides, without automatic differentiation.
pub(crate) fn mm(a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    made(&[a.size2()?.0, b.size2()?.1], strided(a)?, strided(b)?)
}

/// Adds a times b to `to [m, n]`, which must be contiguous.
pub(crate) fn add_mm(to: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), TchError> {
    matmul_on_all_threads(write(to)?, strided(a)?, strided(b)?, true);
    Ok(())
}

/// A float32 tensor of two dimensions as it lies in memory.
fn strided(tensor: &Tensor) -> Result<Matrix<'_>, TchError> {
    let (rows, columns) = tensor.size2()?;
    let stride = |i: usize| tensor.stride()[i] as usize;
    let (rows, columns) = (rows as usize, columns as usize);
    Ok(Matrix { values: span(tensor)?, rows, columns, row: stride(0), column: stride(1) })
}

fn matrix(tensor: &Tensor) -> Result<Matrix<'_>, TchError> {
    let (rows, columns) = tensor.size2()?;
    Ok(Matrix::new(read(tensor)?, rows as usize, columns as usize))
}

fn made(size: &[i64], a: Matrix<'_>, b: Matrix<'_>) -> Result<Tensor, TchError> {
    let mut to = empty(size, Kind::Float)?;
    matmul_on_all_threads(write(&mut to)?, a, b, false);
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::super::memory::testing::{close, gradients, random};
    use super::*;

    #[test]
    fn linear_and_its_gradients_equal_libtorchs() {
        for (tokens, inputs, outputs) in [(70, 96, 130), (1, 64, 3), (257, 17, 65)] {
            let (x, w) = (random(&[2, tokens, inputs], 1), random(&[outputs, inputs], 2));
            let up = random(&[2, tokens, outputs], 3);
            let ours = gradients(&[&x, &w], &up, |t| linear(&t[0], &t[1]).expect("linear"));
            let theirs = gradients(&[&x, &w], &up, |t| t[0].linear(&t[1], None::<Tensor>));
            close(&ours, &theirs, 2e-6); // sums in another order

            let x = x.to_kind(Kind::BFloat16);
            let ours = gradients(&[&x, &w], &up, |t| linear(&t[0], &t[1]).expect("linear"));
            let theirs = gradients(&[&x, &w], &up, |t| {
                t[0].linear(&t[1].to_kind(Kind::BFloat16), None::<Tensor>)
            });
            close(&ours, &theirs, 2e-2); // libtorch rounds the weight to 8 bits too
        }
    }

    #[test]
    fn layers_over_one_input_equal_libtorchs_also_where_some_are_not_used() {
        let (x, up) = (random(&[2, 70, 96], 1), random(&[2, 70, 130], 3));
        let (a, b, c) = (random(&[130, 96], 2), random(&[3, 96], 4), random(&[65, 96], 5));
        let loss = |t: &[Tensor]| &t[0] + t[1].sum_dim_intlist(-1, true, Kind::Float);
        let inputs = [&x, &a, &b, &c];
        let ours = gradients(&inputs, &up, |t| {
            loss(&linears(&t[0], &[&t[1], &t[3], &t[2]]).expect("linears"))
                + (&t[2] * 0.0).sum(Kind::Float)
        });
        let theirs = gradients(&inputs, &up, |t| {
            loss(&[&t[1], &t[3]].map(|w| t[0].linear(w, None::<Tensor>)))
                + (&t[2] * 0.0).sum(Kind::Float)
        });
        close(&ours[..3], &theirs[..3], 2e-6); // sums in another order
        close(&ours[4..], &theirs[4..], 2e-6);
    }

    #[test]
    fn no_tokens_give_no_rows_and_a_gradient_of_zero() {
        let (x, w) = (random(&[0, 8], 1), random(&[4, 8], 2));
        let up = random(&[0, 4], 3);
        let all = gradients(&[&x, &w], &up, |t| linear(&t[0], &t[1]).expect("linear"));
        assert_eq!(all[0].size(), [0, 4]);
        assert_eq!(all[2].abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}
