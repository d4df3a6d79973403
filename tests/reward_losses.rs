//! The losses of learning from rewards: TRL's own on given log-probabilities, loss and gradient, and
//! every one against finite differences in float64.

mod common;

use common::shared;
use mmx_data::stages;
use mmx_training::policy::objective::{Tokens, of_groups, of_policy, of_values};
use mmx_training::policy::options::{Importance, PolicyOptions, PpoOptions, Span};
use mmx_training::policy::{importance, rows::Rows};
use serde_json::Value;
use tch::{Device, Kind, TchError, Tensor};

/// Numbers of rows and columns, and where they count.
struct Given {
    json: Value,
    mask: Vec<f64>,
}

fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().expect("a number")],
    }
}

impl Given {
    fn open() -> Self {
        let text = fs_err::read_to_string(shared("golden-rl/losses-beyond.json"));
        let json: Value = serde_json::from_str(&text.expect("a fixture")).expect("JSON");
        let mask = flat(&json["mask"]);
        Self { json, mask }
    }

    fn columns(&self) -> usize {
        self.json["max_completion_length"].as_u64().expect("a length") as usize
    }

    /// What counts with the mask of a case, of `[rows, columns]`.
    fn masked(&self, values: &[f64], mask: &[f64]) -> Tensor {
        let kept = values.iter().zip(mask).filter(|(_, m)| **m != 0.0).map(|(v, _)| *v);
        Tensor::from_slice(&kept.collect::<Vec<f64>>())
    }
}

/// The options of a case, and its mask.
fn options_of(case: &Value, given: &Given) -> (PolicyOptions, Vec<f64>) {
    let number = |key: &str| case[key].as_f64();
    let mut options = PolicyOptions::new(&stages::GRPO, true).expect("options");
    options.choose(case["loss_type"].as_str().expect("a loss")).expect("a known loss");
    if case["loss_type"] == "cispo" {
        options.choose_mean("tokens").expect("a mean"); // TRL's, where the reference has rows
    }
    if case["level"] == "sequence" {
        options.span = Span::Sequence;
    } else {
        options.span = Span::Token;
    }
    options.epsilon = number("eps").expect("a bound");
    options.epsilon_high = number("eps_high").unwrap_or(options.epsilon);
    options.kl_coef = number("beta").expect("a factor");
    options.delta = number("delta");
    options.off_policy = number("opsm");
    options.entropy_coef = number("entropy").expect("a factor");
    options.top_entropy = number("quantile").expect("a share");
    options.importance = case["is_mode"].as_str().map(|mode| Importance {
        span: if mode.starts_with("sequence") { Span::Sequence } else { Span::Token },
        mask: mode.ends_with("mask"),
        cap: number("cap").expect("a cap"),
    });
    let mut mask = given.mask.clone();
    if case["tool_mask"] == true {
        let tools = flat(&given.json["tool_mask"]);
        mask.iter_mut().zip(tools).for_each(|(mask, tool)| *mask *= tool);
    }
    (options, mask)
}

/// The loss of a case as a function of its log-probabilities, and those.
type Loss<'a> = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor, TchError> + 'a>;

/// Calls `with` with every case's loss, its log-probabilities, the case and its mask.
fn each_case(with: impl Fn(&Loss<'_>, &Tensor, &Value, &[f64])) {
    let given = Given::open();
    let cases = given.json["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 24);
    for case in cases {
        let (options, mask) = options_of(case, &given);
        let lengths: Vec<usize> = mask
            .chunks(given.columns())
            .map(|row| row.iter().filter(|m| **m != 0.0).count())
            .collect();
        let rows = Rows::of_lengths(&lengths, false, Kind::Double, Device::Cpu).expect("rows");
        let of = |key: &str| given.masked(&flat(&given.json[key]), &mask);
        let (logps, old, reference) = (of("logps"), of("old_logps"), of("ref_logps"));
        let (sampled, entropies) = (of("sampler_logps"), of("entropies"));
        let advantages = rows.spread_host(&flat(&given.json["advantages"])).expect("advantages");
        let weights = options
            .importance
            .map(|by| importance::weights(&old, &sampled, &rows, by).expect("weights"));
        let loss: Loss<'_> = Box::new(|logps, fixed| {
            let tokens = Tokens {
                rows: &rows,
                old: &old,
                reference: Some(&reference),
                advantages: &advantages,
                weights: weights.as_ref(),
                entropies: Some(&entropies),
                all_entropies: None,
                max_length: given.columns(),
            };
            of_groups(logps, fixed, &tokens, &options)
        });
        with(&loss, &logps, case, &mask);
    }
}

/// The gradient of a loss at some log-probabilities.
fn gradient(loss: &Loss<'_>, at: &Tensor) -> Vec<f64> {
    let leaf = at.detach().copy().set_requires_grad(true);
    let value = loss(&leaf, &leaf.detach()).expect("a loss");
    let gradients = Tensor::run_backward(&[value], &[&leaf], false, false);
    Vec::<f64>::try_from(&gradients[0]).expect("numbers")
}

#[test]
fn losses_and_gradients_equal_trls_in_twenty_four_settings() {
    each_case(|loss, logps, case, mask| {
        let name = case.to_string().chars().take(300).collect::<String>();
        let found = loss(logps, &logps.detach()).expect("a loss").double_value(&[]);
        let expected = case["loss"].as_f64().expect("a loss");
        // TRL's numbers are float32
        assert!((found - expected).abs() < 1e-6, "{name}: expected {expected}, found {found}");
        let mut found = gradient(loss, logps).into_iter();
        for (i, (expected, mask)) in flat(&case["grad"]).into_iter().zip(mask).enumerate() {
            let found = if *mask == 0.0 { 0.0 } else { found.next().expect("a gradient") };
            assert!(
                (found - expected).abs() < 2e-7,
                "{name}: {i}: expected {expected}, found {found}"
            );
        }
    });
}

/// Central differences of a function at some place. Rounding gives 1e-16 / STEP, the next term of
/// the series STEP^2.
fn differences(value: &dyn Fn(&Tensor) -> f64, at: &Tensor) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let moved = |i: i64, by: f64| {
        let other = at.detach().copy();
        let _ = other.get(i).fill_(at.double_value(&[i]) + by);
        value(&other)
    };
    (0..at.size()[0]).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect()
}

fn assert_gradient(name: &str, found: &[f64], expected: &[f64]) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-8, "{name}: {i}: expected {expected}, found {found}");
    }
}

#[test]
fn gradients_equal_finite_differences_in_double_precision() {
    each_case(|loss, logps, case, _| {
        let name = case["loss_type"].to_string();
        let value = |at: &Tensor| loss(at, logps).expect("a loss").double_value(&[]);
        assert_gradient(&name, &gradient(loss, logps), &differences(&value, logps));
    });
    // ppo's two, both sides of both clips among them
    let rows = Rows::of_lengths(&[3, 0, 4], false, Kind::Double, Device::Cpu).expect("rows");
    let numbers = |seed: f64| {
        let values: Vec<f64> = (0..7).map(|i| (f64::from(i) * 1.7 + seed).sin()).collect();
        Tensor::from_slice(&values)
    };
    let (logps, old, reference) = (numbers(0.1), numbers(0.4), numbers(0.2));
    let advantages = numbers(2.0);
    let options = PolicyOptions::new(&stages::PPO, true).expect("options");
    let policy: Loss<'_> = Box::new(|logps, _| {
        let tokens = Tokens {
            rows: &rows,
            old: &old,
            reference: Some(&reference),
            advantages: &advantages,
            weights: None,
            entropies: None,
            all_entropies: None,
            max_length: 9,
        };
        of_policy(logps, &tokens, &options)
    });
    let value = |at: &Tensor| policy(at, at).expect("a loss").double_value(&[]);
    assert_gradient("policy", &gradient(&policy, &logps), &differences(&value, &logps));
    let ppo = PpoOptions::new(&stages::PPO, true).expect("options");
    let values: Loss<'_> = Box::new(|values, _| of_values(values, &old, &advantages, &rows, &ppo));
    let value = |at: &Tensor| values(at, at).expect("a loss").double_value(&[]);
    assert_gradient("value", &gradient(&values, &logps), &differences(&value, &logps));
}
