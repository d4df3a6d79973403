//! A model that is trained while it writes: weights in memory, completions of many prompts.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

#[expect(dead_code, reason = "each test file uses its part")]
mod common;

use common::{GOLDEN, forward, gguf, shared};
use mmx_converters::Model as Source;
use mmx_converters::safetensors::SafeTensors;
use mmx_ggml::FileType;
use mmx_ggml::run::{
    LoadOptions, Model, Policy, PolicyOptions, Prompt, Sampling, Session, SessionOptions, Slots,
    SlotsOptions, Values, Written, log_probabilities,
};

/// A tensor: name, shape, values.
type Owned = (String, Vec<usize>, Vec<f32>);

/// All tensors of a Transformers folder.
fn tensors(folder: &str) -> Vec<Owned> {
    let file = SafeTensors::open(shared(folder).join("model.safetensors")).unwrap();
    let names: Vec<_> = file.names().map(str::to_owned).collect();
    let read = |name: String| {
        let view = file.get(&name).unwrap();
        (name, view.shape.to_vec(), view.to_f32())
    };
    names.into_iter().map(read).collect()
}

/// The same weights under mmx's own names, one tensor per expert.
fn own_tensors(folder: &str) -> Vec<Owned> {
    let source = Source::open(shared(folder)).unwrap();
    let read = |weight: &mmx_converters::arch::Weight| {
        let (dtype, bytes) = source.weight(weight).unwrap();
        let view = mmx_converters::tensor::TensorView { dtype, shape: &weight.shape, data: &bytes };
        (weight.name.clone(), weight.shape.clone(), view.to_f32())
    };
    source.weights().iter().map(read).collect()
}

fn values(tensors: &[Owned]) -> impl Iterator<Item = Values<'_>> {
    tensors.iter().map(|(name, shape, values)| Values { name, shape, values })
}

fn options(file: FileType, slots: usize) -> PolicyOptions {
    PolicyOptions { file, slots, threads: Some(2), ..PolicyOptions::default() }
}

fn policy(folder: &str, slots: usize) -> Policy {
    let config = Source::open(shared(folder)).unwrap().config;
    let mut policy = Policy::new(&config, options(FileType::F32, slots)).unwrap();
    policy.take(&mut values(&tensors(folder))).unwrap();
    policy
}

/// The logits of every position, of a policy's own slots.
fn logits(policy: &mut Policy, ids: &[u32]) -> Vec<f32> {
    let slots = policy.slots();
    slots.truncate(0, 0);
    slots.resize(1, 128).unwrap();
    slots.logits_all(0, ids).unwrap().to_vec()
}

#[test]
fn weights_in_memory_compute_what_the_file_does_bit_for_bit() {
    for folder in GOLDEN {
        let source = Source::open(shared(folder)).unwrap();
        let ids = &forward(folder).ids[0];
        for file in [FileType::F32, FileType::F16, FileType::BF16, FileType::Q8_0] {
            for repack in [true, false] {
                let load = LoadOptions { repack, ..LoadOptions::default() };
                let model = Model::from_gguf(gguf(&source, file), load.clone()).unwrap();
                let session = SessionOptions {
                    kv: mmx_ggml::run::KvType::F32,
                    threads: Some(1),
                    ..SessionOptions::default()
                };
                let expected = Session::new(&model, session).unwrap().logits_all(ids).unwrap();
                let options = PolicyOptions { load, ..options(file, 1) };
                let mut policy = Policy::new(&source.config, options).unwrap();
                for tensors in [tensors(folder), own_tensors(folder)] {
                    policy.take(&mut values(&tensors)).unwrap();
                    let found = logits(&mut policy, ids);
                    assert!(found == expected, "{folder} {file}, repack {repack}");
                }
            }
        }
    }
}

#[test]
fn later_weights_replace_earlier_ones_wholly() {
    for folder in GOLDEN {
        let ids = &forward(folder).ids[0];
        let mut policy = policy(folder, 1);
        let before = logits(&mut policy, ids);
        let mut other = tensors(folder);
        let negate = |values: &mut Vec<f32>| values.iter_mut().for_each(|x| *x = 0.5 - *x);
        other.iter_mut().for_each(|(_, _, values)| negate(values));
        policy.take(&mut values(&other)).unwrap();
        assert!(logits(&mut policy, ids) != before, "{folder}");
        // in another order: where each lies does not depend on it
        policy.take(&mut values(&tensors(folder)).collect::<Vec<_>>().into_iter().rev()).unwrap();
        assert!(logits(&mut policy, ids) == before, "{folder}");
    }
}

#[test]
fn tensors_that_are_missing_or_misshapen_are_told_together_and_nothing_is_computed_then() {
    let folder = "golden/minimind2-moe";
    let mut policy = policy(folder, 1);
    let ids = &forward(folder).ids[0];
    let expected = logits(&mut policy, ids);
    let mut broken = tensors(folder);
    let norm = broken.iter().position(|t| t.0 == "model.norm.weight").unwrap();
    broken.remove(norm);
    broken[3].1.push(1);
    broken.push(("model.extra.weight".to_owned(), vec![1], vec![0.0]));
    let error = policy.take(&mut values(&broken)).unwrap_err().to_string();
    for part in ["model.norm.weight", "model.extra.weight", &broken[3].0] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let slots = policy.slots();
    let refused = slots.logits_all(0, ids).unwrap_err().to_string();
    assert!(refused.contains("expected all of them"), "{refused}");
    policy.take(&mut values(&tensors(folder))).unwrap();
    assert!(logits(&mut policy, ids) == expected);
}

#[test]
fn weights_of_files_and_of_shared_models_are_not_overwritten() {
    let folder = "golden/minimind3";
    let source = Source::open(shared(folder)).unwrap();
    let options =
        SlotsOptions { slots: 1, n_ctx: Some(8), kv: Default::default(), threads: Some(1) };
    let model = Model::from_gguf(gguf(&source, FileType::F32), LoadOptions::default()).unwrap();
    let mut slots = Slots::new(&model, options).unwrap();
    let tensors = tensors(folder);
    let message = |slots: &mut Slots| slots.take(&mut values(&tensors)).unwrap_err().to_string();
    assert!(message(&mut slots).contains("found clones of it"));
    drop(model);
    assert!(message(&mut slots).contains("found a file"));
    assert!(Model::in_memory(&source.config, FileType::Q4_0, &LoadOptions::default()).is_err());
}

fn sampling(temperature: f64, top_k: usize, top_p: f64) -> Sampling {
    Sampling { temperature, top_k, top_p, ..Sampling::default() }
}

/// Everything written, by the prompt's index.
fn write(
    policy: &mut Policy,
    prompts: &[Prompt],
    sampling: &Sampling,
    ends: &[u32],
) -> Vec<Written> {
    let mut all = vec![None; prompts.len()];
    let mut take = |index: usize, written: Written| {
        assert!(all[index].is_none());
        all[index] = Some(written);
        Ok(None)
    };
    policy.write(prompts.to_vec(), sampling, ends, &mut take).unwrap();
    all.into_iter().map(Option::unwrap).collect()
}

/// Groups of rows of one prompt each, of different lengths, and a prompt that begins another.
fn prompts(folder: &str) -> Vec<Prompt> {
    let rows = forward(folder).ids;
    let ids = [rows[0][..9].to_vec(), rows[1].clone(), rows[0][..5].to_vec(), vec![7]];
    let prompt = |at: usize| Prompt {
        ids: ids[at / 5].clone(),
        max_new: 1 + at * 7 % 30,
        seed: 1000 + at as u64,
    };
    (0..20).map(prompt).collect()
}

#[test]
fn a_row_is_the_same_whatever_is_written_beside_it() {
    for folder in GOLDEN {
        let prompts = prompts(folder);
        for sampling in [sampling(1.0, 0, 1.0), sampling(0.8, 50, 0.85), sampling(0.0, 0, 1.0)] {
            let mut alone = policy(folder, 1);
            let expected: Vec<Written> = prompts
                .iter()
                .flat_map(|prompt| {
                    write(&mut alone, std::slice::from_ref(prompt), &sampling, &[2, 5])
                })
                .collect();
            assert!(expected.iter().any(|written| written.ids.len() > 20));
            for slots in [1, 3, 64] {
                let mut policy = policy(folder, slots);
                for round in 0..2 {
                    let found = write(&mut policy, &prompts, &sampling, &[2, 5]);
                    assert_eq!(found, expected, "{folder}, {slots} slots, round {round}");
                }
            }
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_logits_over_the_temperature() {
    for folder in GOLDEN {
        let prompts = prompts(folder);
        let mut policy = policy(folder, 64);
        for temperature in [1.0, 0.7] {
            let all = write(&mut policy, &prompts, &sampling(temperature, 0, 1.0), &[]);
            for (prompt, written) in prompts.iter().zip(&all) {
                assert_eq!((written.ids.len(), written.stopped), (prompt.max_new, false));
                let text = [prompt.ids.as_slice(), &written.ids].concat();
                let logits = logits(&mut policy, &text);
                let vocab = logits.len() / text.len();
                let rows = logits.chunks(vocab).skip(prompt.ids.len() - 1);
                for ((row, &id), &logp) in rows.zip(&written.ids).zip(&written.logps) {
                    let scaled: Vec<f32> = row.iter().map(|x| x / temperature as f32).collect();
                    let (expected, _) = log_probabilities(&scaled, id, 0);
                    assert!((logp - expected).abs() < 2e-6, "{folder}: {logp} for {expected}");
                }
            }
        }
    }
}

#[test]
fn texts_end_with_an_end_id_or_at_their_limit() {
    let folder = "golden-2026/minimind3";
    let mut policy = policy(folder, 8);
    let vocab = policy.slots().model().config().vocab_size as u32;
    let prompts = prompts(folder);
    let ends: Vec<u32> = (0..vocab).filter(|id| id % 20 == 3).collect();
    let all = write(&mut policy, &prompts, &sampling(1.0, 0, 1.0), &ends);
    for (prompt, written) in prompts.iter().zip(&all) {
        let (last, before) = written.ids.split_last().unwrap();
        assert_eq!(written.stopped, ends.contains(last));
        assert!(before.iter().all(|id| !ends.contains(id)));
        assert!(written.stopped || written.ids.len() == prompt.max_new);
        assert_eq!(written.ids.len(), written.logps.len());
    }
    assert!(all.iter().any(|w| w.stopped) && all.iter().any(|w| !w.stopped));
}

/// A further turn takes its row's slot over, longer than any before, and is what a fresh prompt is.
#[test]
fn a_further_turn_goes_on_as_if_it_were_read_afresh() {
    for folder in ["golden/minimind2", "golden-2026/minimind3-moe-top2"] {
        let sampling = sampling(1.0, 0, 1.0);
        let first = prompts(folder);
        let mut policy = policy(folder, 3);
        let mut turns: Vec<Vec<(Prompt, Written)>> = vec![Vec::new(); first.len()];
        let mut asked: Vec<Prompt> = first.clone();
        let mut next = |index: usize, written: Written| {
            turns[index].push((asked[index].clone(), written.clone()));
            if turns[index].len() == 1 + index % 3 {
                return Ok(None);
            }
            let mut ids = asked[index].ids.clone();
            ids.extend(&written.ids);
            // what a template adds; the third kind is cut before it goes on
            ids.extend([3, 9, 3]);
            ids.truncate(if index % 3 == 2 { ids.len() - 4 } else { ids.len() });
            asked[index] = Prompt { ids, max_new: 90, seed: index as u64 };
            Ok(Some(asked[index].clone()))
        };
        policy.write(first, &sampling, &[2], &mut next).unwrap();
        let mut alone = self::policy(folder, 1);
        for (index, turns) in turns.iter().enumerate() {
            assert_eq!(turns.len(), 1 + index % 3);
            for (prompt, written) in turns {
                let fresh = write(&mut alone, std::slice::from_ref(prompt), &sampling, &[2]);
                assert_eq!(&fresh[0], written, "{folder}, prompt {index}");
            }
        }
    }
}

#[test]
fn refuses_prompts_that_cannot_be_continued_and_takes_the_error_of_who_asked() {
    let folder = "golden/minimind3";
    let mut policy = policy(folder, 2);
    let config = policy.slots().model().config().clone();
    let (context, vocab) = (config.max_position_embeddings, config.vocab_size);
    let mut message = |ids: Vec<u32>, temperature: f64| {
        let prompts = vec![Prompt { ids, max_new: 4, seed: 1 }];
        let sampling = sampling(temperature, 0, 1.0);
        policy.write(prompts, &sampling, &[], &mut |_, _| Ok(None)).unwrap_err().to_string()
    };
    assert!(message(vec![], 1.0).contains("prompt 0: expected at least one id"));
    assert!(message(vec![vocab as u32], 1.0).contains(&format!("below {vocab}, found {vocab}")));
    let long = message(vec![1; context], 1.0);
    assert!(long.contains(&format!("context of {context}, found {context}")), "{long}");
    assert!(message(vec![1], -1.0).contains("temperature"));
    let refuse = |_, _| Err(mmx_converters::Error::failed("no reward".to_owned()));
    let prompts = vec![Prompt { ids: vec![1], max_new: 4, seed: 1 }; 3];
    let error = policy.write(prompts, &sampling(1.0, 0, 1.0), &[], &mut { refuse }).unwrap_err();
    assert!(error.to_string().contains("no reward"));
    // nothing is asked for: handed over as it is
    let none = vec![Prompt { ids: vec![1], max_new: 0, seed: 1 }];
    assert_eq!(write(&mut policy, &none, &sampling(1.0, 0, 1.0), &[]), [Written::default()]);
    // a text ends where the model's context does
    let last = vec![Prompt { ids: vec![1; context - 2], max_new: 9, seed: 1 }];
    assert_eq!(write(&mut policy, &last, &sampling(1.0, 0, 1.0), &[])[0].ids.len(), 2);
}
