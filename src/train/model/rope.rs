//! Rotary positions: tables of cosine and sine, and the rotation of halves.

use std::cell::RefCell;

use mmx_converters::arch::{Config, RopeScaling, rope};
use tch::{Device, Kind, Tensor};

use super::variable::Torch;
use crate::kernel;

/// Tables for positions 0.., grown when a longer sequence comes.
#[derive(Debug)]
pub(super) struct Rope {
    config: Config,
    device: Device,
    /// Cosine and sine, float32 `[positions, head_dim / 2]`.
    cached: RefCell<Option<(Tensor, Tensor)>>,
}

/// Cosine and sine of each position of a batch, float32 `[seq, 1, head_dim / 2]`, or
/// `[batch, seq, 1, head_dim / 2]` where rows have positions of their own.
pub(super) struct Tables {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(super) fn new(config: &Config, device: Device) -> Self {
        Self { config: config.clone(), device, cached: RefCell::new(None) }
    }

    /// Tables for positions 0 to `seq` - 1.
    pub(super) fn tables(&self, seq: i64) -> Torch<Tables> {
        let mut cached = self.cached.borrow_mut();
        // a base that follows the length holds for that length alone
        let follows = matches!(self.config.rope_scaling, Some(RopeScaling::Dynamic { .. }));
        let fits = |held: i64| if follows { held == seq } else { held >= seq };
        if !cached.as_ref().is_some_and(|(cos, _)| fits(cos.size()[0])) {
            *cached = None;
        }
        let (cos, sin) = match cached.as_mut() {
            Some(tables) => tables,
            None => cached.insert(self.compute(if follows { seq } else { seq.max(512) })?),
        };
        Ok(Tables {
            cos: cos.f_narrow(0, 0, seq)?.f_unsqueeze(1)?,
            sin: sin.f_narrow(0, 0, seq)?.f_unsqueeze(1)?,
        })
    }

    /// Tables for `positions [batch, seq]`, int64, all below `length`.
    pub(super) fn tables_at(&self, positions: &Tensor, length: i64) -> Torch<Tables> {
        let all = self.tables(length)?;
        let (batch, seq) = positions.size2()?;
        let flat = positions.f_reshape([-1])?;
        let at = |table: &Tensor| {
            table.f_index_select(0, &flat)?.f_view([batch, seq, 1, table.size()[2]])
        };
        Ok(Tables { cos: at(&all.cos)?, sin: at(&all.sin)? })
    }

    /// Angles in float64: a float32 product is off by 1e-4 at position 2000 already.
    fn compute(&self, positions: i64) -> Torch<(Tensor, Tensor)> {
        let frequencies = rope::inverse_frequencies(&self.config, positions as usize);
        let factor = rope::attention_factor(&self.config);
        let half = frequencies.len() as i64;
        let of = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..positions)
                .flat_map(|p| frequencies.iter().map(move |w| (f(p as f64 * w) * factor) as f32))
                .collect();
            Tensor::f_from_slice(&values)?.f_view([positions, half])?.f_to_device(self.device)
        };
        Ok((of(f64::cos)?, of(f64::sin)?))
    }
}

impl Tables {
    /// Rotates `[batch, seq, heads, head_dim]`: the first half of a head is paired with the second.
    /// Computed in float32, given back in the type that came.
    pub(super) fn rotate(&self, x: &Tensor) -> Torch<Tensor> {
        if kernel::takes(&[x, &self.cos]) {
            return kernel::rope(x, &self.cos, &self.sin);
        }
        let half = self.cos.size().last().copied().unwrap_or_default();
        let first = x.f_narrow(-1, 0, half)?;
        let second = x.f_narrow(-1, half, half)?;
        let rotated = Tensor::f_cat(
            &[
                first.f_mul(&self.cos)?.f_sub(&second.f_mul(&self.sin)?)?,
                second.f_mul(&self.cos)?.f_add(&first.f_mul(&self.sin)?)?,
            ],
            -1,
        )?;
        debug_assert_eq!(self.cos.kind(), Kind::Float);
        rotated.f_to_kind(x.kind())
    }
}
