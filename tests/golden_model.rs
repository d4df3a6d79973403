//! The ladder's rung "ids to logits": the seven golden models in tch, float32 on CPU.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mmx_converters::arch::Config;
use mmx_converters::safetensors::SafeTensors;
use mmx_converters::tensor::{Dtype, TensorView};
use mmx_training::model::{HostTensor, Model};
use tch::{Device, Kind, Tensor};

include!("fixtures/models.rs");

fn shared(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(path)
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    let found = Tensor::read_safetensors(path);
    found.unwrap_or_else(|e| panic!("{}: {e}", path.display())).into_iter().collect()
}

/// A model from MiniMind's own names; `change` may alter the configuration first.
fn model(folder: &Path, change: impl Fn(&mut Config)) -> Model {
    let (mut config, _) = Config::read(&folder.join("config.json")).expect("a golden config");
    change(&mut config);
    let file = SafeTensors::open(folder.join("model.safetensors")).expect("golden weights");
    Model::load(&config, file.path(), file.names(), |n| file.get(n), Device::Cpu, Kind::Float)
        .expect("a golden model")
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}: shape");
    let difference = (found - expected).abs().flatten(0, -1);
    let at = difference.argmax(0, false).int64_value(&[]);
    let largest = difference.double_value(&[at]);
    let value = |t: &Tensor| t.flatten(0, -1).double_value(&[at]);
    assert!(
        largest <= tolerance, // also false for NaN
        "{what}: largest difference {largest:e} at {at}: expected {}, found {}",
        value(expected),
        value(found)
    );
    eprintln!("{what}: largest difference {largest:e}");
}

/// 2e-5: float32 sums of a few hundred terms in another order than PyTorch's eager kernels.
#[test]
fn logits_equal_the_reference() {
    for name in GOLDEN {
        let golden = tensors(&shared(name).join("forward.safetensors"));
        let logits = model(&shared(name), |_| ()).logits(&golden["input_ids"]).expect("logits");
        assert_close(name, &logits, &golden["logits"], 2e-5);
    }
}

#[test]
fn greedy_continuation_equals_the_reference() {
    for name in GOLDEN {
        let golden = tensors(&shared(name).join("forward.safetensors"));
        let expected: Vec<i64> = Vec::try_from(golden["greedy"].get(0)).expect("ids");
        let expected: Vec<u32> = expected.into_iter().map(|id| id as u32).collect();
        let (given, rest) = expected.split_at(48);
        let found = model(&shared(name), |_| ()).greedy(given, rest.len()).expect("greedy");
        assert_eq!(found, rest, "{name}");
    }
}

/// 1e-5 relative: one scalar, float32.
#[test]
fn balancing_loss_in_training_equals_the_reference() {
    for name in GOLDEN {
        let golden = tensors(&shared(name).join("forward.safetensors"));
        let expected = golden["train_aux_loss"].double_value(&[0]);
        let model = model(&shared(name), |_| ());
        let aux = model.hidden(&golden["input_ids"], true).expect("hidden").aux;
        match aux {
            Some(aux) => {
                let found = aux.double_value(&[]);
                assert!(model.config().moe.is_some(), "{name}: a dense model balances nothing");
                let difference = (found / expected - 1.0).abs();
                assert!(difference <= 1e-5, "{name}: expected {expected}, found {found}");
            }
            None => {
                assert!(model.config().moe.is_none(), "{name}: a mixture has a balancing loss");
                assert_eq!(expected, 0.0, "{name}");
            }
        }
        let inference = model.hidden(&golden["input_ids"], false).expect("hidden").aux;
        assert!(inference.is_none(), "{name}: the balancing loss is for training only");
    }
}

/// 1e-4: the reference computes its angles in float32, which at position 2304 are off by 1e-4 already.
#[test]
fn yarn_logits_equal_the_reference() {
    let folder = shared("golden-2026/minimind3");
    let golden = tensors(&folder.join("yarn.safetensors"));
    let mut json: serde_json::Value =
        serde_json::from_str(&fs_err::read_to_string(folder.join("config.json")).expect("config"))
            .expect("json");
    json["inference_rope_scaling"] = true.into();
    let (with_yarn, _) = Config::from_json(&json, &folder).expect("config");
    let yarn = model(&folder, |config| *config = with_yarn.clone());
    let logits = yarn.logits(&golden["input_ids"]).expect("logits").narrow(1, 2304 - 64, 64);
    assert_close("yarn", &logits, &golden["logits_last_64"], 1e-4);

    let plain = model(&folder, |_| ()).logits(&golden["input_ids"]).expect("logits");
    let off = (plain.narrow(1, 2304 - 64, 64) - &golden["logits_last_64"]).abs().max();
    assert!(off.double_value(&[]) > 1e-3, "without YaRN the logits would differ");
}

/// Weights rounded to 8 bits of mantissa on each use, through two layers: logits of size 1 differ by a
/// few times 2^-8; a wrong cast would differ by their own size. The middle of the positions counts: how a CPU sums
/// bfloat16 decides which expert a nearly tied router takes, and a position with another expert is another one's text.
#[test]
fn bfloat16_logits_are_near_the_float32_ones() {
    for name in GOLDEN {
        let golden = tensors(&shared(name).join("forward.safetensors"));
        let exact = model(&shared(name), |_| ());
        let host = exact.to_host().expect("weights");
        let source =
            |wanted: &str| host.iter().find(|tensor| tensor.name == wanted).map(HostTensor::view);
        let names = host.iter().map(|tensor| tensor.name.as_str());
        let (config, path) = (exact.config(), shared(name));
        let rounded =
            Model::load(config, &path, names, source, Device::Cpu, Kind::BFloat16).expect("model");
        assert!(
            rounded.variables().iter().all(|v| v.tensor.kind() == Kind::Float),
            "master weights"
        );
        let logits = rounded.logits(&golden["input_ids"]).expect("logits");
        assert_eq!(logits.kind(), Kind::Float);
        let differences = (logits - &golden["logits"]).abs(); // [batch, seq, vocab]
        let of_positions = differences.mean_dim(&[-1i64][..], false, Kind::Double); // [batch, seq]
        let difference = of_positions.median().double_value(&[]);
        let size = golden["logits"].abs().mean(Kind::Double).double_value(&[]);
        assert!(difference < 0.03 * size, "{name}: median difference {difference}, size {size}");
    }
}

#[test]
fn every_weight_fault_is_in_one_report() {
    let folder = shared("golden/minimind2");
    let (config, _) = Config::read(&folder.join("config.json")).expect("config");
    let host = model(&folder, |_| ()).to_host().expect("weights");
    let wrong_shape = vec![32, 64];
    let source = |wanted: &str| match wanted {
        "model.norm.weight" => None,
        "model.layers.0.self_attn.q_proj.weight" => {
            Some(TensorView { dtype: Dtype::F32, shape: &wrong_shape, data: &[] })
        }
        "model.layers.1.self_attn.q_proj.weight" => {
            let known = host.iter().find(|tensor| tensor.name == wanted).expect("known");
            Some(TensorView { dtype: Dtype::I32, shape: &known.shape, data: &[] })
        }
        _ => host.iter().find(|tensor| tensor.name == wanted).map(HostTensor::view),
    };
    let names = ["model.layers.2.mlp.up_proj.weight", "lm_head.weight"];
    let error = Model::load(&config, &folder, names, source, Device::Cpu, Kind::Float)
        .expect_err("three faults");
    let text = error.to_string();
    for part in [
        "model.layers.0.self_attn.q_proj.weight: expected shape [64, 64], found [32, 64]",
        "model.layers.1.self_attn.q_proj.weight: expected a float type, found I32",
        "1 missing: model.norm.weight",
        "1 unexpected: model.layers.2.mlp.up_proj.weight",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn rejects_an_id_beyond_the_vocabulary() {
    let model = model(&shared("golden/minimind2"), |_| ());
    let error = model.logits(&Tensor::from_slice(&[3i64, 512]).unsqueeze(0)).expect_err("id 512");
    assert_eq!(error.to_string(), "token ids: expected 0 to 511, found 512");
    assert!(model.greedy(&[], 1).is_err(), "nothing to continue");
}
