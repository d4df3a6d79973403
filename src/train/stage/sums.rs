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
    /// Adds a piece, `share` of all trained tokens being its own. Parts are means over tokens, unless
    /// their names say otherwise.
    ///
    /// # Errors
    /// libtorch's.
    pub(super) fn add(&mut self, loss: Loss, share: f64) -> Result<()> {
        let doing = |e| Error::torch("adding up a batch's losses", &e);
        let Loss { total, parts, .. } = loss.detached();
        self.total = match (self.total.take(), total) {
            (Some(sum), Some(more)) => Some(sum.f_add(&more).map_err(doing)?),
            (sum, more) => sum.or(more),
        };
        for (name, part) in parts {
            let Part::Scalar(value) = part else { continue };
            let is_sum = matches!(name, "policy" | "aux");
            let is_most = name.ends_with("_max");
            let value = match is_sum || is_most {
                true => value,
                false => value.f_mul_scalar(share).map_err(doing)?,
            };
            let place = self.parts.iter_mut().find(|(of, _)| *of == name);
            match place {
                None => self.parts.push((name, Part::Scalar(value))),
                Some((_, Part::Scalar(sum))) if is_most => {
                    *sum = sum.f_maximum(&value).map_err(doing)?;
                }
                Some((_, Part::Scalar(sum))) => *sum = sum.f_add(&value).map_err(doing)?,
                Some(_) => {}
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
    fn sums_are_added_means_are_weighed_and_the_largest_stays() {
        let loss = |policy: f64, mean: f64, most: f64| {
            let scalar = |value: f64| Part::Scalar(tch::Tensor::from(value));
            Loss {
                total: Some(tch::Tensor::from(policy)),
                parts: vec![
                    ("policy", scalar(policy)),
                    ("kl", scalar(mean)),
                    ("sampler_ratio_max", scalar(most)),
                ],
                ..Loss::nothing()
            }
        };
        let mut sums = Sums::default();
        sums.add(loss(1.0, 4.0, 1.5), 0.25).expect("added");
        sums.add(loss(2.0, 8.0, 1.25), 0.75).expect("added");
        let found = sums.loss(9);
        assert_eq!(found.total.expect("a loss").double_value(&[]), 3.0);
        for ((name, part), expected) in found.parts.iter().zip([3.0, 7.0, 1.5]) {
            let Part::Scalar(value) = part else { panic!("{name}: no scalar") };
            assert_eq!(value.double_value(&[]), expected, "{name}");
        }
    }
}
