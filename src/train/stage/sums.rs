//! The loss of a batch and its parts from those of its pieces.

use super::interface::{Loss, Part};
use crate::error::{Error, Result, TorchError};

/// The numbers of a batch from those of its pieces.
#[derive(Debug, Default)]
pub(super) struct Sums {
    total: Option<tch::Tensor>,
    parts: Vec<(&'static str, Part)>,
}

impl Sums {
    /// Adds a piece.
    ///
    /// # Errors
    /// libtorch's.
    pub(super) fn add(&mut self, loss: Loss) -> Result<()> {
        let doing = |e| Error::torch("adding up a batch's losses", &e);
        let Loss { total, parts, .. } = loss;
        self.total = match (self.total.take(), total) {
            (Some(sum), Some(more)) => Some(sum.f_add(&more).map_err(doing)?),
            (sum, more) => sum.or(more),
        };
        for (name, part) in parts {
            let place = self.parts.iter_mut().find(|(of, _)| *of == name);
            match (place, part) {
                (None, part) => self.parts.push((name, part)),
                (Some((_, Part::Scalar(sum))), Part::Scalar(more)) => {
                    *sum = sum.f_add(&more).map_err(doing)?;
                }
                (Some((_, Part::Most(most))), Part::Most(other)) => {
                    *most = most.f_maximum(&other).map_err(doing)?;
                }
                // what every piece says alike
                (Some(_), _) => {}
            }
        }
        Ok(())
    }

    /// The loss of the batch, whose gradient has been taken.
    #[must_use]
    pub(super) fn loss(self, trained_tokens: usize) -> Loss {
        Loss { total: self.total, parts: self.parts, trained_tokens, ..Loss::nothing() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_added_and_the_largest_stays() {
        let loss = |policy: f64, most: f64| Loss {
            total: Some(tch::Tensor::from(policy)),
            parts: vec![
                ("policy", Part::Scalar(tch::Tensor::from(policy))),
                ("aux", Part::Zero),
                ("sampler_ratio_max", Part::Most(tch::Tensor::from(most))),
            ],
            ..Loss::nothing()
        };
        let mut sums = Sums::default();
        sums.add(loss(1.0, 1.5)).expect("added");
        sums.add(loss(2.0, 1.25)).expect("added");
        let found = sums.loss(9);
        assert_eq!(found.total.expect("a loss").double_value(&[]), 3.0);
        let values: Vec<f64> = found
            .parts
            .iter()
            .filter_map(|(_, part)| match part {
                Part::Scalar(value) | Part::Most(value) => Some(value.double_value(&[])),
                _ => None,
            })
            .collect();
        assert_eq!((values, found.parts.len()), (vec![3.0, 1.5], 3));
    }
}
