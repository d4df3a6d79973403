//! Training speed of a model with initial weights on made-up full batches: tokens/s after a warm-up.
//!
//!     bench_train PRESET BATCH SEQ STEPS f32|bf16 [HIDDEN LAYERS VOCAB]

#![expect(clippy::result_large_err, reason = "one call, whose error ends the program")]

use std::time::Instant;

use mmx::config::TrainConfig;
use mmx::data::{Batch, Recipe};
use mmx::error::{Error, Result};
use mmx::model::Model;
use mmx::stage::Pretrain;
use mmx::train::Trainer;
use mmx::train::batches::Batches;
use mmx_converters::arch::presets;
use tch::{Device, Kind};

struct Made {
    batch: usize,
    seq: usize,
    steps: usize,
    vocab: i64,
}

impl Batches for Made {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.steps
    }

    fn batch(&mut self, _epoch: usize, index: usize) -> Batch {
        let count = self.batch * self.seq;
        let mut state = index as u64;
        let mut id = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            1 + (state >> 33) as i64 % (self.vocab - 1)
        };
        let x: Vec<i64> = (0..count).map(|_| id()).collect();
        let y = x[1..].iter().copied().chain([1]).collect();
        let lines = vec![(0, 1); self.batch];
        let mut batch = Batch { x, y, mask: vec![1.0; count], lines, ..Batch::default() };
        (batch.batch, batch.seq) = (self.batch, self.seq);
        batch
    }

    fn file(&self, _index: u32) -> String {
        "made up".into()
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |i: usize| args.get(i).map_or("", String::as_str);
    let number = |i: usize| text(i).parse::<usize>().ok();
    let wrong = || Error::usage("expected PRESET BATCH SEQ STEPS f32|bf16 [HIDDEN LAYERS VOCAB]");
    let mut model = presets::preset(text(0)).ok_or_else(wrong)?;
    let (Some(batch), Some(seq), Some(steps)) = (number(1), number(2), number(3)) else {
        return Err(wrong());
    };
    if let (Some(hidden), Some(layers), Some(vocab)) = (number(5), number(6), number(7)) {
        (model.hidden_size, model.num_hidden_layers, model.vocab_size) = (hidden, layers, vocab);
        model.head_dim = hidden / model.num_attention_heads;
        model.intermediate_size = (8 * hidden / 3).div_ceil(64) * 64;
    }
    let compute = if text(4) == "bf16" { Kind::BFloat16 } else { Kind::Float };
    mmx::train::keep_memory();
    let vocab = model.vocab_size as i64;
    let model = Model::random(&model, 1, Device::cuda_if_available(), compute)?;
    let config = TrainConfig { accumulation: 1, ..TrainConfig::new(&Pretrain, Recipe::R2026) };
    let mut batches = Made { batch, seq, steps: steps + 2, vocab };
    let mut trainer = Trainer::new(&model, &Pretrain, &config, &mut batches)?;
    let mut begun = Instant::now();
    let mut done = 0;
    while let Some(report) = trainer.advance()? {
        done += 1;
        if done == 2 {
            begun = Instant::now(); // the first steps allocate
        }
        if done == steps + 2 {
            eprintln!("loss {:?}", report.micro_steps.last().and_then(|m| m.loss));
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let tokens = (batch * seq * steps) as f64;
    let (total, _) = model.config().parameters();
    eprintln!(
        "{:.1} M parameters, {batch} x {seq}, {}: {:.0} ms a step, {:.0} tokens/s",
        total as f64 / 1e6,
        text(4),
        1e3 * seconds / steps as f64,
        tokens / seconds
    );
    Ok(())
}
