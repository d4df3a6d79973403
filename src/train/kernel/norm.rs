//! RMSNorm, alone or with the residual addition before it.
//!
//! y = w * s / sqrt(mean(s^2) + eps) over rows s `[rows, width]`, where s is the input, or the sum
//! of the residual stream and a layer's output.
#![expect(unsafe_code, reason = "threads write rows of their own")]

use half::bf16;
use tch::{Kind, TchError, Tensor};

use super::element::{Element, dot, load, store};
use super::memory::{Rows, empty, read, write};
use super::parallel::parallel;
use crate::kernel::autograd::differentiable;

type Torch<T> = Result<T, TchError>;

/// Rows whose part of the weight's gradient is summed first.
const BLOCK: usize = 64;

/// RMSNorm of `x [.., width]`, float32 or bfloat16, in the same shape and type `compute`.
pub(crate) fn norm(x: &Tensor, weight: &Tensor, eps: f64, compute: Kind) -> Torch<Tensor> {
    let (plain, w) = (x.f_detach()?.f_contiguous()?, weight.f_detach()?);
    let (y, roots) = match (plain.kind(), compute) {
        (Kind::Float, Kind::Float) => forward::<f32, f32>(&plain, &w, eps),
        (Kind::Float, _) => forward::<f32, bf16>(&plain, &w, eps),
        (_, Kind::Float) => forward::<bf16, f32>(&plain, &w, eps),
        _ => forward::<bf16, bf16>(&plain, &w, eps),
    }?;
    let output = y.shallow_clone();
    differentiable(&[x, weight], &[&output], move |given, wanted| {
        let Some(dy) = &given[0] else { return Ok(vec![None, None]) };
        let (dx, dw) = gradient(&plain, &w, &roots, Some(dy), None, wanted[1])?;
        Ok(vec![Some(dx), dw])
    })?;
    Ok(output)
}

/// Sum, float32, of the residual stream `x`, float32, and a layer's output of the same shape; and
/// the sum's norm in `compute`.
pub(crate) fn add_norm(
    x: &Tensor,
    added: &Tensor,
    weight: &Tensor,
    eps: f64,
    compute: Kind,
) -> Torch<(Tensor, Tensor)> {
    let (w, kind) = (weight.f_detach()?, added.kind());
    let sum = tch::no_grad(|| x.f_add(added))?;
    let plain = sum.f_detach()?;
    let (y, roots) = match compute {
        Kind::Float => forward::<f32, f32>(&plain, &w, eps),
        _ => forward::<f32, bf16>(&plain, &w, eps),
    }?;
    differentiable(&[x, added, weight], &[&sum, &y], move |given, wanted| {
        let (dx, dw) =
            gradient(&plain, &w, &roots, given[1].as_ref(), given[0].as_ref(), wanted[2])?;
        let added = match wanted[1] {
            true => Some(dx.f_to_kind(kind)?),
            false => None,
        };
        Ok(vec![Some(dx), added, dw])
    })?;
    Ok((sum, y))
}

/// The norm, and 1 / sqrt(mean(x^2) + eps) of each row.
fn forward<X: Element, Y: Element>(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Torch<(Tensor, Tensor)> {
    let weight: &[f32] = read(weight)?;
    let width = weight.len();
    let rows = x.numel() / width.max(1);
    let (mut y, mut roots) = (empty(&x.size(), Y::KIND)?, empty(&[rows as i64], Kind::Float)?);
    let from: &[X] = read(x)?;
    let to = Rows::new(write::<Y>(&mut y)?, width);
    let roots_to = Rows::new(write::<f32>(&mut roots)?, 1);
    parallel(rows, 16, |range| {
        // SAFETY: ranges do not overlap.
        let (to, roots) = unsafe { (to.take(range.clone()), roots_to.take(range.clone())) };
        let from = &from[range.start * width..range.end * width];
        let mut row = vec![0.0f32; width];
        let rows = from.chunks_exact(width).zip(to.chunks_exact_mut(width)).zip(roots);
        for ((from, to), root) in rows {
            load(from, &mut row);
            let mean = dot(&row, &row) / width as f32;
            *root = 1.0 / (mean + eps as f32).sqrt();
            for (x, w) in row.iter_mut().zip(weight) {
                *x = *x * *root * w;
            }
            store(&row, to);
        }
    });
    Ok((y, roots))
}

/// Gradients of the input (float32, or the input's type) and, where wanted, of the weight: `dy` is
/// the norm's, `ds` what comes from elsewhere to the input.
fn gradient(
    x: &Tensor,
    weight: &Tensor,
    roots: &Tensor,
    dy: Option<&Tensor>,
    ds: Option<&Tensor>,
    of_weight: bool,
) -> Torch<(Tensor, Option<Tensor>)> {
    let Some(dy) = dy else {
        let ds = ds.map_or_else(|| x.f_zeros_like(), |ds| Ok(ds.shallow_clone()))?;
        return Ok((ds, None));
    };
    let (dy, ds) = (dy.f_contiguous()?, ds.map(|ds| ds.f_contiguous()).transpose()?);
    match (x.kind(), dy.kind()) {
        (Kind::Float, Kind::Float) => {
            backward::<f32, f32>(x, weight, roots, &dy, ds.as_ref(), of_weight)
        }
        (Kind::Float, _) => backward::<f32, bf16>(x, weight, roots, &dy, ds.as_ref(), of_weight),
        (_, Kind::Float) => backward::<bf16, f32>(x, weight, roots, &dy, ds.as_ref(), of_weight),
        _ => backward::<bf16, bf16>(x, weight, roots, &dy, ds.as_ref(), of_weight),
    }
}

/// With g = w * dy and r the row's root: dx = r * (g - x * r^2 * mean(g * x)), dw = sum of dy * x *
/// r.
fn backward<X: Element, Y: Element>(
    x: &Tensor,
    weight: &Tensor,
    roots: &Tensor,
    dy: &Tensor,
    ds: Option<&Tensor>,
    of_weight: bool,
) -> Torch<(Tensor, Option<Tensor>)> {
    let w: &[f32] = read(weight)?;
    let (x_all, dy_all, roots): (&[X], &[Y], &[f32]) = (read(x)?, read(dy)?, read(roots)?);
    let ds_all: Option<&[X]> = ds.map(read).transpose()?;
    let (width, rows) = (w.len(), roots.len());
    let blocks = rows.div_ceil(BLOCK);
    let mut dx = empty(&x.size(), X::KIND)?;
    let mut parts = vec![0.0f32; if of_weight { blocks * width } else { 0 }];
    let to = Rows::new(write::<X>(&mut dx)?, width);
    let parts_to = Rows::new(&mut parts, width);
    parallel(blocks, 1, |range| {
        let mut row = vec![0.0f32; width];
        let mut g = vec![0.0f32; width];
        for block in range {
            // SAFETY: ranges of blocks do not overlap, nor do blocks.
            let mut part = of_weight.then(|| unsafe { parts_to.take(block..block + 1) });
            let first = block * BLOCK;
            let last = (first + BLOCK).min(rows);
            // SAFETY: as above: the rows of this block.
            let to = unsafe { to.take(first..last) };
            for (i, to) in (first..last).zip(to.chunks_exact_mut(width)) {
                let at = i * width..(i + 1) * width;
                load(&x_all[at.clone()], &mut row);
                load(&dy_all[at.clone()], &mut g);
                let root = roots[i];
                if let Some(part) = &mut part {
                    for ((sum, g), x) in part.iter_mut().zip(&g).zip(&row) {
                        *sum = (g * root).mul_add(*x, *sum);
                    }
                }
                for (g, w) in g.iter_mut().zip(w) {
                    *g *= w;
                }
                let along = dot(&g, &row) / width as f32 * root * root;
                match ds_all {
                    Some(ds) => {
                        let values = to.iter_mut().zip(&ds[at]).zip(g.iter().zip(&row));
                        for ((to, ds), (g, x)) in values {
                            *to = X::of(ds.get() + root * (g - x * along));
                        }
                    }
                    None => {
                        for (to, (g, x)) in to.iter_mut().zip(g.iter().zip(&row)) {
                            *to = X::of(root * (g - x * along));
                        }
                    }
                }
            }
        }
    });
    let dw = match of_weight {
        true => {
            let mut sum = vec![0.0f32; width];
            for part in parts.chunks_exact(width) {
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum += part;
                }
            }
            Some(Tensor::f_from_slice(&sum)?)
        }
        false => None,
    };
    Ok((dx, dw))
}

#[cfg(test)]
mod tests {
    use super::super::memory::testing::{close, gradients, random};
    use super::*;

    fn reference(x: &Tensor, w: &Tensor, eps: f64, compute: Kind) -> Tensor {
        x.to_kind(Kind::Float).rms_norm(w.size(), Some(w), eps).to_kind(compute)
    }

    #[test]
    fn norm_and_its_gradients_equal_libtorchs() {
        for (kind, compute, tolerance) in [
            (Kind::Float, Kind::Float, 1e-6),
            (Kind::Float, Kind::BFloat16, 8e-3), // two roundings to 8 bits
            (Kind::BFloat16, Kind::BFloat16, 8e-3),
        ] {
            let (x, w) = (random(&[3, 50, 72], 1).to_kind(kind), random(&[72], 2));
            let up = random(&[3, 50, 72], 3).to_kind(compute);
            let ours =
                gradients(&[&x, &w], &up, |t| norm(&t[0], &t[1], 1e-5, compute).expect("norm"));
            let theirs = gradients(&[&x, &w], &up, |t| reference(&t[0], &t[1], 1e-5, compute));
            close(&ours, &theirs, tolerance);
        }
    }

    #[test]
    fn addition_and_norm_equal_libtorchs() {
        for (compute, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 8e-3)] {
            let (x, w) = (random(&[2, 40, 64], 1), random(&[64], 2));
            let added = random(&[2, 40, 64], 4).to_kind(compute);
            let up = random(&[2, 40, 64], 3);
            let both = |sum: Tensor, y: Tensor| (sum * 0.5).square() + y.to_kind(Kind::Float);
            let ours = gradients(&[&x, &added, &w], &up, |t| {
                let (sum, y) = add_norm(&t[0], &t[1], &t[2], 1e-6, compute).expect("norm");
                both(sum, y)
            });
            let theirs = gradients(&[&x, &added, &w], &up, |t| {
                let sum = &t[0] + &t[1];
                let y = reference(&sum, &t[2], 1e-6, compute);
                both(sum, y)
            });
            close(&ours, &theirs, tolerance);
        }
    }
}
