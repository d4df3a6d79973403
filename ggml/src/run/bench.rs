//! The runner's speed, measured as llama-bench measures llama.cpp's.

use super::model::Model;
use super::options::{KvType, SessionOptions, SlotsOptions};
use super::session::Session;
use super::slots::{BATCH, Part, Slots};
use crate::error::Result;
use crate::judge::Speed;
use crate::run::clock::{Clock, made_up_token};

/// Prefill of `n_prompt` made-up tokens, then, from an empty cache, `n_gen` tokens one by one
/// without sampling; float16 cache, one warm-up before each. The same tokens as
/// [`LlamaModel::bench`](crate::judge::LlamaModel::bench) takes.
///
/// # Errors
/// See [`Session::new`] and [`Session::prefill`].
pub fn bench(
    model: &Model,
    n_prompt: usize,
    n_gen: usize,
    threads: usize,
    clock: Clock,
) -> Result<Speed> {
    let options = SessionOptions {
        n_ctx: Some(n_prompt.max(n_gen).max(1)),
        kv: KvType::F16,
        threads: Some(threads),
    };
    let mut session = Session::new(model, options)?;
    let vocab = model.config().vocab_size;
    let token = |i| made_up_token(i, vocab);
    let prompt: Vec<_> = (0..n_prompt).map(token).collect();

    let mut prefill = 0.0;
    if n_prompt > 0 {
        for _warm_then_timed in 0..2 {
            session.truncate(0);
            let start = clock.now();
            session.prefill(&prompt)?;
            prefill = n_prompt as f64 / (clock.now() - start);
        }
    }
    let mut decode = 0.0;
    if n_gen > 0 {
        session.truncate(0);
        session.decode(token(0))?;
        session.truncate(0);
        let start = clock.now();
        for i in 0..n_gen {
            session.decode(token(i))?;
        }
        decode = n_gen as f64 / (clock.now() - start);
    }
    Ok(Speed { prefill, decode })
}

/// Tokens per second of a text read in `steps` steps of `size` tokens; float16 cache. The same
/// tokens as [`LlamaModel::bench_steps`](crate::judge::LlamaModel::bench_steps) takes.
///
/// # Errors
/// See [`Session::new`] and [`Session::prefill`].
pub fn bench_steps(
    model: &Model,
    size: usize,
    steps: usize,
    threads: usize,
    clock: Clock,
) -> Result<f64> {
    let options = SessionOptions {
        n_ctx: Some((size * steps).max(1)),
        kv: KvType::F16,
        threads: Some(threads),
    };
    let mut session = Session::new(model, options)?;
    let vocab = model.config().vocab_size;
    let token = |i| made_up_token(i, vocab);
    let text: Vec<_> = (0..size * steps).map(token).collect();
    let mut rate = 0.0;
    for _warm_then_timed in 0..2 {
        session.truncate(0);
        let start = clock.now();
        for step in text.chunks(size.max(1)) {
            session.prefill(step)?;
        }
        rate = text.len() as f64 / (clock.now() - start);
    }
    Ok(rate)
}

/// Tokens per second of `streams` texts together, one token of each in every step, `n_gen` steps
/// after as many made-up tokens of prompt as `n_prompt`; float16 cache, without sampling.
///
/// # Errors
/// See [`Slots::new`] and [`Slots::step`].
pub fn bench_streams(
    model: &Model,
    streams: usize,
    n_prompt: usize,
    n_gen: usize,
    threads: usize,
    clock: Clock,
) -> Result<f64> {
    let options = SlotsOptions {
        slots: streams,
        n_ctx: Some((n_prompt + n_gen).max(1)),
        kv: KvType::F16,
        threads: Some(threads),
    };
    let mut slots = Slots::new(model, options)?;
    let vocab = model.config().vocab_size;
    let token = |i| made_up_token(i, vocab);
    let mut rate = 0.0;
    for _warm_then_timed in 0..2 {
        for slot in 0..streams {
            slots.truncate(slot, 0);
            let prompt: Vec<_> = (0..n_prompt).map(|i| token(i + slot)).collect();
            for ids in prompt.chunks(BATCH) {
                slots.step(&[Part { slot, ids, outputs: 0 }])?;
            }
        }
        let start = clock.now();
        for i in 0..n_gen {
            let ids: Vec<_> = (0..streams).map(|slot| [token(i * streams + slot)]).collect();
            let parts: Vec<_> =
                ids.iter().enumerate().map(|(slot, ids)| Part { slot, ids, outputs: 1 }).collect();
            slots.step(&parts)?;
        }
        rate = (streams * n_gen) as f64 / (clock.now() - start);
    }
    Ok(rate)
}
