//! Causal attention over samples that lie one after the other, forward and backward.
//!
//! A sample's scores are computed for some queries at a time, up to their diagonal, and never kept:
//! the backward pass computes them again from the logarithms of the softmax's sums (FlashAttention,
//! Dao et al. 2022, arXiv:2205.14135). Several query heads may share a key and value head.
//!
//! Samples may go on from another one, whose positions they see before their own: its keys and
//! values are there once, and their gradients are summed over all who saw them, in the samples'
//! order.
#![expect(unsafe_code, reason = "threads write rows of their own")]

mod keys;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod product;
mod shape;

use half::bf16;
use tch::{Kind, TchError, Tensor};

use self::keys::{KeyGradients, gradients_of_keys};
use self::shape::{BLOCK, Saved, Shape, tasks};
use super::element::{Element, dot, exp_all, largest, load, store};
use super::matmul::{Matrix, matmul};
use super::memory::{Rows, empty, read, write};
use crate::kernel::autograd::differentiable;

/// Causal attention of `query [batch, seq, heads, head_dim]`, `key` and
/// `value [batch, seq, kv_heads, head_dim]` to `[batch, seq, heads, head_dim]`. `lengths` of the
/// samples sum to `batch * seq`; no position sees another sample, but for the one that its sample
/// goes on from: `parents` of the samples, none of which has a parent itself (empty: there are
/// none). The scale is 1 / sqrt(head_dim).
pub(crate) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    lengths: &[i64],
    parents: &[Option<usize>],
) -> Result<Tensor, TchError> {
    let plain = |t: &Tensor| t.f_detach()?.f_contiguous();
    let (q, k, v) = (plain(query)?, plain(key)?, plain(value)?);
    let (_, _, heads, head_dim) = q.size4()?;
    let (batch, seq, kv_heads, _) = k.size4()?;
    let parent = |i: usize| parents.get(i).copied().flatten();
    let bad = parents.iter().flatten().find(|&&of| of >= lengths.len() || parent(of).is_some());
    if bad.is_some() || (!parents.is_empty() && parents.len() != lengths.len()) {
        return Err(TchError::Torch(format!(
            "attention: expected samples that go on from one without a parent, found {parents:?}"
        )));
    }
    let (tasks, families, shared_rows) = tasks(lengths, parents, kv_heads as usize);
    let shape = Shape {
        heads: heads as usize,
        kv_heads: kv_heads as usize,
        head_dim: head_dim as usize,
        tasks,
        families,
        shared_rows,
    };
    if lengths.iter().sum::<i64>() != batch * seq {
        return Err(TchError::Torch(format!(
            "attention: expected samples of {} positions in all, found {lengths:?}",
            batch * seq
        )));
    }
    let (out, sums) = match q.kind() {
        Kind::Float => forward::<f32>(&q, &k, &v, &shape),
        #[cfg(target_arch = "x86_64")]
        _ if pairs::fits(shape.head_dim, shape.group()) => pairs::forward(&q, &k, &v, &shape),
        _ => forward::<bf16>(&q, &k, &v, &shape),
    }?;
    let result = out.shallow_clone();
    differentiable(&[query, key, value], &[&result], move |given, _wanted| {
        let Some(d_out) = &given[0] else { return Ok(vec![None, None, None]) };
        let d_out = d_out.f_contiguous()?;
        let saved = Saved { q: &q, k: &k, v: &v, out: &out, sums: &sums };
        let gradients = match q.kind() {
            Kind::Float => backward::<f32>(&saved, &d_out, &shape),
            #[cfg(target_arch = "x86_64")]
            _ if pairs::fits(shape.head_dim, shape.group()) => {
                pairs::backward(&saved, &d_out, &shape)
            }
            _ => backward::<bf16>(&saved, &d_out, &shape),
        }?;
        Ok(gradients.map(Some).into())
    })?;
    Ok(result)
}

/// One thread's matrices, float32.
struct Buffers {
    /// `[longest, head_dim]`
    key: Vec<f32>,
    value: Vec<f32>,
    d_key: Vec<f32>,
    d_value: Vec<f32>,
    /// `[BLOCK, head_dim]`
    query: Vec<f32>,
    d_query: Vec<f32>,
    out: Vec<f32>,
    d_out: Vec<f32>,
    /// `[BLOCK, longest]`
    scores: Vec<f32>,
    d_scores: Vec<f32>,
}

impl Buffers {
    fn new(longest: usize, head_dim: usize) -> Self {
        let zeros = |n: usize| vec![0.0f32; n * head_dim];
        let square = || vec![0.0f32; BLOCK * longest];
        Self {
            key: zeros(longest),
            value: zeros(longest),
            d_key: zeros(longest),
            d_value: zeros(longest),
            query: zeros(BLOCK),
            d_query: zeros(BLOCK),
            out: zeros(BLOCK),
            d_out: zeros(BLOCK),
            scores: square(),
            d_scores: square(),
        }
    }
}

/// Rows `[index, head_dim]` of `from` to float32, one after the other.
fn gather<T: Element>(from: &[T], width: usize, rows: impl Iterator<Item = usize>, to: &mut [f32]) {
    for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
        load(&from[row * width..(row + 1) * width], to);
    }
}

/// The output, and the logarithm of each softmax's sum, float32 `[tokens, heads]`.
fn forward<T: Element>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &Shape,
) -> Result<(Tensor, Tensor), TchError> {
    let (d, kv_heads, group) = (shape.head_dim, shape.kv_heads, shape.group());
    let mut out = empty(&q.size(), T::KIND)?;
    let mut sums = empty(&[q.numel() as i64 / d.max(1) as i64], Kind::Float)?;
    let (q, k, v): (&[T], &[T], &[T]) = (read(q)?, read(k)?, read(v)?);
    let out_to = Rows::new(write::<T>(&mut out)?, d);
    let sums_to = Rows::new(write::<f32>(&mut sums)?, 1);
    let buffers = || Buffers::new(shape.longest(), d);
    shape.on_all_threads(buffers, |task, b| {
        let (before, length, all) = (task.before.len(), task.tokens.len(), task.key_count());
        let kv_rows = || task.keys().map(|token| token * kv_heads + task.kv_head);
        gather(k, d, kv_rows(), &mut b.key[..all * d]);
        gather(v, d, kv_rows(), &mut b.value[..all * d]);
        for member in 0..group {
            for first in (0..length).step_by(BLOCK) {
                let count = BLOCK.min(length - first);
                let end = before + first + count; // keys up to the diagonal
                let row = |i: usize| shape.row(task.tokens.start + first + i, task.kv_head, member);
                gather(q, d, (0..count).map(row), &mut b.query);
                let queries = Matrix::new(&b.query[..count * d], count, d);
                let keys = Matrix::new(&b.key[..end * d], end, d);
                matmul(&mut b.scores, end, queries, keys.transposed(), shape.scale(), false);
                for (i, scores) in b.scores.chunks_exact_mut(end).take(count).enumerate() {
                    let (seen, unseen) = scores.split_at_mut(before + first + i + 1);
                    let most = largest(seen);
                    let sum = exp_all(seen, most);
                    unseen.fill(0.0);
                    // SAFETY: a token's head belongs to one task, and to one of its blocks.
                    let log_sum = unsafe { sums_to.take(row(i)..row(i) + 1) };
                    log_sum.fill(most + sum.ln());
                    b.d_out[i] = 1.0 / sum;
                }
                let scores = Matrix::new(&b.scores[..count * end], count, end);
                let values = Matrix::new(&b.value[..end * d], end, d);
                matmul(&mut b.out, d, scores, values, 1.0, false);
                for (i, out) in b.out.chunks_exact_mut(d).take(count).enumerate() {
                    out.iter_mut().for_each(|x| *x *= b.d_out[i]);
                    // SAFETY: as above.
                    store(out, unsafe { out_to.take(row(i)..row(i) + 1) });
                }
            }
        }
    });
    Ok((out, sums))
}

/// Gradients of query, key and value. With P the softmax, O the output and D the row sums of dO *
/// O: dV = P' dO, dS = P * (dO V' - D) * scale, dQ = dS K, dK = dS' Q.
fn backward<T: Element>(
    saved: &Saved<'_>,
    d_out: &Tensor,
    shape: &Shape,
) -> Result<[Tensor; 3], TchError> {
    let (d, kv_heads, group) = (shape.head_dim, shape.kv_heads, shape.group());
    let mut dq = empty(&saved.q.size(), T::KIND)?;
    let (q, k, v): (&[T], &[T], &[T]) = (read(saved.q)?, read(saved.k)?, read(saved.v)?);
    let (out, d_out): (&[T], &[T]) = (read(saved.out)?, read(d_out)?);
    let sums: &[f32] = read(saved.sums)?;
    let dq_to = Rows::new(write::<T>(&mut dq)?, d);
    let run = |gradients: &KeyGradients<'_, T>| {
        shape.on_all_threads(
            || Buffers::new(shape.longest(), d),
            |task, b| {
                let (before, length, all) =
                    (task.before.len(), task.tokens.len(), task.key_count());
                let kv_rows = || task.keys().map(|token| token * kv_heads + task.kv_head);
                gather(k, d, kv_rows(), &mut b.key[..all * d]);
                gather(v, d, kv_rows(), &mut b.value[..all * d]);
                b.d_key[..all * d].fill(0.0);
                b.d_value[..all * d].fill(0.0);
                for member in 0..group {
                    for first in (0..length).step_by(BLOCK) {
                        let count = BLOCK.min(length - first);
                        let end = before + first + count; // keys up to the diagonal
                        let row = |i: usize| {
                            shape.row(task.tokens.start + first + i, task.kv_head, member)
                        };
                        gather(q, d, (0..count).map(row), &mut b.query);
                        gather(out, d, (0..count).map(row), &mut b.out);
                        gather(d_out, d, (0..count).map(row), &mut b.d_out);
                        let queries = Matrix::new(&b.query[..count * d], count, d);
                        let d_outs = Matrix::new(&b.d_out[..count * d], count, d);
                        let keys = Matrix::new(&b.key[..end * d], end, d);
                        let values = Matrix::new(&b.value[..end * d], end, d);
                        matmul(
                            &mut b.scores,
                            end,
                            queries,
                            keys.transposed(),
                            shape.scale(),
                            false,
                        );
                        matmul(&mut b.d_scores, end, d_outs, values.transposed(), 1.0, false);
                        let rows =
                            b.scores.chunks_exact_mut(end).zip(b.d_scores.chunks_exact_mut(end));
                        for (i, (scores, d_scores)) in rows.take(count).enumerate() {
                            let at = i * d..(i + 1) * d;
                            let along = dot(&b.d_out[at.clone()], &b.out[at]);
                            let (seen, unseen) = scores.split_at_mut(before + first + i + 1);
                            let (d_seen, d_unseen) = d_scores.split_at_mut(before + first + i + 1);
                            exp_all(seen, sums[row(i)]);
                            unseen.fill(0.0);
                            d_unseen.fill(0.0);
                            for (ds, p) in d_seen.iter_mut().zip(seen) {
                                *ds = *p * (*ds - along) * shape.scale();
                            }
                        }
                        let scores = Matrix::new(&b.scores[..count * end], count, end);
                        let d_scores = Matrix::new(&b.d_scores[..count * end], count, end);
                        matmul(&mut b.d_value, d, scores.transposed(), d_outs, 1.0, true);
                        matmul(&mut b.d_key, d, d_scores.transposed(), queries, 1.0, true);
                        matmul(&mut b.d_query, d, d_scores, keys, 1.0, false);
                        for (i, dq) in b.d_query.chunks_exact(d).take(count).enumerate() {
                            // SAFETY: a token's head belongs to one task, and to one of its blocks.
                            store(dq, unsafe { dq_to.take(row(i)..row(i) + 1) });
                        }
                    }
                }
                gradients.put(task, &b.d_key, &b.d_value);
            },
        )
    };
    let [dk, dv] = gradients_of_keys(saved, shape, run)?;
    Ok([dq, dk, dv])
}

#[cfg(test)]
mod tests {
    use super::super::memory::testing::{close, gradients, random};
    use super::*;

    /// libtorch's attention, sample by sample.
    fn reference(t: &[Tensor], lengths: &[i64]) -> Tensor {
        let (batch, seq, heads, d) = t[0].size4().expect("four dimensions");
        let kv_heads = t[1].size()[2];
        let repeated = |x: &Tensor| {
            x.unsqueeze(3).expand([batch, seq, kv_heads, heads / kv_heads, d], false).reshape([
                batch * seq,
                heads,
                d,
            ])
        };
        let (q, k, v) = (t[0].view([batch * seq, heads, d]), repeated(&t[1]), repeated(&t[2]));
        let mut start = 0;
        let samples: Vec<Tensor> = lengths
            .iter()
            .map(|&length| {
                let one = |x: &Tensor| x.narrow(0, start, length).transpose(0, 1).unsqueeze(0);
                let (q, k, v) = (one(&q), one(&k), one(&v));
                start += length;
                let none = None::<Tensor>;
                Tensor::scaled_dot_product_attention(&q, &k, &v, none, 0.0, true, None, false)
                    .squeeze_dim(0)
                    .transpose(0, 1)
            })
            .collect();
        Tensor::cat(&samples, 0).view([batch, seq, heads, d])
    }

    #[test]
    fn attention_and_its_gradients_equal_libtorchs() {
        for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 2e-2)] {
            for lengths in [[150i64, 150].as_slice(), &[1, 64, 85, 65, 7, 78]] {
                // 48: heads that a CPU with products of pairs computes by these
                for (heads, width) in [(4, 24), (4, 48), (6, 64)] {
                    let q = random(&[2, 150, heads, width], 1).to_kind(kind);
                    let k = random(&[2, 150, 2, width], 2).to_kind(kind);
                    let v = random(&[2, 150, 2, width], 3).to_kind(kind);
                    let up = random(&[2, 150, heads, width], 4);
                    let ours = gradients(&[&q, &k, &v], &up, |t| {
                        attention(&t[0], &t[1], &t[2], lengths, &[]).expect("attention")
                    });
                    // the reference in float32 on the same values: libtorch's bfloat16 kernel rounds
                    // scores
                    let wide = [&q, &k, &v].map(|t| t.to_kind(Kind::Float));
                    let theirs =
                        gradients(&[&wide[0], &wide[1], &wide[2]], &up, |t| reference(t, lengths));
                    let ours: Vec<Tensor> = ours.iter().map(|t| t.to_kind(Kind::Float)).collect();
                    close(&ours, &theirs, tolerance);
                }
            }
        }
    }

    /// Two samples that go on from a third, one of them by a single position, and one by itself:
    /// the same as with what they go on from before each of them.
    #[test]
    fn samples_that_go_on_from_another_see_it_as_their_own_beginning() {
        let (lengths, parents) = ([70i64, 90, 1, 20], [None, Some(0), Some(0), None]);
        for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 2e-2)] {
            for width in [24, 64] {
                let shape = |heads| [1, 181, heads, width];
                let q = random(&shape(4), 1).to_kind(kind);
                let (k, v) =
                    (random(&shape(2), 2).to_kind(kind), random(&shape(2), 3).to_kind(kind));
                let up = random(&shape(4), 4);
                let ours = gradients(&[&q, &k, &v], &up, |t| {
                    attention(&t[0], &t[1], &t[2], &lengths, &parents).expect("attention")
                });
                let wide = [&q, &k, &v].map(|t| t.to_kind(Kind::Float));
                // whole: the shared positions three times
                let places: Vec<i64> = (0..70).chain(0..160).chain(0..70).chain(160..181).collect();
                let places = Tensor::from_slice(&places);
                let own: Vec<i64> = (0..70).chain(140..230).chain(300..321).collect();
                let own = Tensor::from_slice(&own);
                let theirs = gradients(&[&wide[0], &wide[1], &wide[2]], &up, |t| {
                    let t: Vec<Tensor> = t.iter().map(|t| t.index_select(1, &places)).collect();
                    reference(&t, &[70, 160, 71, 20]).index_select(1, &own)
                });
                let ours: Vec<Tensor> = ours.iter().map(|t| t.to_kind(Kind::Float)).collect();
                close(&ours, &theirs, tolerance);
            }
        }
    }

    #[test]
    fn rejects_parents_that_are_none() {
        let x = random(&[1, 10, 2, 8], 1);
        for parents in [[None, Some(2), None], [Some(1), Some(2), None], [None, None, None]] {
            let found = attention(&x, &x, &x, &[4, 4, 2], &parents[..]);
            let chain = parents[0].is_some();
            assert_eq!(found.is_err(), chain, "{parents:?}");
        }
        let error = attention(&x, &x, &x, &[4, 6], &[None, Some(2)]).expect_err("no such sample");
        assert!(error.to_string().contains("without a parent"), "{error}");
    }

    #[test]
    fn rejects_lengths_that_do_not_make_up_the_batch() {
        let x = random(&[1, 10, 2, 8], 1);
        let error = attention(&x, &x, &x, &[4, 5], &[]).expect_err("9 of 10").to_string();
        assert!(error.contains("expected samples of 10 positions"), "{error}");
    }
}
