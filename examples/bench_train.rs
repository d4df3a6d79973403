//! Training speed of a model with initial weights: tokens/s after a warm-up, as one JSON object.
//!
//!     bench_train PRESET BATCH SEQ STEPS f32|bf16 [LENGTHS]
//!
//! Without LENGTHS every step reads BATCH full rows of SEQ tokens. LENGTHS is a file with a number of tokens per
//! line: every step then reads BATCH samples of those lengths, several to a row of SEQ, and only their tokens
//! are counted. scripts/bench-train runs this beside PyTorch.

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

/// Steps before the clock starts: the first ones allocate.
const WARM_UP: usize = 2;

/// Batches of made-up tokens.
struct Made {
    batch: usize,
    seq: usize,
    steps: usize,
    vocab: i64,
    /// Of each sample of all steps, or none: full rows.
    lengths: Vec<usize>,
}

impl Made {
    /// Lengths of the samples in each row of a step: first fit, in order.
    fn rows(&self, step: usize) -> Vec<Vec<usize>> {
        if self.lengths.is_empty() {
            return vec![vec![self.seq]; self.batch];
        }
        let mut rows: Vec<Vec<usize>> = Vec::new();
        for i in 0..self.batch {
            let length = self.lengths[(step * self.batch + i) % self.lengths.len()].min(self.seq);
            let room = |row: &&mut Vec<usize>| row.iter().sum::<usize>() + length <= self.seq;
            match rows.iter_mut().find(room) {
                Some(row) => row.push(length),
                None => rows.push(vec![length]),
            }
        }
        rows
    }

    /// Tokens of a step without padding.
    fn tokens(&self, step: usize) -> usize {
        self.rows(step).iter().flatten().sum()
    }
}

impl Batches for Made {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.steps
    }

    fn batch(&mut self, _epoch: usize, index: usize) -> Result<Batch> {
        let rows = self.rows(index);
        let seq = rows.iter().map(|row| row.iter().sum()).max().unwrap_or(0);
        let mut state = index as u64;
        let mut id = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            1 + (state >> 33) as i64 % (self.vocab - 1)
        };
        let mut batch = Batch { batch: rows.len(), seq, ..Batch::default() };
        for row in &rows {
            let used = row.iter().sum();
            batch.x.extend((0..seq).map(|i| if i < used { id() } else { 0 }));
            batch.mask.extend((0..seq).map(|i| f32::from(u8::from(i < used))));
            batch.lines.push((0, 1));
        }
        batch.y = batch.x.iter().skip(1).copied().chain([1]).collect();
        if !self.lengths.is_empty() {
            batch.packed = rows;
        }
        Ok(batch)
    }

    fn file(&self, _index: u32) -> String {
        "made up".into()
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |i: usize| args.get(i).map_or("", String::as_str);
    let number = |i: usize| text(i).parse::<usize>().ok();
    let wrong = || Error::usage("expected PRESET BATCH SEQ STEPS f32|bf16 [LENGTHS]");
    let model = presets::preset(text(0)).ok_or_else(wrong)?;
    let (Some(batch), Some(seq), Some(steps)) = (number(1), number(2), number(3)) else {
        return Err(wrong());
    };
    let compute = match text(4) {
        "f32" => Kind::Float,
        "bf16" => Kind::BFloat16,
        _ => return Err(wrong()),
    };
    let lengths = match args.get(5) {
        Some(path) => {
            let lines = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
            lines.lines().map(|line| line.trim().parse().map_err(|_| wrong())).collect()
        }
        None => Ok(Vec::new()),
    };
    mmx::train::keep_memory();
    let vocab = model.vocab_size as i64;
    let model = Model::random(&model, 1, Device::cuda_if_available(), compute)?;
    let config = TrainConfig { accumulation: 1, ..TrainConfig::new(&Pretrain, Recipe::R2026) };
    let mut batches = Made { batch, seq, steps: steps + WARM_UP, vocab, lengths: lengths? };
    let tokens: usize = (WARM_UP..WARM_UP + steps).map(|step| batches.tokens(step)).sum();
    let mut trainer = Trainer::new(&model, &Pretrain, &config, &mut batches)?;
    let mut begun = Instant::now();
    let (mut done, mut loss) = (0, None);
    while let Some(report) = trainer.advance()? {
        loss = report.micro_steps.last().and_then(|m| m.loss);
        done += 1;
        if done == WARM_UP {
            begun = Instant::now();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let result = serde_json::json!({
        "tokens_per_s": tokens as f64 / seconds,
        "ms_per_step": 1e3 * seconds / steps as f64,
        "tokens_per_step": tokens as f64 / steps as f64,
        "parameters": model.config().parameters().0,
        "threads": tch::get_num_threads(),
        "loss": loss,
    });
    use std::io::Write;
    writeln!(std::io::stdout(), "{result}").map_err(|e| Error::io("standard output", e))
}
