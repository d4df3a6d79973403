//! What the runner says of the ids it sampled is what the trainer computes for them: the weights in
//! both, the text in both, log-probabilities id by id.
#![expect(clippy::print_stdout, reason = "the differences that are measured are shown on demand")]

use std::path::{Path, PathBuf};

use mmx_converters::Model;
use mmx_converters::tensor::TensorView;
use mmx_ggml::run::{Policy, PolicyOptions, Prompt, Sampling, Values};
use mmx_training::logits::Logits;

include!("fixtures/models.rs");

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name)
}

fn log_softmax(logits: &[f32], temperature: f64, id: u32) -> f64 {
    let scaled = logits.iter().map(|&x| f64::from(x) / temperature);
    let largest = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scaled.map(|x| (x - largest).exp()).sum();
    f64::from(logits[id as usize]) / temperature - largest - total.ln()
}

/// Issue's bound: a mean of 1e-3. Both halves add float32 in another order, so it is some 1e-6, and
/// ten times that would be a fault of one of them.
#[test]
fn sampled_log_probabilities_are_the_trainers() {
    const MEAN: f64 = 1e-5;
    const MOST: f64 = 1e-4;
    for name in GOLDEN {
        let model = Model::open(folder(name)).unwrap();
        let weights: Vec<_> = model
            .weights()
            .iter()
            .map(|weight| {
                let (dtype, bytes) = model.weight(weight).unwrap();
                let values = TensorView { dtype, shape: &weight.shape, data: &bytes }.to_f32();
                (weight, values)
            })
            .collect();
        let mut policy = Policy::new(&model.config, PolicyOptions::default()).unwrap();
        policy
            .take(&mut weights.iter().map(|(weight, values)| Values {
                name: &weight.name,
                shape: &weight.shape,
                values,
            }))
            .unwrap();
        let trainer = Logits::open(&model, 1, "cpu", false).unwrap();
        let vocab = model.config.vocab_size;
        for temperature in [1.0, 0.8] {
            // groups of one prompt, read once, and of another; rows end at different lengths
            let prompts: Vec<Prompt> = (0..16)
                .map(|row: u32| Prompt {
                    ids: (0..4 + row / 4 * 9).map(|i| (i * 13 + row / 4) % vocab as u32).collect(),
                    max_new: 8 + 4 * row as usize,
                    seed: row.into(),
                })
                .collect();
            let sampling = Sampling { temperature, ..Sampling::default() };
            let (mut sum, mut most, mut count) = (0.0, 0.0f64, 0.0);
            let mut next = |index: usize, written: mmx_ggml::run::Written| {
                let prompt: &Prompt = &prompts[index];
                let text = [prompt.ids.as_slice(), &written.ids].concat();
                let logits = trainer.of(&text).unwrap();
                let rows = logits.chunks(vocab).skip(prompt.ids.len() - 1);
                for ((row, &id), &logp) in rows.zip(&written.ids).zip(&written.logps) {
                    let off = (f64::from(logp) - log_softmax(row, temperature, id)).abs();
                    (sum, most, count) = (sum + off, most.max(off), count + 1.0);
                }
                Ok(None)
            };
            policy.write(prompts.clone(), &sampling, &[2], &mut next).unwrap();
            let mean = sum / count;
            println!(
                "{name}, temperature {temperature}: {count} ids, mean {mean:.1e}, most {most:.1e}"
            );
            assert!(count > 300.0 && mean <= MEAN && most <= MOST, "{name}: {mean}, {most}");
        }
    }
}
