//! Rotary positions: the first half of each head is paired with the second.
#![expect(unsafe_code, reason = "threads write rows of their own")]

use half::bf16;
use tch::{Kind, TchError, Tensor};

use super::element::{Element, load};
use super::memory::{Rows, empty, read, write};
use super::parallel::parallel;
use crate::kernel::autograd::differentiable;

/// Rotates `x [batch, seq, heads, head_dim]` by the angles of each position, given as float32
/// cosine and sine `[positions, head_dim / 2]`: `positions` is `seq`, or `batch * seq` where rows
/// have positions of their own.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TchError> {
    let (cos, sin) = (cos.f_contiguous()?, sin.f_contiguous()?);
    let y = turned(&x.f_detach()?.f_contiguous()?, &cos, &sin, 1.0)?;
    differentiable(&[x], &[&y], move |given, _wanted| {
        let Some(dy) = &given[0] else { return Ok(vec![None]) };
        // the transposed rotation: back by the same angle
        Ok(vec![Some(turned(&dy.f_contiguous()?, &cos, &sin, -1.0)?)])
    })?;
    Ok(y)
}

fn turned(x: &Tensor, cos: &Tensor, sin: &Tensor, sign: f32) -> Result<Tensor, TchError> {
    match x.kind() {
        Kind::Float => turn::<f32>(x, cos, sin, sign),
        _ => turn::<bf16>(x, cos, sin, sign),
    }
}

fn turn<T: Element>(x: &Tensor, cos: &Tensor, sin: &Tensor, sign: f32) -> Result<Tensor, TchError> {
    let (batch, seq, heads, head_dim) = x.size4()?;
    let (tokens, heads, head_dim) = ((batch * seq) as usize, heads as usize, head_dim as usize);
    let half = head_dim / 2;
    let mut y = empty(&x.size(), T::KIND)?;
    let (from, cos, sin): (&[T], &[f32], &[f32]) = (read(x)?, read(cos)?, read(sin)?);
    let positions = cos.len() / half.max(1);
    let width = heads * head_dim;
    let to = Rows::new(write::<T>(&mut y)?, width);
    parallel(tokens, 16, |range| {
        // SAFETY: ranges do not overlap.
        let to = unsafe { to.take(range.clone()) };
        let (mut first, mut second) = (vec![0.0f32; half], vec![0.0f32; half]);
        for (token, to) in range.zip(to.chunks_exact_mut(width)) {
            let position = token % positions;
            let at = position * half..(position + 1) * half;
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            let heads = from[token * width..(token + 1) * width].chunks_exact(head_dim);
            for (from, to) in heads.zip(to.chunks_exact_mut(head_dim)) {
                load(&from[..half], &mut first);
                load(&from[half..], &mut second);
                let (to_first, to_second) = to.split_at_mut(half);
                for i in 0..half {
                    let sin = sin[i] * sign;
                    to_first[i] = T::of(first[i] * cos[i] - second[i] * sin);
                    to_second[i] = T::of(second[i] * cos[i] + first[i] * sin);
                }
            }
        }
    });
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::super::memory::testing::{close, gradients, random};
    use super::*;

    #[test]
    fn rotation_and_its_gradient_equal_the_formula() {
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 8e-3)] {
            for positions in [20, 60] {
                let x = random(&[3, 20, 4, 16], 1).to_kind(kind);
                let angles = random(&[positions, 8], 2);
                let (cos, sin) = (angles.cos(), angles.sin());
                let up = random(&[3, 20, 4, 16], 3);
                let ours = gradients(&[&x], &up, |t| rope(&t[0], &cos, &sin).expect("rotation"));
                let theirs = gradients(&[&x], &up, |t| {
                    let size = [positions / 20, 20, 1, 8];
                    let (cos, sin) = (cos.view(size), sin.view(size));
                    let (a, b) = (t[0].narrow(-1, 0, 8), t[0].narrow(-1, 8, 8));
                    let turned = [&a * &cos - &b * &sin, &b * &cos + &a * &sin];
                    Tensor::cat(&turned, -1).to_kind(kind)
                });
                close(&ours, &theirs, tolerance);
            }
        }
    }
}
