//! Training speed of a model with initial weights: tokens/s after a warm-up, as one JSON object.
//!
//!     bench_train PRESET BATCH SEQ STEPS f32|bf16 [LENGTHS]
//!
//! Without LENGTHS every step reads BATCH full rows of SEQ tokens. LENGTHS is a file with a number of tokens per
//! line: every step then reads BATCH samples of those lengths, one after the other. scripts/bench-train runs this beside PyTorch.

use std::time::Instant;

use mmx_converters::arch::presets;
use mmx_converters::error::{Error, Result};
use mmx_data::batches::Batches;
use mmx_data::{Batch, Recipe};
use mmx_training::config::TrainConfig;
use mmx_training::model::Model;
use mmx_training::stage::Pretrain;
use mmx_training::trainer::Trainer;
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
    /// Of the samples of a step.
    fn samples(&self, step: usize) -> Vec<usize> {
        match self.lengths.len() {
            0 => vec![self.seq; self.batch],
            n => (0..self.batch)
                .map(|i| self.lengths[(step * self.batch + i) % n].min(self.seq))
                .collect(),
        }
    }
}

impl Batches for Made {
    fn micro_steps(&mut self, _epoch: usize) -> usize {
        self.steps
    }

    fn batch(&mut self, _epoch: usize, index: usize) -> Result<Batch> {
        let samples = self.samples(index);
        let tokens = samples.iter().sum();
        let mut state = index as u64;
        let mut id = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            1 + (state >> 33) as i64 % (self.vocab - 1)
        };
        let x: Vec<i64> = (0..tokens).map(|_| id()).collect();
        let y = x.iter().skip(1).copied().chain([1]).collect();
        let (mask, lines) = (vec![1.0; tokens], vec![(0, 1); samples.len()]);
        let batch = Batch { x, y, mask, lines, ..Batch::default() };
        Ok(match self.lengths.len() {
            0 => Batch { batch: self.batch, seq: self.seq, ..batch },
            _ => Batch { batch: 1, seq: tokens, packed: samples, ..batch },
        })
    }

    fn file(&self, _index: u32) -> String {
        "made up".into()
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text = |i: usize| args.get(i).map_or("", String::as_str);
    let number = |i: usize| text(i).parse::<usize>().ok();
    let wrong = || Error::misuse("expected PRESET BATCH SEQ STEPS f32|bf16 [LENGTHS]");
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
    mmx_training::memory::keep_memory();
    let vocab = model.vocab_size as i64;
    let model = Model::random(&model, 1, Device::cuda_if_available(), compute)?;
    let config = TrainConfig { accumulation: 1, ..TrainConfig::new(&Pretrain, Recipe::R2026) };
    let mut batches = Made { batch, seq, steps: steps + WARM_UP, vocab, lengths: lengths? };
    let tokens: usize =
        (WARM_UP..WARM_UP + steps).map(|step| batches.samples(step).iter().sum::<usize>()).sum();
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
