//! What the log-probabilities of the engine that sampled are worth to the trainer: how far both
//! are from each other, and the weights that correct for it.

use tch::{Kind, TchError, Tensor};

use super::options::{Importance, Span};
use super::rows::Rows;

/// The weights of tokens `[n]`: exp(trained - sampled), of a token or of its whole row, cut at the
/// cap or 0 above it. Without a gradient.
///
/// # Errors
/// libtorch's.
pub fn weights(
    trained: &Tensor,
    sampled: &Tensor,
    rows: &Rows,
    options: Importance,
) -> Result<Tensor, TchError> {
    let difference = trained.detach().f_sub(sampled)?;
    let difference = match options.span {
        Span::Token => difference,
        Span::Sequence => rows.spread(&rows.sums(&difference)?)?,
    };
    let weights = difference.f_exp()?;
    match options.mask {
        false => weights.f_clamp_max(options.cap),
        true => {
            let kept = weights.f_le(options.cap)?.f_to_kind(weights.kind())?;
            // a weight without bound times 0 would be no number
            weights.f_clamp_max(options.cap)?.f_mul(&kept)
        }
    }
}

/// The mean of exp(trained - sampled) over tokens, its largest value, and the share of tokens
/// outside 0.9 to 1.1: nothing is cut.
///
/// # Errors
/// libtorch's.
pub fn mismatch(trained: &Tensor, sampled: &Tensor, rows: &Rows) -> Result<[Tensor; 3], TchError> {
    let ratio = trained.detach().f_sub(sampled)?.f_exp()?;
    let near = ratio.f_sub_scalar(1.0)?.f_abs()?;
    let outside = near.f_gt(0.1)?.f_to_kind(Kind::Float)?;
    let most = match ratio.numel() {
        0 => Tensor::f_zeros([], (ratio.kind(), ratio.device()))?,
        _ => ratio.f_max()?,
    };
    Ok([rows.mean(&ratio)?, most, rows.mean(&outside)?])
}
