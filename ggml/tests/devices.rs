//! Layers on a device against the same on the CPU and against the reference
//! (`scripts/check-vulkan`). Only built with a device's feature; without a device it fails.
#![cfg(any(feature = "cuda", feature = "metal", feature = "vulkan"))]
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

#[expect(dead_code, reason = "each test file uses its part")]
mod common;

use common::{GOLDEN, argmax, assert_close, forward, gguf, shared};
use mmx_converters::Model as Source;
use mmx_converters::gguf::{GgmlType, Gguf, TensorInfo, TensorSpec, to_bytes};
use mmx_ggml::FileType;
use mmx_ggml::quant::dequantize_rows;
use mmx_ggml::run::{
    KvType, LoadOptions, Model, Part, Session, SessionOptions, Slots, SlotsOptions,
};

/// Devices multiply in float32 or, where they have it, round what they multiply to float16 (10 bits
/// of fraction, so 5e-4 relative): MMX_DEVICE_TOLERANCE says which of the two was asked for.
/// Measured on llvmpipe with float16, logits of size 1 to 10: 2.1e-2 at most.
fn limit() -> f32 {
    let set = std::env::var("MMX_DEVICE_TOLERANCE").ok();
    set.map_or(5e-2, |text| text.parse().unwrap())
}

fn load(folder: &str, file: FileType, gpu_layers: usize) -> Model {
    let source = Source::open(shared(folder)).unwrap();
    let options = LoadOptions { gpu_layers, ..LoadOptions::default() };
    Model::from_gguf(gguf(&source, file), options).unwrap()
}

fn options(kv: KvType) -> SessionOptions {
    SessionOptions { n_ctx: Some(300), kv, threads: Some(2) }
}

#[test]
fn logits_equal_the_reference_with_some_layers_or_all_on_the_device() {
    assert!(!mmx_ggml::devices().unwrap().is_empty(), "no device");
    for folder in GOLDEN {
        let expected = forward(folder);
        let layers = load(folder, FileType::F32, 0).config().num_hidden_layers;
        for gpu_layers in [1, 2, usize::MAX] {
            let model = load(folder, FileType::F32, gpu_layers);
            let (device, placed) = model.device().unwrap();
            assert_eq!(placed, gpu_layers.min(layers + 1));
            let vocab = model.config().vocab_size;
            for kv in [KvType::F32, KvType::F16] {
                for (row, ids) in expected.ids.iter().enumerate() {
                    let mut session = Session::new(&model, options(kv)).unwrap();
                    let logits = session.logits_all(ids).unwrap();
                    // a float16 cache rounds keys and values: tests/golden.rs
                    let limit = if kv == KvType::F32 { limit() } else { limit().max(2e-2) };
                    let what =
                        format!("{folder}, {placed} layers on {}, {kv:?}, row {row}", device.name);
                    assert_close(&logits, &expected.logits[row], vocab, limit, &what);
                }
            }
        }
    }
}

#[test]
fn greedy_text_equals_the_reference() {
    for folder in GOLDEN {
        let expected = forward(folder);
        let prompt = &expected.ids[0];
        for gpu_layers in [2, usize::MAX] {
            let model = load(folder, FileType::F32, gpu_layers);
            let mut session = Session::new(&model, options(KvType::F32)).unwrap();
            let mut all = prompt.clone();
            let mut next = argmax(session.prefill(prompt).unwrap());
            while all.len() < expected.greedy.len() {
                all.push(next);
                next = argmax(session.decode(next).unwrap());
            }
            assert_eq!(all, expected.greedy, "{folder}, {gpu_layers} layers");
        }
    }
}

/// The same values as float32.
fn unpacked(file: &Gguf) -> Gguf {
    let of = |t: &TensorInfo| (t.name.clone(), t.shape.clone());
    let specs = file.tensors().iter().map(of);
    let specs: Vec<_> =
        specs.map(|(name, shape)| TensorSpec { name, shape, ty: GgmlType::F32 }).collect();
    let bytes = to_bytes("unpacked.gguf".as_ref(), file.metadata(), &specs, |i| {
        let tensor = &file.tensors()[i];
        let row = *tensor.shape.last().unwrap();
        let values = dequantize_rows(tensor.ty, file.data(tensor), row).unwrap();
        Ok(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into())
    });
    Gguf::from_bytes(bytes.unwrap(), "unpacked.gguf").unwrap()
}

/// The CPU's own kernels round activations to 8 bits; the judge here are the file's weights as
/// float32, on the CPU.
#[test]
fn quantized_weights_give_the_logits_of_the_same_weights_in_float32() {
    for folder in ["golden/minimind2", "golden-2026/minimind3-moe"] {
        let ids = &forward(folder).ids[1];
        let source = Source::open(shared(folder)).unwrap();
        for file in [FileType::F16, FileType::Q8_0, FileType::Q4_0] {
            let exact = unpacked(&gguf(&source, file));
            let exact = Model::from_gguf(exact, LoadOptions::default()).unwrap();
            let [exact, found] = [exact, load(folder, file, usize::MAX)].map(|model| {
                Session::new(&model, options(KvType::F32)).unwrap().logits_all(ids).unwrap()
            });
            // by the mean: a rounded value may choose another expert at a nearly tied router
            let mean = exact.iter().zip(&found).map(|(a, b)| (a - b).abs()).sum::<f32>()
                / exact.len() as f32;
            assert!(mean < limit(), "{folder}, {file}: mean difference {mean}");
        }
    }
}

#[test]
fn texts_computed_together_and_shared_beginnings_equal_one_alone() {
    let folder = "golden-2026/minimind3";
    let ids = &forward(folder).ids[0];
    let model = load(folder, FileType::F32, usize::MAX);
    let vocab = model.config().vocab_size;
    let mut alone = Session::new(&model, options(KvType::F32)).unwrap();
    alone.prefill(&ids[..20]).unwrap();
    let expected = alone.decode(ids[20]).unwrap().to_vec();
    let wanted = SlotsOptions { slots: 3, n_ctx: Some(300), kv: KvType::F32, threads: Some(2) };
    let mut slots = Slots::new(&model, wanted).unwrap();
    slots.step(&[Part { slot: 0, ids: &ids[..20], outputs: 0 }]).unwrap();
    slots.share(0, 2, 20).unwrap();
    let next = &ids[20..21];
    let other = [Part { slot: 1, ids: &ids[5..9], outputs: 1 }];
    let both = [0, 2].map(|slot| Part { slot, ids: next, outputs: 1 });
    let logits = slots.step(&[both[0], other[0], both[1]]).unwrap();
    for row in [0, 2] {
        let row = &logits[row * vocab..(row + 1) * vocab];
        assert_close(row, &expected, vocab, limit(), "together");
    }
}
