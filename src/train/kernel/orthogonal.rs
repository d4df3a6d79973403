//! Muon's orthogonalized matrices: five Newton-Schulz steps towards the nearest matrix whose rows
//! (or columns, where there are more rows) are orthonormal.

use super::matmul::{Matrix, matmul};

/// Newton-Schulz steps.
pub(crate) const STEPS: usize = 5;

/// The polynomial a x + b x^3 + c x^5, which every step applies to the singular values: chosen for
/// its slope at 0, it ends between about 0.7 and 1.2. Source: Keller Jordan, "Muon: an optimizer
/// for hidden layers in neural networks" (2024).
pub(crate) const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);

/// Added to the Frobenius norm that a matrix is divided by. Source: torch.optim.Muon.
pub(crate) const EPS: f64 = 1e-7;

/// The memory that one thread needs on the way, kept from one matrix to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    next: Vec<f32>,
    gram: Vec<f32>,
    polynomial: Vec<f32>,
}

impl Scratch {
    /// `values [rows, columns]`, row-major, become its orthogonalized matrix, computed in float32
    /// on this thread.
    pub(crate) fn orthogonalize(&mut self, values: &mut [f32], rows: usize, columns: usize) {
        let norm = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let scale = (1.0 / (norm + EPS)) as f32;
        values.iter_mut().for_each(|v| *v *= scale);
        let side = rows.min(columns);
        for buffer in [&mut self.gram, &mut self.polynomial] {
            buffer.resize(side * side, 0.0);
        }
        self.next.resize(values.len(), 0.0);
        let (a, b, c) = COEFFICIENTS;
        for _ in 0..STEPS {
            let x = Matrix::new(values, rows, columns);
            let wide = if rows > columns { x.transposed() } else { x };
            // A = X X^T, [side, side]
            symmetric(&mut self.gram, side, wide, wide.transposed(), 1.0, None);
            // b A + c A A
            let gram = Matrix::new(&self.gram, side, side);
            let linear = Some((b as f32, self.gram.as_slice()));
            symmetric(&mut self.polynomial, side, gram, gram, c as f32, linear);
            // X = a X + (b A + c A A) X
            for (to, from) in self.next.iter_mut().zip(&*values) {
                *to = a as f32 * from;
            }
            let polynomial = Matrix::new(&self.polynomial, side, side);
            let (left, right) = if rows > columns { (x, polynomial) } else { (polynomial, x) };
            matmul(&mut self.next, columns, left, right, 1.0, true);
            values.copy_from_slice(&self.next);
        }
    }
}

/// `to [side, side]` becomes `scale` * left * right, known to be symmetric, plus a multiple of
/// another symmetric matrix: half of it is computed, block row by block row, and then mirrored.
fn symmetric(
    to: &mut [f32],
    side: usize,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    plus: Option<(f32, &[f32])>,
) {
    // ten sixteenths of the products with four block rows, and blocks that fill the registers
    let block = side.div_ceil(4).next_multiple_of(16).clamp(48, 128);
    for first in (0..side).step_by(block) {
        let end = (first + block).min(side);
        if let Some((factor, other)) = plus {
            for row in first..end {
                let row = row * side..row * side + end;
                for (to, from) in to[row.clone()].iter_mut().zip(&other[row]) {
                    *to = factor * from;
                }
            }
        }
        let (left, right) = (left.cut_rows(first..end), right.cut_columns(0..end));
        matmul(&mut to[first * side..], side, left, right, scale, plus.is_some());
    }
    /// Rows and columns of a tile that stays in the nearest cache.
    const TILE: usize = 32;
    for first in (0..side).step_by(TILE) {
        for second in (0..=first).step_by(TILE) {
            for row in first..(first + TILE).min(side) {
                for column in second..(second + TILE).min(row) {
                    to[column * side + row] = to[row * side + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::super::memory::testing::random;
    use super::*;
    use crate::model::host_f32;

    /// The formulas in float64, on whole matrices.
    fn naive(matrix: &Tensor) -> Tensor {
        let (rows, columns) = matrix.size2().expect("a matrix");
        let x = matrix.to_kind(Kind::Double);
        let mut x = if rows > columns { x.tr() } else { x };
        x = &x / (x.norm() + EPS);
        let (a, b, c) = COEFFICIENTS;
        for _ in 0..STEPS {
            let gram = x.mm(&x.tr());
            x = a * &x + (b * &gram + c * gram.mm(&gram)).mm(&x);
        }
        if rows > columns { x.tr() } else { x }
    }

    #[test]
    fn equals_the_formulas_in_double_precision_wide_tall_and_square() {
        let mut scratch = Scratch::default(); // the same for all: what is left of one harms none
        for (rows, columns) in [(64, 64), (130, 300), (300, 130), (1, 7), (9, 1), (200, 200)] {
            let matrix = random(&[rows, columns], rows + columns);
            let mut found = host_f32(&matrix).expect("values");
            scratch.orthogonalize(&mut found, rows as usize, columns as usize);
            let found = Tensor::from_slice(&found).view([rows, columns]);
            let off = (found - naive(&matrix)).abs().max().double_value(&[]);
            assert!(off < 2e-5, "{rows} x {columns}: {off:e}"); // of values up to 1.2
        }
    }

    #[test]
    fn singular_values_end_near_one_and_zero_stays_zero() {
        let mut values = host_f32(&random(&[96, 200], 5)).expect("values");
        let mut scratch = Scratch::default();
        scratch.orthogonalize(&mut values, 96, 200);
        let (_, singular, _) = Tensor::from_slice(&values).view([96, 200]).svd(true, false);
        let (least, most) = (singular.min().double_value(&[]), singular.max().double_value(&[]));
        assert!(least > 0.6 && most < 1.3, "{least} to {most}");

        let mut zeros = vec![0.0; 24];
        scratch.orthogonalize(&mut zeros, 4, 6);
        assert_eq!(zeros, [0.0; 24]);
    }
}
