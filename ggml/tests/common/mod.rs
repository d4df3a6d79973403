//! What the tests share: the golden models as GGUF, their expected numbers, comparisons that say
//! where.

use std::path::{Path, PathBuf};

use mmx_converters::Model;
use mmx_converters::gguf::Gguf;
use mmx_converters::model::to_gguf::ToGguf;
use mmx_converters::safetensors::SafeTensors;
use mmx_ggml::{FileType, quant, recipe};

include!("../../../tests/fixtures/models.rs");

/// A file or folder of the shared fixtures.
pub(crate) fn shared(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(path)
}

/// A folder's weights as the bytes of a GGUF, without a tokenizer.
pub(crate) fn gguf_bytes(model: &Model, file: FileType) -> Vec<u8> {
    let no_tokenizer =
        [("tokenizer.ggml.model".to_owned(), mmx_converters::gguf::Value::String("none".into()))];
    let request = ToGguf {
        config: &model.config,
        name: "golden",
        license: None,
        generation: &model.generation,
        file_type: file.id(),
        tokenizer: &no_tokenizer,
        recipe: &|name, shape| (recipe(file, &model.config, name, shape, false).0, None),
        quantize: &|_, ty, values, row| Ok(quant::quantize_rows(ty, values, row).unwrap()),
        extra: &[],
        strict: false,
    };
    request.to_bytes(Path::new("golden.gguf"), &mut |weight| model.weight(weight)).unwrap().0
}

/// The same, opened.
pub(crate) fn gguf(model: &Model, file: FileType) -> Gguf {
    Gguf::from_bytes(gguf_bytes(model, file), "golden.gguf").unwrap()
}

/// Expected numbers of a golden model.
pub(crate) struct Forward {
    pub(crate) ids: Vec<Vec<u32>>,
    /// Per row `[seq, vocab]`.
    pub(crate) logits: Vec<Vec<f32>>,
    /// The prompt, continued greedily.
    pub(crate) greedy: Vec<u32>,
}

fn ids(file: &SafeTensors, name: &str) -> Vec<Vec<u32>> {
    let view = file.get(name).unwrap();
    let all: Vec<u32> = view
        .data
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
        .collect();
    all.chunks(view.shape[1]).map(<[u32]>::to_vec).collect()
}

/// Reads `forward.safetensors`.
pub(crate) fn forward(folder: &str) -> Forward {
    let file = SafeTensors::open(shared(folder).join("forward.safetensors")).unwrap();
    let logits = file.get("logits").unwrap();
    let per_row = logits.shape[1] * logits.shape[2];
    Forward {
        ids: ids(&file, "input_ids"),
        logits: logits.to_f32().chunks(per_row).map(<[f32]>::to_vec).collect(),
        greedy: ids(&file, "greedy").remove(0),
    }
}

/// `yarn.safetensors`: ids, and the logits of the last positions.
pub(crate) fn yarn(folder: &str) -> (Vec<u32>, Vec<f32>) {
    let file = SafeTensors::open(shared(folder).join("yarn.safetensors")).unwrap();
    (ids(&file, "input_ids").remove(0), file.get("logits_last_64").unwrap().to_f32())
}

/// Fails with the largest difference, its place and both values.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], vocab: usize, limit: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of logits");
    let (mut at, mut worst) = (0, -1.0);
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let difference = (a - b).abs();
        // NaN counts as the worst of all
        if difference > worst || difference.is_nan() {
            (at, worst) = (i, difference);
        }
    }
    assert!(
        worst <= limit,
        "{what}: largest difference {worst} > {limit} at position {}, id {}: {} for {}",
        at / vocab,
        at % vocab,
        found[at],
        expected[at]
    );
}

/// The first of the largest.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}
