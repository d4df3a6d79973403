//! Which row every trained token belongs to: tokens lie flat, `[n]`, in the order of rows.

use mmx_data::Batch;
use tch::{Device, Kind, TchError, Tensor};

use crate::error::{Error, Result, TorchError};
use crate::model::device::upload;

/// The rows of trained tokens.
#[derive(Debug)]
pub struct Rows {
    /// The row of each token, ascending, int64 `[n]`.
    of_token: Tensor,
    /// Tokens of each row, at least 1, `[rows]`.
    lengths: Tensor,
    /// Rows.
    count: usize,
    /// Tokens.
    tokens: usize,
    /// Rows that a mean over rows counts.
    counted: usize,
}

impl Rows {
    /// The rows of a batch's learned targets. A mean over rows counts all of them, or those alone
    /// that have such a target.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(batch: &Batch, leave_out_empty: bool, kind: Kind, device: Device) -> Result<Self> {
        let of_row = |range: std::ops::Range<usize>| {
            batch.mask[range].iter().filter(|&&learned| learned != 0.0).count()
        };
        let lengths: Vec<usize> = batch.ranges().into_iter().map(of_row).collect();
        Self::of_lengths(&lengths, leave_out_empty, kind, device)
            .map_err(|e| Error::torch("rows to the device", &e))
    }

    /// The rows of so many tokens each.
    ///
    /// # Errors
    /// libtorch's.
    pub fn of_lengths(
        lengths: &[usize],
        leave_out_empty: bool,
        kind: Kind,
        device: Device,
    ) -> Result<Self, TchError> {
        let of_token: Vec<i64> = lengths
            .iter()
            .enumerate()
            .flat_map(|(row, &length)| std::iter::repeat_n(row as i64, length))
            .collect();
        let divisors: Vec<f64> = lengths.iter().map(|&length| length.max(1) as f64).collect();
        let filled = lengths.iter().filter(|&&length| length > 0).count();
        Ok(Self {
            tokens: of_token.len(),
            of_token: upload(&Tensor::f_from_slice(&of_token)?, device)?,
            lengths: upload(&Tensor::f_from_slice(&divisors)?.f_to_kind(kind)?, device)?,
            count: lengths.len(),
            counted: if leave_out_empty { filled } else { lengths.len() },
        })
    }

    /// The rows as a piece of a batch of so many tokens, and rows that a mean counts: means are parts
    /// of the batch's own.
    #[must_use]
    pub fn among(self, tokens: usize, counted: usize) -> Self {
        Self { tokens, counted, ..self }
    }

    /// Rows that a mean over rows counts, at least 1.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.counted.max(1)
    }

    /// Tokens of each row, at least 1, `[rows]`.
    pub fn lengths(&self) -> &Tensor {
        &self.lengths
    }

    /// The mean over all tokens, a scalar; of a piece of a batch its part of the batch's own.
    ///
    /// # Errors
    /// libtorch's.
    pub fn mean(&self, tokens: &Tensor) -> Result<Tensor, TchError> {
        tokens.f_sum(tokens.kind())?.f_div_scalar(self.tokens.max(1) as f64)
    }

    /// The sum of each row's tokens, `[n]` to `[rows]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn sums(&self, tokens: &Tensor) -> Result<Tensor, TchError> {
        let zeros = Tensor::f_zeros([self.count as i64], (tokens.kind(), tokens.device()))?;
        zeros.f_index_add(0, &self.of_token, tokens)
    }

    /// The mean of each row's tokens, `[n]` to `[rows]`; of an empty row 0.
    ///
    /// # Errors
    /// libtorch's.
    pub fn means(&self, tokens: &Tensor) -> Result<Tensor, TchError> {
        self.sums(tokens)?.f_div(&self.lengths)
    }

    /// A value of each row at its tokens, `[rows]` to `[n]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn spread(&self, rows: &Tensor) -> Result<Tensor, TchError> {
        rows.f_index_select(0, &self.of_token)
    }

    /// Values of all positions of a batch on the host at its tokens, `[n]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn of_positions(&self, batch: &Batch, values: &[f32]) -> Result<Tensor, TchError> {
        let learned = batch.mask.iter().zip(values).filter(|(mask, _)| **mask != 0.0);
        let values: Vec<f32> = learned.map(|(_, &value)| value).collect();
        let values = Tensor::f_from_slice(&values)?.f_to_kind(self.lengths.kind())?;
        upload(&values, self.lengths.device())
    }

    /// Values of rows on the host at their tokens, `[n]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn spread_host(&self, rows: &[f64]) -> Result<Tensor, TchError> {
        let rows = Tensor::f_from_slice(rows)?.f_to_kind(self.lengths.kind())?;
        self.spread(&upload(&rows, self.lengths.device())?)
    }
}
