//! Our quantizer and recipe against llama-quantize itself: the same type and bytes for every
//! tensor.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

use std::path::Path;

use mmx_converters::arch::{Config, presets};
use mmx_converters::gguf::Gguf;
use mmx_converters::quant::imatrix::{Entry, Imatrix};
use mmx_ggml::judge::quantize_file;
use mmx_ggml::quant::{dequantize_rows, quantize_rows, quantize_rows_weighted};
use mmx_ggml::run::random_model::write_random_gguf;
use mmx_ggml::{FileType, recipe};

/// A preset's architecture, small.
fn small(preset: &str, hidden: usize, ffn: usize, layers: usize, tied: bool) -> Config {
    let mut config = presets::preset(preset).unwrap();
    config.vocab_size = 40;
    config.hidden_size = hidden;
    config.head_dim = hidden / config.num_attention_heads;
    config.intermediate_size = ffn;
    config.num_hidden_layers = layers;
    config.tie_word_embeddings = tied;
    if let Some(moe) = &mut config.moe {
        moe.intermediate_size = ffn;
    }
    config
}

/// Compares llama-quantize's file with what we make of the same float32 tensors.
fn compare(config: &Config, files: &[FileType]) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.gguf");
    write_random_gguf(&source, config, FileType::F32, 7).unwrap();
    let original = Gguf::open(&source).unwrap();
    for &file in files {
        let theirs = folder.path().join(format!("{file}.gguf"));
        quantize_file(&source, &theirs, file, 2, None).unwrap();
        compare_file(config, file, &original, &theirs, None);
    }
}

fn compare_file(
    config: &Config,
    file: FileType,
    original: &Gguf,
    theirs: &Path,
    imatrix: Option<&Imatrix>,
) {
    let theirs = Gguf::open(theirs).unwrap();
    assert_eq!(theirs.tensors().len(), original.tensors().len());
    for tensor in original.tensors() {
        let (ty, _) = recipe(file, config, &tensor.name, &tensor.shape, imatrix.is_some());
        let found = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(ty, found.ty, "{file} of {}: {}", config.family.name(), tensor.name);
        let row = *tensor.shape.last().unwrap();
        let values = dequantize_rows(tensor.ty, original.data(tensor), row).unwrap();
        let ours = match imatrix.and_then(|imatrix| imatrix.entries.get(&tensor.name)) {
            None => quantize_rows(ty, &values, row).unwrap(),
            Some(entry) => {
                let experts = values.chunks(values.len() / entry.counts.len());
                let weights = entry.weights();
                let parts = experts.zip(weights.chunks(row));
                parts
                    .flat_map(|(values, weights)| {
                        quantize_rows_weighted(ty, values, row, Some(weights)).unwrap()
                    })
                    .collect()
            }
        };
        assert!(ours == theirs.data(found), "{file}: bytes of {} differ", tensor.name);
    }
}

const WRITTEN: &[FileType] =
    &[FileType::F16, FileType::BF16, FileType::Q8_0, FileType::Q4_0, FileType::Q4_K_M];

const MIXTURES: &[FileType] =
    &[FileType::Q2_K, FileType::Q4_K_S, FileType::TQ2_0, FileType::IQ4_XS, FileType::MXFP4_MOE];

#[test]
fn tied_llama_is_byte_equal() {
    // rows of 256 and of 352: K types fit everywhere but in ffn_down
    compare(&small("minimind2-small", 256, 352, 8, true), FileType::ALL);
}

#[test]
fn untied_llama_is_byte_equal() {
    compare(&small("minimind2", 256, 512, 3, false), MIXTURES);
}

#[test]
fn short_rows_are_byte_equal() {
    // no row divides by 256; rows of 40 by nothing: float16
    compare(&small("minimind2", 64, 192, 2, true), WRITTEN);
    compare(&small("minimind2", 80, 192, 2, true), WRITTEN);
}

#[test]
fn qwen3_is_byte_equal() {
    compare(&small("minimind3", 256, 512, 17, true), WRITTEN);
}

#[test]
fn granite_moe_is_byte_equal() {
    compare(&small("minimind2-moe", 256, 256, 8, true), WRITTEN);
    compare(&small("minimind2-moe", 256, 256, 8, true), MIXTURES);
}

#[test]
fn qwen3_moe_is_byte_equal() {
    let mut config = small("minimind3-moe", 256, 256, 4, true);
    compare(&config, WRITTEN);
    // eight experts have rules of their own
    if let Some(moe) = &mut config.moe {
        moe.num_experts = 8;
    }
    compare(&config, MIXTURES);
}

/// With an importance matrix: other types for a few tensors, other bytes for all, expert by expert;
/// an idle expert among them.
#[test]
fn weighted_by_importance_is_byte_equal() {
    let dense = [FileType::Q5_0, FileType::Q4_K_M, FileType::IQ4_NL];
    let experts = [FileType::Q4_0, FileType::IQ4_XS];
    for (config, files) in [
        (small("minimind2-small", 256, 352, 8, true), &dense[..]),
        (small("minimind3-moe", 256, 256, 2, true), &experts),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source.gguf");
        write_random_gguf(&source, &config, FileType::F32, 7).unwrap();
        let original = Gguf::open(&source).unwrap();
        let mut imatrix = Imatrix::default();
        for tensor in original.tensors().iter().filter(|t| t.name.starts_with("blk.")) {
            if tensor.shape.len() < 2 || tensor.name.contains("ffn_gate_inp") {
                continue;
            }
            let columns = *tensor.shape.last().unwrap();
            let experts = if tensor.shape.len() == 3 { tensor.shape[0] } else { 1 };
            let sums = (0..experts * columns).map(|i| (i * 7919 % 1009) as f32 + 0.5).collect();
            let counts =
                (0..experts).map(|e| if experts > 1 && e == 1 { 0.0 } else { 3.0 }).collect();
            imatrix.entries.insert(tensor.name.clone(), Entry { columns, sums, counts });
        }
        for &file in files {
            let theirs = folder.path().join(format!("{file}.gguf"));
            quantize_file(&source, &theirs, file, 2, Some(&imatrix)).unwrap();
            compare_file(&config, file, &original, &theirs, Some(&imatrix));
        }
    }
}

#[test]
fn a_missing_file_is_named_with_the_reason() {
    let missing = Path::new("nowhere/model.gguf");
    let error = quantize_file(missing, Path::new("nowhere/out.gguf"), FileType::Q4_0, 1, None);
    let message = error.unwrap_err().to_string();
    assert!(message.starts_with("nowhere/model.gguf"), "{message}");
    assert!(message.contains("No such file"), "{message}");
}
