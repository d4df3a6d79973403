//! The memory that a run takes, told before its first step, and refused where it cannot be there.
//!
//! In: the model's dimensions, what of it is trained, and the largest batch. Out: bytes by what
//! takes them. The activations are counted tensor by tensor as the CPU's kernels keep them for the
//! backward pass. Measured peaks: minimind2-small in float32 (1.3 and 2.4 GB) 1.04 and 1.15 times
//! the estimate, in bfloat16 (1.4 GB) 1.13 times, minimind2-moe (4.7 GB) 0.95 times, each of four
//! processes of minimind2 with one short row (2.3 GB) 0.91 times, with divided gradients (1.5 GB)
//! 1.21 times; tiny (1.0 GB, of which 0.4 are the program's) 1.6 times, since its many blocks of a
//! few megabytes lie in pieces. On a CUDA device, counted without a GPU (`tests/fake_cuda.rs`): minimind2-small 0.89 to
//! 1.01 times, minimind2-moe (5.3 GB) 1.01 times, in bfloat16 (4.1 GB) 0.97, minimind3-moe (5.9 GB)
//! 0.98.

use mmx_converters::arch::{Config, weights as weights_of};
use mmx_converters::words::counted;
use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::memory::available::{available, resident};
use crate::optim::{EXCHANGED, Options};

/// The sizes of a run, from which its memory is estimated.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The model that is trained.
    pub config: &'a Config,
    /// The compute type.
    pub compute: Kind,
    /// The device.
    pub device: Device,
    /// Weights that are trained.
    pub trained: usize,
    /// Values of the optimizer's moments.
    pub moments: usize,
    /// Weights of everything on the device: the model, adapters, a teacher or reference.
    pub weights: usize,
    /// The loss needs the distributions of two models.
    pub two_distributions: bool,
    /// Rows and positions of the largest batch.
    pub largest: (usize, usize),
    /// Processes among which the moments are divided; 1 where each has all.
    pub moments_among: usize,
    /// Processes among which the accumulated gradient is; 1 where each has all.
    pub gradients_among: usize,
}

/// The estimate: bytes by what takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Memory taken before: the program with libtorch, and of the host's memory what else it holds.
    pub program: u64,
    /// Master weights, and models that stay as they are.
    pub weights: u64,
    /// The accumulated gradient, and as much again for what the backward pass leaves in pieces (each
    /// gradient is freed when it has been added); among processes that share it the buckets on
    /// their way.
    pub gradients: u64,
    /// AdamW's two moments a weight, Muon's one.
    pub moments: u64,
    /// Activations that a batch leaves for its backward pass, and what that pass needs on its way.
    pub activations: u64,
    /// Logits of some rows and the head's gradient.
    pub logits: u64,
    /// The part of all these that is not taken yet and that no run does without.
    pub least: u64,
    /// The part of `least` that grows with the batch.
    least_of_batch: u64,
    largest: (usize, usize),
}

/// Bytes of a float32.
const WIDE: u64 = 4;

impl Estimate {
    /// The estimate for a run whose models are loaded.
    pub fn new(work: &Workload<'_>) -> Self {
        let weights = WIDE * work.weights as u64;
        let program = match work.device {
            Device::Cpu => resident().saturating_sub(weights),
            _ => 0,
        };
        Self::beside(work, program)
    }

    fn beside(work: &Workload<'_>, program: u64) -> Self {
        let Workload { config, compute, trained, .. } = *work;
        let (rows, seq) = work.largest;
        let positions = rows as u64 * seq as u64;
        let trained = WIDE * trained as u64;
        let kept = positions.saturating_mul(kept_per_position(config, compute, false));
        let surely_kept = match work.trained < config.parameters().0 {
            // adapters: nothing before the first of them has a gradient
            true => positions.saturating_mul(kept_per_position(config, compute, true)),
            false => kept,
        };
        let passing = positions.saturating_mul(passing_per_position(config));
        let beside_experts = match work.device {
            Device::Cuda(_) => beside_experts(config, compute, positions),
            _ => 0,
        };
        let vocabulary = WIDE * config.vocab_size as u64;
        let chunk = vocabulary * positions.min(LOGIT_ROWS);
        let (hidden, distributions) =
            (config.hidden_size as u64, if work.two_distributions { 6 } else { 2 });
        let of_head = if trained > 0 { 2 * vocabulary * hidden } else { 0 };
        let moments = WIDE * work.moments as u64 / work.moments_among.max(1) as u64;
        let accumulated = trained / work.gradients_among.max(1) as u64;
        let passing_gradients = match work.gradients_among > 1 {
            true => EXCHANGED.min(trained),
            false => trained,
        };
        let least = accumulated.saturating_add(moments).saturating_add(surely_kept);
        Self {
            program,
            weights: WIDE * work.weights as u64,
            gradients: accumulated + passing_gradients,
            moments,
            activations: kept.saturating_add(passing).saturating_add(beside_experts),
            logits: chunk * distributions + of_head,
            least,
            least_of_batch: surely_kept,
            largest: work.largest,
        }
    }

    /// The sum of all parts.
    pub fn peak(&self) -> u64 {
        let parts = [self.program, self.weights, self.gradients, self.moments, self.logits];
        parts.iter().fold(self.activations, |sum, part| sum.saturating_add(*part))
    }

    /// The estimate in one line, in gigabytes.
    pub fn describe(&self, available: Option<u64>) -> String {
        let (rows, seq) = self.largest;
        let left = available.map_or_else(String::new, |left| {
            let taken = self.program + self.weights;
            format!("; {} can be had", gigabytes(left.saturating_add(taken)))
        });
        format!(
            "memory: about {} (program {}, weights {}, gradients {}, moments {}, activations of {rows} x {seq} \
             positions {}, logits {}){left}",
            gigabytes(self.peak()),
            gigabytes(self.program),
            gigabytes(self.weights),
            gigabytes(self.gradients),
            gigabytes(self.moments),
            gigabytes(self.activations),
            gigabytes(self.logits),
        )
    }

    /// Refuses what cannot fit: where even what no run does without is more than can be had.
    ///
    /// # Errors
    /// Too little memory: how much is needed at least, how much there is, and which option to
    /// lower.
    pub fn check(&self, available: Option<u64>) -> Result<()> {
        let Some(available) = available.filter(|&available| self.least > available) else {
            return Ok(());
        };
        let (rows, seq) = self.largest;
        let fixed = self.least - self.least_of_batch;
        let per_row = (self.least_of_batch / rows.max(1) as u64).max(1);
        let hint = match available.saturating_sub(fixed) / per_row {
            0 if fixed > available => {
                "train a smaller model, or adapters alone (mmx train lora)".to_owned()
            }
            0 => "lower `max_seq_len`, or train a smaller model".to_owned(),
            fit => format!(
                "lower `batch_size` (at most {} fit{}; `accum` makes a step of several batches) or \
                 `max_seq_len`",
                counted(usize::try_from(fit).unwrap_or(usize::MAX), "such row"),
                if fit == 1 { "s" } else { "" }
            ),
        };
        Err(Error::failed_with_hint(
            format!(
                "memory: expected a run that fits into the {} that can be had, found one that needs {} at least: {} \
                 for gradients and moments, {} for a batch of {} of {}",
                gigabytes(available),
                gigabytes(self.least),
                gigabytes(fixed),
                gigabytes(self.least_of_batch),
                counted(rows, "row"),
                counted(seq, "position"),
            ),
            hint,
        ))
    }
}

/// Refuses a model that cannot be held, before it is made: its weights, and of one whose weights
/// are trained (by `optimizer`) their gradients and moments.
///
/// # Errors
/// Too little memory: how much is needed and how much there is.
pub fn check_model(config: &Config, optimizer: Option<&Options>, device: Device) -> Result<()> {
    refuse_model(config, optimizer, available(device))
}

fn refuse_model(
    config: &Config,
    optimizer: Option<&Options>,
    available: Option<u64>,
) -> Result<()> {
    let weights = WIDE * config.parameters().0 as u64;
    let needed = match optimizer {
        None => weights,
        Some(optimizer) => {
            let moments = weights_of(config).iter().map(|row| optimizer.moments_of(row)).sum();
            (2 * weights).saturating_add(WIDE.saturating_mul(moments))
        }
    };
    match available.filter(|&available| needed > available) {
        None => Ok(()),
        Some(available) => Err(Error::failed_with_hint(
            format!(
                "memory: expected a model that fits into the {} that can be had, found one whose weights{} take {}",
                gigabytes(available),
                if optimizer.is_some() { ", gradients and moments" } else { "" },
                gigabytes(needed),
            ),
            "take a smaller model: fewer or narrower layers, or another `preset`",
        )),
    }
}

/// Rows of logits that are there at a time: [`crate::loss`] takes them in chunks.
const LOGIT_ROWS: u64 = 512;

/// Bytes that every position of a batch leaves for the backward pass. `adapted`: without the first
/// layer.
fn kept_per_position(config: &Config, compute: Kind, adapted: bool) -> u64 {
    let compute = if compute == Kind::BFloat16 { 2 } else { WIDE };
    let hidden = config.hidden_size as u64;
    let query = (config.num_attention_heads * config.head_dim) as u64;
    let key = (config.num_key_value_heads * config.head_dim) as u64;
    // queries and keys as they are before their norms, in families that have these
    let normed = if config.family.qk_norm() { query + key } else { 0 };
    let feed_forward = match &config.moe {
        // gate, up and their product
        None => 3 * config.intermediate_size as u64,
        // gate, up and product of each expert chosen, with copies of its input and its output; a
        // shared expert's input is the layer's own
        Some(moe) => {
            let (width, chosen) = (moe.intermediate_size as u64, moe.num_experts_per_tok as u64);
            chosen * (3 * width + 2 * hidden) + moe.shared_experts as u64 * 3 * width
        }
    };
    // the residual stream before each norm; the norms, queries, keys, values, and what attention
    // gives
    let layer =
        2 * hidden * WIDE + compute * (2 * hidden + 2 * query + 2 * key + normed + feed_forward);
    let layers = config.num_hidden_layers as u64;
    match adapted {
        true => layers.saturating_sub(1) * layer,
        false => layers * layer + hidden * (WIDE + compute),
    }
}

/// Bytes that experts take on a CUDA device besides: their matrices beside each other, and the slots
/// that are nobody's, at most a quarter of those in use (model/grouped.rs).
fn beside_experts(config: &Config, compute: Kind, positions: u64) -> u64 {
    let Some(moe) = &config.moe else { return 0 };
    let (hidden, width) = (config.hidden_size as u64, moe.intermediate_size as u64);
    let matrices = moe.num_experts as u64 * 3 * width * hidden;
    let slots = moe.num_experts_per_tok as u64 * (3 * width + 2 * hidden);
    let compute = if compute == Kind::BFloat16 { 2 } else { WIDE };
    let layers = config.num_hidden_layers as u64;
    layers * compute * matrices.saturating_add(positions.saturating_mul(slots) / 4)
}

/// Bytes per position that pass while one layer goes backward, and what the head leaves, all in
/// float32.
fn passing_per_position(config: &Config) -> u64 {
    let width = match &config.moe {
        None => config.intermediate_size,
        Some(moe) => moe.intermediate_size * (moe.num_experts_per_tok + moe.shared_experts),
    };
    WIDE * (3 * width as u64 + 6 * config.hidden_size as u64)
}

/// Three digits that count: 0.43 GB, 12.1 GB, 4400 GB.
fn gigabytes(bytes: u64) -> String {
    let gigabytes = bytes as f64 / 1e9;
    let digits = if gigabytes < 10.0 { 2 } else { usize::from(gigabytes < 1000.0) };
    format!("{gigabytes:.digits$} GB")
}

#[cfg(test)]
mod tests {
    use mmx_converters::arch::presets;

    use super::*;
    use crate::optim::MuonOptions;

    fn work(config: &Config, largest: (usize, usize)) -> Workload<'_> {
        let trained = config.parameters().0;
        let (compute, device) = (Kind::Float, Device::Cpu);
        Workload {
            config,
            compute,
            device,
            trained,
            moments: 2 * trained,
            weights: trained,
            two_distributions: false,
            largest,
            moments_among: 1,
            gradients_among: 1,
        }
    }

    #[test]
    fn the_parts_are_those_of_the_dimensions() {
        // hidden 512, 8 layers, 8 heads and 2 for keys of 64, feed-forward 1408
        let config = presets::preset("minimind2-small").expect("a preset");
        let weights = 4 * config.parameters().0 as u64;
        let found = Estimate::beside(&work(&config, (4, 512)), 100);
        assert_eq!((found.program, found.weights), (100, weights));
        assert_eq!((found.gradients, found.moments), (2 * weights, 2 * weights));
        let layer = 4 * (4 * 512 + 2 * 512 + 2 * 128 + 3 * 1408);
        assert_eq!(found.least, 3 * weights + 4 * 512 * (8 * layer + 2 * 4 * 512));
        assert!(found.peak() > found.least + 100 + weights);
        let half =
            Estimate::beside(&Workload { compute: Kind::BFloat16, ..work(&config, (4, 512)) }, 0);
        assert!(half.least < found.least && half.moments == found.moments);
        let shared = Workload { moments_among: 4, gradients_among: 4, ..work(&config, (4, 512)) };
        let shared = Estimate::beside(&shared, 100);
        assert_eq!((shared.moments, shared.least), (weights / 2, found.least - 9 * weights / 4));
        assert!(shared.gradients > weights / 4 && shared.gradients < weights / 2);
    }

    #[test]
    fn experts_on_a_device_take_their_matrices_and_slots_once_more() {
        // 8 layers of 4 experts of which 2 are chosen, hidden 640, width 1728
        let config = presets::preset("minimind2-moe").expect("a preset");
        let on = |device| {
            let work = Workload { device, compute: Kind::BFloat16, ..work(&config, (4, 512)) };
            Estimate::beside(&work, 0)
        };
        let (cpu, device) = (on(Device::Cpu), on(Device::Cuda(0)));
        let matrices = 8 * 2 * 4 * 3 * 640 * 1728;
        let slots = 8 * 2 * 4 * 512 * 2 * (3 * 1728 + 2 * 640) / 4;
        assert_eq!(device.activations - cpu.activations, matrices + slots);
        assert_eq!(device.least, cpu.least);
    }

    #[test]
    fn refuses_what_cannot_fit_and_says_how_many_rows_do() {
        let config = presets::preset("minimind2-small").expect("a preset");
        let found = Estimate::beside(&work(&config, (1000, 512)), 0);
        found.check(None).expect("nothing is known");
        found.check(Some(found.least)).expect("it just fits");
        let error = found.check(Some(found.least - 1)).expect_err("it does not");
        assert!(!error.is_misuse());
        assert!(error.to_string().contains("a batch of 1000 rows of 512 positions"), "{error}");
        assert!(error.hint().expect("a hint").contains("at most 999 such rows"), "{error:?}");

        let fixed = found.least - found.least_of_batch;
        let hint = |available| {
            found.check(Some(available)).expect_err("too little").hint().expect("a hint")
        };
        assert!(hint(fixed + 1000).contains("lower `max_seq_len`"));
        assert!(hint(fixed - 1).contains("mmx train lora"));

        let weights = 4 * config.parameters().0 as u64;
        let adamw = Options::default();
        let trained = |available| refuse_model(&config, Some(&adamw), Some(available));
        trained(4 * weights).expect("it just fits");
        let error = trained(4 * weights - 1).expect_err("it does not");
        assert!(
            error.to_string().contains("found one whose weights, gradients and moments take"),
            "{error}"
        );
        refuse_model(&config, None, Some(weights)).expect("weights alone");
        // the embedding and the norms have two moments, the matrices one
        let muon = Options { muon: Some(MuonOptions::default()), ..adamw };
        let others = 4 * (6400 * 512 + (2 * 8 + 1) * 512);
        let needed = 3 * weights + others;
        refuse_model(&config, Some(&muon), Some(needed)).expect("it just fits");
        refuse_model(&config, Some(&muon), Some(needed - 1)).expect_err("it does not");
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let config = presets::preset("minimind3-moe").expect("a preset");
        let found = Estimate::beside(&work(&config, (1 << 32, 1 << 31)), 0);
        assert!(found.check(Some(1 << 50)).is_err() && found.peak() >= found.least);
    }
}
