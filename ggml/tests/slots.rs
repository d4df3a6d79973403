//! Several texts together: each says what it says alone.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

#[expect(dead_code, reason = "each test file uses its part")]
mod common;

use common::{GOLDEN, argmax, assert_close, forward, gguf, shared};
use mmx_converters::Model as Source;
use mmx_converters::arch::presets;
use mmx_ggml::FileType;
use mmx_ggml::run::random_model::write_random_gguf;
use mmx_ggml::run::{
    Drafter, KvType, LoadOptions, Model, Part, Sampler, Sampling, Session, SessionOptions, Slots,
    SlotsOptions,
};

const N_CTX: usize = 400;
/// Tokens written by each text.
const LENGTH: usize = 200;

fn golden(folder: &str, file: FileType) -> Model {
    let source = Source::open(shared(folder)).unwrap();
    Model::from_gguf(gguf(&source, file), LoadOptions::default()).unwrap()
}

/// A model whose head width our own attention is not compiled for: masks, ggml's own attention.
fn masked(preset: &str) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    let mut config = presets::preset(preset).unwrap();
    (config.vocab_size, config.num_hidden_layers, config.head_dim) = (100, 2, 24);
    config.hidden_size = 24 * config.num_attention_heads;
    config.intermediate_size = 96;
    write_random_gguf(&path, &config, FileType::F32, 3).unwrap();
    Model::load(&path, LoadOptions::default()).unwrap()
}

fn alone(model: &Model, prompt: &[u32], kv: KvType) -> Vec<u32> {
    drawn_alone(model, prompt, kv, &Sampling::default())
}

fn drawn_alone(model: &Model, prompt: &[u32], kv: KvType, sampling: &Sampling) -> Vec<u32> {
    let options = SessionOptions { n_ctx: Some(N_CTX), kv, threads: Some(1) };
    let mut session = Session::new(model, options).unwrap();
    let mut sampler = Sampler::new(sampling.clone(), model.config().vocab_size).unwrap();
    let mut ids = vec![sampler.sample(session.prefill(prompt).unwrap()).unwrap()];
    while ids.len() < LENGTH {
        ids.push(sampler.sample(session.decode(ids[ids.len() - 1]).unwrap()).unwrap());
    }
    ids
}

fn slots(model: &Model, slots: usize, kv: KvType, threads: usize) -> Slots {
    let options = SlotsOptions { slots, n_ctx: Some(N_CTX), kv, threads: Some(threads) };
    Slots::new(model, options).unwrap()
}

/// All prompts together, one joining every few steps, its prompt read in pieces beside the others'
/// tokens.
fn together(slots: &mut Slots, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    drawn_together(slots, prompts, &Sampling::default(), 0, None).0
}

/// The same with at most `ahead` tokens drafted ahead of each text, and how many of all came true.
/// `shared` is two texts, and how many tokens of its prompt the second takes over from the first.
fn drawn_together(
    slots: &mut Slots,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
    ahead: usize,
    shared: Option<(usize, usize, usize)>,
) -> (Vec<Vec<u32>>, usize) {
    let vocab = slots.model().config().vocab_size;
    let sampler = |_: &Vec<u32>| Sampler::new(sampling.clone(), vocab).unwrap();
    let mut samplers: Vec<_> = prompts.iter().map(sampler).collect();
    let mut drafters = vec![Drafter::new(slots.model(), ahead); prompts.len()];
    let mut came_true = 0;
    let mut read = vec![0; prompts.len()];
    let mut texts = vec![Vec::new(); prompts.len()];
    let mut round = 0;
    while texts.iter().any(|text: &Vec<u32>| text.len() < LENGTH) {
        round += 1;
        let mut work: Vec<(usize, Vec<u32>, usize)> = Vec::new();
        for (slot, prompt) in prompts.iter().enumerate() {
            if round < 5 * slot || texts[slot].len() >= LENGTH {
                continue;
            }
            if let Some((from, to, length)) = shared
                && (to, 0) == (slot, read[slot])
            {
                slots.share(from, to, length).unwrap();
                read[slot] = length;
            }
            if read[slot] < prompt.len() {
                let end = (read[slot] + 7).min(prompt.len());
                let outputs = usize::from(end == prompt.len());
                work.push((slot, prompt[read[slot]..end].to_vec(), outputs));
                read[slot] = end;
            } else {
                let text = [prompt.as_slice(), &texts[slot]].concat();
                let drafts = drafters[slot].draft(&text, LENGTH - texts[slot].len() - 1);
                let ids = [&text[text.len() - 1..], &drafts].concat();
                let outputs = ids.len();
                work.push((slot, ids, outputs));
            }
        }
        let parts: Vec<_> = work
            .iter()
            .map(|(slot, ids, outputs)| Part { slot: *slot, ids, outputs: *outputs })
            .collect();
        let logits = slots.step(&parts).unwrap().to_vec();
        let mut rows = logits.chunks(vocab);
        for (slot, ids, outputs) in &work {
            let drafts = &ids[ids.len() + 1 - (*outputs).max(1)..];
            let rows: Vec<_> = rows.by_ref().take(*outputs).collect();
            assert_eq!(rows.len(), *outputs);
            let mut used = 0;
            for row in rows {
                let id = samplers[*slot].sample(row).unwrap();
                texts[*slot].push(id);
                if drafts.get(used) != Some(&id) {
                    break;
                }
                used += 1;
            }
            slots.truncate(*slot, slots.n_past(*slot) - (drafts.len() - used));
            drafters[*slot].learn(drafts.len(), used);
            came_true += used;
        }
        assert!(rows.next().is_none());
    }
    (texts, came_true)
}

fn check(name: &str, model: &Model, prompts: &[Vec<u32>], kv: KvType) {
    let expected: Vec<_> = prompts.iter().map(|prompt| alone(model, prompt, kv)).collect();
    for threads in [1, 2] {
        let found = together(&mut slots(model, prompts.len(), kv, threads), prompts);
        assert_eq!(found, expected, "{name}, {kv:?}, {threads} threads");
    }
}

fn prompts(folder: &str) -> Vec<Vec<u32>> {
    let rows = forward(folder).ids;
    let mut all = vec![rows[0][..3].to_vec(), rows[1].clone(), rows[0][10..31].to_vec()];
    all.extend([rows[1][5..6].to_vec(), rows[0].clone()]);
    all
}

#[test]
fn texts_computed_together_say_what_each_says_alone() {
    for folder in GOLDEN {
        for file in [FileType::F32, FileType::Q8_0, FileType::Q4_0] {
            check(
                &format!("{folder} {file}"),
                &golden(folder, file),
                &prompts(folder),
                KvType::F32,
            );
        }
    }
}

#[test]
fn the_same_with_masks_and_with_a_float16_cache() {
    let prompts = [vec![1, 2, 3], (0..40).collect(), vec![99], (5..30).rev().collect()];
    for preset in ["minimind2", "minimind3"] {
        check(preset, &masked(preset), &prompts, KvType::F32);
    }
    let folder = "golden/minimind3-moe";
    check(folder, &golden(folder, FileType::Q8_0), &self::prompts(folder), KvType::F16);
}

#[test]
fn a_shared_beginning_continues_as_if_read() {
    for folder in GOLDEN {
        let model = golden(folder, FileType::F32);
        let row = &forward(folder).ids[0];
        let expected = alone(&model, row, KvType::F32);
        let mut slots = slots(&model, 3, KvType::F32, 1);
        slots.step(&[Part { slot: 1, ids: &row[..25], outputs: 0 }]).unwrap();
        slots.share(1, 0, 20).unwrap();
        assert_eq!((slots.n_past(0), slots.n_past(1), slots.n_past(2)), (20, 25, 0));
        // the source goes on with something else; the copy stays
        slots.step(&[Part { slot: 1, ids: &[7, 7, 7], outputs: 0 }]).unwrap();
        let logits = slots.step(&[Part { slot: 0, ids: &row[20..], outputs: 1 }]).unwrap();
        let mut ids = vec![argmax(logits)];
        while ids.len() < LENGTH {
            let last = [ids[ids.len() - 1]];
            ids.push(argmax(slots.step(&[Part { slot: 0, ids: &last, outputs: 1 }]).unwrap()));
        }
        assert_eq!(ids, expected, "{folder}");
    }
}

/// All four families: greedy and drawn with a seed, beside each other and each other's prompts,
/// with a shared beginning.
#[test]
fn texts_drafted_ahead_together_say_what_each_says_alone() {
    let seeded = Sampling { temperature: 0.3, seed: 7, ..Sampling::default() };
    for folder in GOLDEN {
        for file in [FileType::F32, FileType::F16, FileType::Q4_0] {
            let model = golden(folder, file);
            let prompts = prompts(folder);
            assert_eq!(prompts[4][..3], prompts[0]);
            let mut came_true = 0;
            for sampling in [Sampling::default(), seeded.clone()] {
                let each = |prompt| drawn_alone(&model, prompt, KvType::F32, &sampling);
                let expected: Vec<_> = prompts.iter().map(|prompt| each(prompt)).collect();
                for ahead in [1, 3] {
                    let mut slots = slots(&model, prompts.len(), KvType::F32, ahead.min(2));
                    let shared = Some((0, 4, 3));
                    let (found, accepted) =
                        drawn_together(&mut slots, &prompts, &sampling, ahead, shared);
                    assert_eq!(found, expected, "{folder} {file}, {sampling:?}, {ahead} ahead");
                    came_true += accepted;
                }
            }
            assert_eq!(came_true > 0, model.is_batch_invariant(), "{folder} {file}: {came_true}");
        }
    }
}

/// The head over a hidden state gives the logits: the states are those before the output matrix.
#[test]
fn hidden_states_are_those_the_logits_come_from() {
    let model = golden("golden/minimind2", FileType::F32);
    let ids = &forward("golden/minimind2").ids[0];
    let (hidden, vocab) = (model.config().hidden_size, model.config().vocab_size);
    let table = model.gguf().data(model.gguf().tensor("token_embd.weight").unwrap());
    let head: Vec<f32> =
        table.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut slots = slots(&model, 2, KvType::F32, 1);
    let states = slots.hidden_all(1, ids).unwrap().to_vec();
    assert_eq!(states.len(), ids.len() * hidden);
    let logits = slots.logits_all(0, ids).unwrap();
    let expected: Vec<f32> = states
        .chunks(hidden)
        .flat_map(|state| {
            head.chunks(hidden)
                .map(move |row| row.iter().zip(state).map(|(a, b)| a * b).sum::<f32>())
        })
        .collect();
    assert_close(logits, &expected, vocab, 1e-4, "head times state");
}

#[test]
fn refuses_what_slots_cannot_serve_and_reads_nothing_then() {
    let model = golden("golden/minimind2", FileType::F32);
    let options = SlotsOptions { slots: 2, n_ctx: Some(8), kv: KvType::F32, threads: Some(1) };
    let mut slots = Slots::new(&model, options).unwrap();
    let part = |slot, ids| Part { slot, ids, outputs: 1 };
    let mut message = |parts: &[Part<'_>]| slots.step(parts).unwrap_err().to_string();
    assert!(message(&[]).contains("1 to 512 tokens"));
    assert!(message(&[part(0, &[1]), part(0, &[2])]).contains("different slots"));
    assert!(message(&[part(2, &[1])]).contains("different slots of 2"));
    assert!(message(&[part(0, &[1]), part(1, &[])]).contains("at least one token"));
    assert!(message(&[part(0, &[1]), part(1, &[512])]).contains("found 512"));
    assert!(message(&[part(0, &[1]), part(1, &[1; 9])]).contains("context of 8 tokens is full"));
    assert!(message(&[Part { outputs: 2, ..part(0, &[1]) }]).contains("at most 1 tokens, found 2"));
    assert_eq!((slots.n_past(0), slots.n_past(1)), (0, 0));
    assert!(slots.share(0, 0, 0).is_err());
    assert!(slots.share(0, 1, 1).is_err());
    assert!(Slots::new(&model, SlotsOptions { slots: 0, ..options }).is_err());
    assert!(Slots::new(&model, SlotsOptions { slots: usize::MAX, ..options }).is_err());
}

#[test]
fn what_a_slot_held_is_put_back_into_any_slot_and_goes_on_with_the_same_bits() {
    for kv in [KvType::F32, KvType::F16] {
        for model in [golden("golden/minimind2", FileType::Q8_0), masked("minimind3")] {
            let prompt: Vec<u32> = (5..45).collect();
            let mut texts = slots(&model, 3, kv, 1);
            texts.step(&[Part { slot: 1, ids: &prompt, outputs: 0 }]).unwrap();
            let copy = texts.held(1).unwrap();
            assert_eq!(copy.bytes(), prompt.len() * texts.bytes_per_token());
            let next = |texts: &mut Slots, slot| {
                texts.step(&[Part { slot, ids: &[7], outputs: 1 }]).unwrap().to_vec()
            };
            let expected = next(&mut texts, 1);
            texts.truncate(1, 0);
            texts.step(&[Part { slot: 1, ids: &[9; 60], outputs: 0 }]).unwrap();
            for slot in [1, 2, 0] {
                texts.restore(slot, &copy, prompt.len()).unwrap();
                assert_eq!(texts.n_past(slot), prompt.len());
                assert_eq!(next(&mut texts, slot), expected, "slot {slot}");
            }
            // a beginning of it
            texts.restore(2, &copy, 10).unwrap();
            texts.step(&[Part { slot: 2, ids: &prompt[10..], outputs: 0 }]).unwrap();
            assert_eq!(next(&mut texts, 2), expected);
            assert!(texts.restore(0, &copy, prompt.len() + 1).is_err());
            assert!(texts.restore(3, &copy, 1).is_err());
            assert!(texts.held(3).is_err());
        }
    }
    let mut other = slots(&golden("golden-2026/minimind3", FileType::Q8_0), 1, KvType::F32, 1);
    let mut texts = slots(&golden("golden/minimind2", FileType::Q8_0), 1, KvType::F32, 1);
    texts.step(&[Part { slot: 0, ids: &[5, 6], outputs: 0 }]).unwrap();
    let copy = texts.held(0).unwrap();
    if texts.bytes_per_token() != other.bytes_per_token() {
        assert!(other.restore(0, &copy, 2).is_err(), "cells of another model");
        assert_eq!(other.n_past(0), 0);
    }
}
