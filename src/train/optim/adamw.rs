//! AdamW over a range of the flat buffers: two moments beside it, one pass over all four.

use std::ops::Range;

use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

use super::slices::slice;

/// AdamW's constants. Source: torch.optim.AdamW's defaults, which both references keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled; on every weight, norms included, as the references.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The update and its state.
#[derive(Debug)]
pub(super) struct AdamW {
    options: AdamWOptions,
    /// What it changes of the flat buffers.
    range: Range<i64>,
    /// Running means of the gradient and of its square, of the range's length.
    first: Tensor,
    second: Tensor,
}

impl AdamW {
    /// Moments of zero for a range of the flat buffers.
    pub(super) fn new(
        options: AdamWOptions,
        range: Range<i64>,
        device: Device,
    ) -> Result<Self, TchError> {
        let zeros = || Tensor::f_zeros([range.end - range.start], (Kind::Float, device));
        Ok(Self { options, first: zeros()?, second: zeros()?, range })
    }

    /// What it changes of the flat buffers.
    pub(super) fn range(&self) -> &Range<i64> {
        &self.range
    }

    /// What it changes of the flat buffers, and a moment over it.
    pub(super) fn held(&self, second: bool) -> (&Range<i64>, &Tensor) {
        (&self.range, if second { &self.second } else { &self.first })
    }

    /// Update number `steps`, from 1, of the flat weights with the range's gradient times `clip`.
    pub(super) fn step(
        &mut self,
        weights: &Tensor,
        mut gradients: Tensor,
        lr: f64,
        clip: f64,
        steps: u64,
    ) -> Result<(), TchError> {
        let steps = steps as i32;
        let (b1, b2) = self.options.betas;
        let update = Update {
            clip: clip as f32,
            decay: (1.0 - lr * self.options.weight_decay) as f32,
            one_minus_beta1: (1.0 - b1) as f32,
            beta2: b2 as f32,
            one_minus_beta2: (1.0 - b2) as f32,
            root_correction: (1.0 - b2.powi(steps)).sqrt() as f32,
            eps: self.options.eps as f32,
            step_size: (lr / (1.0 - b1.powi(steps))) as f32,
        };
        let mut weights =
            weights.f_narrow(0, self.range.start, self.range.end - self.range.start)?;
        match weights.device() {
            Device::Cpu => {
                self.step_cpu(&mut weights, &mut gradients, &update);
                Ok(())
            }
            _ => tch::no_grad(|| self.step_device(&mut weights, &mut gradients, &update)),
        }
    }

    /// The update in libtorch's own kernels, for devices. Each result takes the place of what is not
    /// needed any more, of the gradient at last: a device has no room for buffers as large as the
    /// weights beside the four.
    fn step_device(
        &mut self,
        weights: &mut Tensor,
        gradients: &mut Tensor,
        u: &Update,
    ) -> Result<(), TchError> {
        let (first, second) = (&mut self.first, &mut self.second);
        let gradient = gradients.f_mul_scalar_(f64::from(u.clip))?;
        let _ = weights.f_mul_scalar_(f64::from(u.decay))?;
        let _ = first.f_lerp_(&gradient, f64::from(u.one_minus_beta1))?;
        let square = gradients.f_square_()?.f_mul_scalar_(f64::from(u.one_minus_beta2))?;
        let _ = second.f_mul_scalar_(f64::from(u.beta2))?.f_add_(&square)?;
        let mut root = second.f_sqrt_out(gradients)?.f_div_scalar_(f64::from(u.root_correction))?;
        let root = root.f_add_scalar_(f64::from(u.eps))?;
        let change = first.f_div_out(&root, &root)?.f_mul_scalar_(f64::from(u.step_size))?;
        let _ = weights.f_sub_(&change)?;
        Ok(())
    }

    /// One pass over the four buffers, in parallel; libtorch's kernels one after the other would go
    /// through memory nine times.
    fn step_cpu(&mut self, weights: &mut Tensor, gradients: &mut Tensor, update: &Update) {
        /// Floats a task works on: four buffers of 64 KiB stay in a core's cache.
        const CHUNK: usize = 1 << 14;
        let (weights, gradients) = (slice(weights), &*slice(gradients));
        let (first, second) = (slice(&mut self.first), slice(&mut self.second));
        weights
            .par_chunks_mut(CHUNK)
            .zip(gradients.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
            .for_each(|((w, g), (m, v))| update.apply(w, g, m, v));
    }
}

/// One step's constants, in the precision of the weights.
#[derive(Clone, Copy, Debug)]
struct Update {
    clip: f32,
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction: f32,
    eps: f32,
    step_size: f32,
}

impl Update {
    /// Source: torch.optim.AdamW's documentation (decoupled weight decay, bias-corrected moments).
    fn apply(&self, weights: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32]) {
        let moments = first.iter_mut().zip(second.iter_mut());
        for ((w, g), (m, v)) in weights.iter_mut().zip(gradients).zip(moments) {
            let g = g * self.clip;
            *m += self.one_minus_beta1 * (g - *m);
            *v = self.beta2 * *v + self.one_minus_beta2 * g * g;
            let root = v.sqrt() / self.root_correction + self.eps;
            *w = self.decay * *w - self.step_size * *m / root;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::host_f32;

    /// The two implementations of the update: ours in one pass, and the one for devices; on a range
    /// that is not the whole.
    #[test]
    fn one_pass_equals_libtorchs_kernels() {
        let values: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.37).sin()).collect();
        let target = Tensor::from_slice(&values).flip([0]);
        let u = Update {
            clip: 0.5,
            decay: 0.999,
            one_minus_beta1: 0.1,
            beta2: 0.999,
            one_minus_beta2: 0.001,
            root_correction: 0.03,
            eps: 1e-8,
            step_size: 1e-3,
        };
        let run = |device_kernels: bool| {
            let weights = Tensor::from_slice(&values);
            let mut adamw =
                AdamW::new(AdamWOptions::default(), 16..4800, Device::Cpu).expect("moments");
            for _ in 0..5 {
                let gradients = (&weights - &target) * 2.0;
                let (mut w, mut g) = (weights.narrow(0, 16, 4784), gradients.narrow(0, 16, 4784));
                match device_kernels {
                    true => adamw.step_device(&mut w, &mut g, &u).expect("step"),
                    false => adamw.step_cpu(&mut w, &mut g, &u),
                }
            }
            host_f32(&weights).expect("values")
        };
        let (ours, theirs) = (run(false), run(true));
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            // a few roundings of values up to 1
            assert!((a - b).abs() < 2e-6, "{i}: {a} {b}");
        }
        for i in (0..16).chain(4800..5000) {
            assert_eq!(ours[i], values[i], "outside of its range");
        }
        assert!((16..4800).all(|i| ours[i] != values[i]));
    }
}
