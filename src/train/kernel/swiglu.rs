//! SwiGLU's gate: silu(gate) * up.
#![expect(unsafe_code, reason = "threads write ranges of their own")]

use half::bf16;
use tch::{Kind, TchError, Tensor};

use super::element::{Element, exp};
use super::memory::{Rows, empty, read, write};
use super::parallel::parallel;
use crate::kernel::autograd::differentiable;

/// Elements of one part: three buffers of 32 KiB.
const CHUNK: usize = 1 << 13;

/// SwiGLU's product silu(gate) * up of two tensors of one shape and type.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, TchError> {
    let (g, u) = (gate.f_detach()?.f_contiguous()?, up.f_detach()?.f_contiguous()?);
    let y = match g.kind() {
        Kind::Float => forward::<f32>(&g, &u),
        _ => forward::<bf16>(&g, &u),
    }?;
    differentiable(&[gate, up], &[&y], move |given, _wanted| {
        let Some(dy) = &given[0] else { return Ok(vec![None, None]) };
        let dy = dy.f_contiguous()?;
        let (dg, du) = match g.kind() {
            Kind::Float => backward::<f32>(&g, &u, &dy),
            _ => backward::<bf16>(&g, &u, &dy),
        }?;
        Ok(vec![Some(dg), Some(du)])
    })?;
    Ok(y)
}

fn forward<T: Element>(gate: &Tensor, up: &Tensor) -> Result<Tensor, TchError> {
    let mut y = empty(&gate.size(), T::KIND)?;
    let (gate, up): (&[T], &[T]) = (read(gate)?, read(up)?);
    let to = Rows::new(write::<T>(&mut y)?, 1);
    parallel(gate.len().min(up.len()), CHUNK, |range| {
        // SAFETY: ranges do not overlap.
        let to = unsafe { to.take(range.clone()) };
        for ((y, g), u) in to.iter_mut().zip(&gate[range.clone()]).zip(&up[range]) {
            let g = g.get();
            *y = T::of(g / (1.0 + exp(-g)) * u.get());
        }
    });
    Ok(y)
}

/// With s the sigmoid: dg = dy * u * s * (1 + g * (1 - s)), du = dy * g * s.
fn backward<T: Element>(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Tensor), TchError> {
    let (mut dg, mut du) = (empty(&gate.size(), T::KIND)?, empty(&gate.size(), T::KIND)?);
    let (gate, up, dy): (&[T], &[T], &[T]) = (read(gate)?, read(up)?, read(dy)?);
    let (dg_to, du_to) = (Rows::new(write::<T>(&mut dg)?, 1), Rows::new(write::<T>(&mut du)?, 1));
    parallel(gate.len().min(up.len()).min(dy.len()), CHUNK, |range| {
        // SAFETY: ranges do not overlap.
        let (dg, du) = unsafe { (dg_to.take(range.clone()), du_to.take(range.clone())) };
        let from = gate[range.clone()].iter().zip(&up[range.clone()]).zip(&dy[range]);
        for ((dg, du), ((g, u), dy)) in dg.iter_mut().zip(du).zip(from) {
            let (g, u, dy) = (g.get(), u.get(), dy.get());
            let s = 1.0 / (1.0 + exp(-g));
            *dg = T::of(dy * u * s * (1.0 + g * (1.0 - s)));
            *du = T::of(dy * g * s);
        }
    });
    Ok((dg, du))
}

#[cfg(test)]
mod tests {
    use super::super::memory::testing::{close, gradients, random};
    use super::*;

    #[test]
    fn swiglu_and_its_gradients_equal_libtorchs() {
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1.6e-2)] {
            let (g, u) = (random(&[5, 3001], 1).to_kind(kind), random(&[5, 3001], 2).to_kind(kind));
            let up = random(&[5, 3001], 3);
            let ours = gradients(&[&(&g * 3.0), &u], &up, |t| swiglu(&t[0], &t[1]).expect("gate"));
            let theirs = gradients(&[&(&g * 3.0), &u], &up, |t| t[0].silu() * &t[1]);
            close(&ours, &theirs, tolerance);
        }
    }

    #[test]
    fn far_from_zero_the_gate_is_shut_or_open() {
        let gate = Tensor::from_slice(&[-1000.0f32, -90.0, 0.0, 90.0, 1000.0]);
        let y = swiglu(&gate, &gate.ones_like()).expect("gate");
        assert_eq!(Vec::<f32>::try_from(y).expect("floats"), [0.0, 0.0, 0.0, 90.0, 1000.0]);
    }
}
