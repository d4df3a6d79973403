//! The runner and llama.cpp against the reference's own numbers, on the golden models.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

mod common;

use common::{GOLDEN, argmax, assert_close, forward, gguf, gguf_bytes, shared, yarn};
use mmx_converters::Model as Source;
use mmx_converters::arch::{RopeScaling, Yarn, presets};
use mmx_ggml::judge::LlamaModel;
use mmx_ggml::run::random_model::write_random_gguf;
use mmx_ggml::run::{KvType, LoadOptions, Model, Session, SessionOptions};
use mmx_ggml::{CpuSet, FileType};

/// The largest difference that float32 sums in another order may make: 1.3e-5 was measured for
/// llama.cpp.
const LIMIT: f32 = 1e-4;

fn exact() -> SessionOptions {
    SessionOptions { n_ctx: Some(128), kv: KvType::F32, threads: Some(1) }
}

fn runner(folder: &str, file: FileType) -> Model {
    let source = Source::open(shared(folder)).unwrap();
    Model::from_gguf(gguf(&source, file), LoadOptions::default()).unwrap()
}

/// The model on each instruction set that this CPU has, from `portable` on.
fn on_each_set(folder: &str, file: FileType) -> impl Iterator<Item = (CpuSet, Model)> {
    let source = Source::open(shared(folder)).unwrap();
    CpuSet::here().into_iter().map(move |cpu| {
        let options = LoadOptions { cpu: Some(cpu), ..LoadOptions::default() };
        (cpu, Model::from_gguf(gguf(&source, file), options).unwrap())
    })
}

#[test]
fn logits_equal_the_reference() {
    for folder in GOLDEN {
        let expected = forward(folder);
        for (cpu, model) in on_each_set(folder, FileType::F32) {
            assert_eq!(model.cpu(), cpu);
            let vocab = model.config().vocab_size;
            for (row, ids) in expected.ids.iter().enumerate() {
                let mut session = Session::new(&model, exact()).unwrap();
                let logits = session.logits_all(ids).unwrap();
                let what = format!("{folder}, row {row}, {cpu}");
                assert_close(&logits, &expected.logits[row], vocab, LIMIT, &what);
            }
        }
    }
}

#[test]
fn greedy_text_equals_the_reference() {
    for folder in GOLDEN {
        let expected = forward(folder);
        let prompt = &expected.ids[0];
        for (cpu, model) in on_each_set(folder, FileType::F32) {
            let mut session = Session::new(&model, exact()).unwrap();
            let mut all = prompt.clone();
            let mut next = argmax(session.prefill(prompt).unwrap());
            while all.len() < expected.greedy.len() {
                all.push(next);
                next = argmax(session.decode(next).unwrap());
            }
            assert_eq!(all, expected.greedy, "{folder}, {cpu}");
        }
    }
}

#[test]
fn one_batch_equals_token_by_token() {
    for folder in GOLDEN {
        let ids = &forward(folder).ids[0];
        let model = runner(folder, FileType::F32);
        let vocab = model.config().vocab_size;
        for kv in [KvType::F32, KvType::F16] {
            let options = SessionOptions { kv, ..exact() };
            let together = Session::new(&model, options).unwrap().logits_all(ids).unwrap();
            let mut session = Session::new(&model, options).unwrap();
            for (i, &id) in ids.iter().enumerate() {
                let single = session.decode(id).unwrap();
                let row = &together[i * vocab..(i + 1) * vocab];
                // a float16 cache rounds keys and values: the two paths add in another order around
                // it
                let limit = if kv == KvType::F32 { LIMIT } else { 2e-2 };
                assert_close(single, row, vocab, limit, &format!("{folder}, {kv:?}, token {i}"));
            }
        }
    }
}

#[test]
fn forgetting_and_reading_on_equals_reading_afresh() {
    let ids = &forward("golden/minimind3-moe").ids[0];
    let model = runner("golden/minimind3-moe", FileType::F32);
    let vocab = model.config().vocab_size;
    let mut session = Session::new(&model, exact()).unwrap();
    session.prefill(ids).unwrap();
    session.truncate(10);
    assert_eq!(session.n_past(), 10);
    let again = session.prefill(&ids[10..20]).unwrap().to_vec();
    let mut afresh = Session::new(&model, exact()).unwrap();
    assert_close(&again, afresh.prefill(&ids[..20]).unwrap(), vocab, LIMIT, "after truncate");
}

#[test]
fn llama_cpp_agrees() {
    let folder_of_files = tempfile::tempdir().unwrap();
    for folder in GOLDEN {
        let expected = forward(folder);
        let source = Source::open(shared(folder)).unwrap();
        let path = folder_of_files.path().join("model.gguf");
        fs_err::write(&path, gguf_bytes(&source, FileType::F32)).unwrap();
        let judge = LlamaModel::open(&path).unwrap();
        let vocab = judge.vocab_size();
        for (row, ids) in expected.ids.iter().enumerate() {
            let logits = judge.logits(ids, 1).unwrap();
            let what = format!("llama.cpp, {folder}, row {row}");
            assert_close(&logits, &expected.logits[row], vocab, LIMIT, &what);
        }
        let prompt = &expected.ids[0];
        let greedy = judge.greedy(prompt, expected.greedy.len() - prompt.len(), 1).unwrap();
        assert_eq!(greedy, expected.greedy[prompt.len()..], "llama.cpp, {folder}");
    }
}

#[test]
fn quantized_files_give_llama_cpps_logits() {
    let folder_of_files = tempfile::tempdir().unwrap();
    for folder in GOLDEN {
        let ids = &forward(folder).ids[1];
        let source = Source::open(shared(folder)).unwrap();
        for file in [FileType::F16, FileType::BF16, FileType::Q8_0, FileType::Q4_0] {
            let path = folder_of_files.path().join("model.gguf");
            fs_err::write(&path, gguf_bytes(&source, file)).unwrap();
            let judge = LlamaModel::open(&path).unwrap().logits(ids, 1).unwrap();
            for repack in [true, false] {
                let model =
                    Model::load(&path, LoadOptions { repack, ..LoadOptions::default() }).unwrap();
                let vocab = model.config().vocab_size;
                let logits = Session::new(&model, exact()).unwrap().logits_all(ids).unwrap();
                // The same weights; activations are quantized alike, but a sum in another order may
                // round to the next step there, and a nearly tied router may choose another expert:
                // judged by the mean.
                let mean = logits.iter().zip(&judge).map(|(a, b)| (a - b).abs()).sum::<f32>()
                    / logits.len() as f32;
                assert!(mean < 0.02, "{folder}, {file}, repack {repack}: mean difference {mean}");
                assert_eq!(logits.len(), ids.len() * vocab);
            }
        }
    }
}

/// Every quantized type there is a kernel for, on matrices wide enough for all of them, dense and
/// experts: prompt and single tokens, on each instruction set that this CPU has.
#[test]
fn every_type_on_every_set_gives_llama_cpps_logits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let files = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m"];
    let files = files.into_iter().chain(["q6_k", "iq4_nl", "iq4_xs"]);
    let ids: Vec<u32> = (0..24).map(|i| i * 37 % 256).collect();
    for (preset, name) in files.flat_map(|name| ["minimind3", "minimind2-moe"].map(|p| (p, name))) {
        let mut config = presets::preset(preset).unwrap();
        (config.vocab_size, config.num_hidden_layers) = (256, 2);
        (config.hidden_size, config.intermediate_size) = (256, 512);
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (4, 2, 64);
        if let Some(moe) = &mut config.moe {
            moe.intermediate_size = 512;
        }
        write_random_gguf(&path, &config, name.parse().unwrap(), 5).unwrap();
        let judge = LlamaModel::open(&path).unwrap().logits(&ids, 1).unwrap();
        let largest = judge.iter().fold(0.0, |most: f32, x| x.abs().max(most));
        for cpu in CpuSet::here() {
            let options = LoadOptions { cpu: Some(cpu), ..LoadOptions::default() };
            let model = Model::load(&path, options).unwrap();
            let together = Session::new(&model, exact()).unwrap().logits_all(&ids).unwrap();
            let mut session = Session::new(&model, exact()).unwrap();
            let singly: Vec<f32> =
                ids.iter().flat_map(|&id| session.decode(id).unwrap().to_vec()).collect();
            let what = format!("{preset}, {name}, {cpu}");
            if model.is_batch_invariant() {
                assert_eq!(together, singly, "{what}");
            }
            // activations are rounded alike or (K types, in llama.cpp) in larger blocks, and a
            // nearly tied router may choose another expert: judged by the mean
            let apart = together.iter().zip(&judge).map(|(a, b)| (a - b).abs());
            let mean = apart.sum::<f32>() / judge.len() as f32;
            assert!(mean < 0.02 * largest, "{what}: mean difference {mean}, largest {largest}");
        }
    }
}

#[test]
fn yarn_equals_the_reference_beyond_the_trained_length() {
    let mut source = Source::open(shared("golden-2026/minimind3")).unwrap();
    source.config.rope_scaling = Some(RopeScaling::Yarn(Yarn {
        factor: 16.0,
        original_max_position_embeddings: 2048,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.0,
    }));
    let (ids, expected) = yarn("golden-2026/minimind3");
    let model = Model::from_gguf(gguf(&source, FileType::F32), LoadOptions::default()).unwrap();
    let vocab = model.config().vocab_size;
    let options = SessionOptions { n_ctx: Some(ids.len()), ..exact() };
    let logits = Session::new(&model, options).unwrap().logits_all(&ids).unwrap();
    let last = &logits[logits.len() - expected.len()..];
    assert_close(last, &expected, vocab, LIMIT, "YaRN");
}

#[test]
fn refuses_what_a_session_cannot_serve() {
    let model = runner("golden/minimind2", FileType::F32);
    let options = SessionOptions { n_ctx: Some(4), ..exact() };
    let mut session = Session::new(&model, options).unwrap();
    let message = |result: mmx_ggml::Result<&[f32]>| result.unwrap_err().to_string();
    assert!(message(session.prefill(&[])).contains("at least one token"));
    assert!(message(session.decode(512)).contains("below 512, found 512"));
    assert!(message(session.prefill(&[1; 5])).contains("context of 4 tokens is full"));
    session.prefill(&[1; 4]).unwrap();
    assert!(message(session.decode(1)).contains("4 are in it"));
    assert!(Session::new(&model, SessionOptions { n_ctx: Some(0), ..exact() }).is_err());
}

#[test]
fn lists_every_tensor_that_does_not_fit() {
    let mut source = Source::open(shared("golden/minimind2")).unwrap();
    let bytes = gguf_bytes(&source, FileType::F32);
    // the same bytes, read as a model of three layers and another feed-forward width
    let mut patched = bytes.clone();
    source.config.num_hidden_layers = 3;
    let patch = |bytes: &mut Vec<u8>, key: &[u8], value: u32| {
        let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    patch(&mut patched, b"llama.block_count", 3);
    patch(&mut patched, b"llama.feed_forward_length", 96);
    let message = |bytes: &[u8]| {
        let options = LoadOptions::default();
        Model::from_bytes(bytes.to_vec(), "patched.gguf", options).unwrap_err().to_string()
    };
    // a list of this many would take all memory
    let mut endless = bytes.clone();
    patch(&mut endless, b"llama.block_count", i32::MAX as u32);
    assert!(message(&endless).contains("expected at most 262144 tensors in all"));
    let message = message(&patched);
    assert!(message.starts_with("patched.gguf"), "{message}");
    assert!(message.contains("9 missing: blk.2.attn_norm.weight"), "{message}");
    assert!(message.contains("expected shape [96, 64], found [192, 64]"), "{message}");
}

/// A head width that our own attention is not compiled for, rows that our own kernel cannot take,
/// and several threads: ggml's operations, against llama.cpp.
#[test]
fn odd_widths_and_threads_agree_with_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    for (preset, head_dim, file) in [
        ("minimind2", 24, FileType::F32),
        ("minimind3", 24, FileType::F16),
        ("minimind2-moe", 40, FileType::F32),
        ("minimind3-moe", 32, FileType::F32),
    ] {
        let mut config = presets::preset(preset).unwrap();
        (config.vocab_size, config.num_hidden_layers, config.head_dim) = (100, 3, head_dim);
        config.hidden_size = head_dim * config.num_attention_heads;
        config.intermediate_size = 96;
        if let Some(moe) = &mut config.moe {
            moe.intermediate_size = 96;
        }
        write_random_gguf(&path, &config, file, 3).unwrap();
        let ids: Vec<u32> = (0..70).map(|i| i * 37 % 100).collect();
        let judge = LlamaModel::open(&path).unwrap().logits(&ids, 1).unwrap();
        let model = Model::load(&path, LoadOptions::default()).unwrap();
        for threads in [1, 3] {
            let options = SessionOptions { threads: Some(threads), ..exact() };
            let mut session = Session::new(&model, options).unwrap();
            let mut logits = session.logits_all(&ids[..20]).unwrap();
            for &id in &ids[20..] {
                logits.extend_from_slice(session.decode(id).unwrap());
            }
            // float16 weights: ggml rounds activations to float16 too, in both engines
            let limit = if file == FileType::F32 { LIMIT } else { 1e-3 };
            assert_close(&logits, &judge, 100, limit, &format!("{preset}, {threads} threads"));
        }
    }
}
