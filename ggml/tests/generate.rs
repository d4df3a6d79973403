//! From a prompt to text, with real tokenizers.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

#[expect(dead_code, reason = "each test file uses its part")]
mod common;

use std::path::Path;

use common::{GOLDEN, gguf, shared};
use mmx_converters::Model as Source;
use mmx_converters::gguf::Gguf;
use mmx_converters::model::to_gguf::ToGguf;
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::FileType;
use mmx_ggml::quant::quantize_rows;
use mmx_ggml::run::{
    Finish, Generation, LoadOptions, Model, Sampling, Session, SessionOptions, generate,
    generate_after, generate_shifting,
};

/// A folder of weights with a tokenizer that lies elsewhere.
fn model(weights: &str, tokenizer: &str) -> Model {
    model_of(weights, tokenizer, FileType::F32)
}

fn model_of(weights: &str, tokenizer: &str, file: FileType) -> Model {
    let source = Source::open(shared(weights)).unwrap();
    let keys = Tokenizer::open(shared(tokenizer)).unwrap().to_gguf_keys(&source.config).unwrap();
    let request = ToGguf {
        config: &source.config,
        name: "test",
        license: None,
        generation: &source.generation,
        file_type: file.id(),
        tokenizer: &keys,
        recipe: &|name, shape| (mmx_ggml::recipe(file, &source.config, name, shape, false).0, None),
        quantize: &|_, ty, values, row| Ok(quantize_rows(ty, values, row).unwrap()),
        extra: &[],
        strict: false,
    };
    let name = Path::new("test.gguf");
    let bytes = request.to_bytes(name, &mut |weight| source.weight(weight)).unwrap().0;
    Model::from_gguf(Gguf::from_bytes(bytes, name).unwrap(), LoadOptions::default()).unwrap()
}

fn session(model: &Model) -> Session {
    let options =
        SessionOptions { n_ctx: Some(400), threads: Some(1), ..SessionOptions::default() };
    Session::new(model, options).unwrap()
}

fn request(sampling: Sampling, max_tokens: usize) -> Generation {
    Generation { max_tokens, sampling, stop: Vec::new(), ignore_end: true, speculate: 0 }
}

fn wild(seed: u64) -> Sampling {
    Sampling { temperature: 3.0, seed, ..Sampling::default() }
}

#[test]
fn streamed_pieces_are_whole_characters_and_add_up() {
    let model = model("golden/minimind2", "golden");
    let prompt = model.tokenizer().unwrap().encode("好😀").unwrap();
    for seed in 0..8 {
        let mut pieces = Vec::new();
        let out = generate(&mut session(&model), &prompt, &request(wild(seed), 120), |text| {
            pieces.push(text.to_owned());
            true
        })
        .unwrap();
        assert_eq!(out.ids.len(), 120);
        assert_eq!(out.finish, Finish::Length);
        assert!(pieces.iter().all(|p| !p.is_empty()));
        assert_eq!(pieces.concat(), out.text);
        assert_eq!(out.text, model.tokenizer().unwrap().decode(&out.ids, true));
    }
}

#[test]
fn a_seed_repeats_and_greedy_needs_none() {
    let model = model("golden/minimind3", "golden");
    let prompt = [1, 5, 9];
    let run = |sampling: Sampling| {
        generate(&mut session(&model), &prompt, &request(sampling, 40), |_| true).unwrap().ids
    };
    assert_eq!(run(wild(3)), run(wild(3)));
    assert_ne!(run(wild(3)), run(wild(4)));
    assert_eq!(run(Sampling::default()), run(Sampling { seed: 9, ..Sampling::default() }));
}

/// All four families: greedy and drawn with a seed, from the first draft token to a full context.
#[test]
fn drafting_ahead_writes_the_same_text() {
    for folder in GOLDEN {
        let tokenizer = folder.split('/').next().unwrap();
        for file in [FileType::F32, FileType::F16, FileType::Q8_0, FileType::Q4_0] {
            let model = model_of(folder, tokenizer, file);
            let mut accepted = 0;
            for sampling in [Sampling::default(), Sampling { temperature: 0.7, ..wild(5) }] {
                let run = |speculate: usize, max_tokens: usize| {
                    let mut session = session(&model);
                    let wanted = Generation { speculate, ..request(sampling.clone(), max_tokens) };
                    let prompt = [1, 5, 9, 7, 1, 5, 9];
                    let out = generate(&mut session, &prompt, &wanted, |_| true).unwrap();
                    (out.ids, out.text, out.finish, out.decoded, session.n_past(), out.accepted)
                };
                for max_tokens in [150, 1000] {
                    let alone = run(0, max_tokens);
                    assert_eq!(alone.5, 0);
                    for speculate in [1, 3, 7] {
                        let mut ahead = run(speculate, max_tokens);
                        accepted += std::mem::take(&mut ahead.5);
                        assert_eq!(ahead, alone, "{folder} {file}, {speculate} ahead");
                    }
                }
            }
            assert_eq!(accepted > 0, model.is_batch_invariant(), "{folder} {file}: {accepted}");
        }
    }
}

/// The case `tok-vocab-padding`: rows 259..271 of the embedding have no token.
#[test]
fn ids_without_a_token_are_never_drawn() {
    let folder = "cases/files/tok-vocab-padding";
    let model = model(folder, folder);
    assert_eq!(model.config().vocab_size, 272);
    let mut session = session(&model);
    for seed in 0..10 {
        session.truncate(0);
        let hot = Sampling { temperature: 50.0, seed, ..Sampling::default() };
        let out = generate(&mut session, &[1, 2], &request(hot, 300), |_| true).unwrap();
        assert_eq!(out.ids.len(), 300);
        assert!(out.ids.iter().all(|&id| id < 259), "seed {seed}: {:?}", out.ids);
    }
}

#[test]
fn stops_at_an_end_token_a_text_a_full_context_or_the_callers_wish() {
    let model = model("golden/minimind2", "golden");
    let prompt = [1, 7, 9];
    let whole = generate(&mut session(&model), &prompt, &request(wild(1), 60), |_| true).unwrap();

    let ends = model.tokenizer().unwrap().stop_ids(&model.config().eos_token_id);
    let obedient = Generation { ignore_end: false, ..request(wild(2), 390) };
    let out = generate(&mut session(&model), &prompt, &obedient, |_| true).unwrap();
    assert!(out.ids.iter().all(|id| !ends.contains(id)));

    let word: String = whole.text.chars().skip(10).take(3).collect();
    let stopping = Generation { stop: vec![word.clone()], ..request(wild(1), 60) };
    let mut streamed = String::new();
    let out = generate(&mut session(&model), &prompt, &stopping, |text| {
        streamed.push_str(text);
        true
    })
    .unwrap();
    assert_eq!(out.finish, Finish::Stop);
    assert_eq!(out.text, whole.text[..whole.text.find(&word).unwrap()]);
    assert_eq!(streamed, out.text);

    let full = generate(&mut session(&model), &prompt, &request(wild(1), 1000), |_| true).unwrap();
    assert_eq!((full.finish, full.ids.len()), (Finish::Context, 398));

    let cut = generate(&mut session(&model), &prompt, &request(wild(1), 60), |_| false).unwrap();
    assert_eq!(cut.finish, Finish::Cancelled);
    assert!(cut.ids.len() < 60);

    let none = generate(&mut session(&model), &prompt, &request(wild(1), 0), |_| true).unwrap();
    assert_eq!((none.finish, none.text.as_str()), (Finish::Length, ""));
}

/// A caller that has had enough is heard before there is text to show, and what was read until then
/// is not lost.
#[test]
fn who_listens_is_asked_after_every_token_and_within_a_long_prompt() {
    let model = model("golden/minimind2", "golden");
    let options = SessionOptions { n_ctx: Some(1600), threads: Some(1), ..Default::default() };
    let session = || Session::new(&model, options).unwrap();
    let prompt: Vec<u32> = (0..1100).map(|i| i * 7 % 300 + 3).collect();
    let request = request(wild(4), 40);
    let whole = generate(&mut session(), &prompt, &request, |_| true).unwrap();

    let mut asked = Vec::new();
    let listen = |text: &str| {
        asked.push(text.to_owned());
        true
    };
    let found =
        generate_shifting(&mut session(), &[], &prompt, &request, listen, |_| None).unwrap();
    assert_eq!((&found.ids, &found.text), (&whole.ids, &whole.text));
    assert_eq!(&asked[..2], ["", ""], "between three pieces of the prompt");
    assert!(asked.iter().skip(2).any(String::is_empty), "a token within a character");
    assert!((42..=43).contains(&asked.len()), "40 tokens, and what was held back: {asked:?}");
    assert_eq!(asked.concat(), whole.text);

    let mut stopped = session();
    let mut left = 1;
    let listen = |_: &str| {
        left -= 1;
        left >= 0
    };
    let cut = generate_shifting(&mut stopped, &[], &prompt, &request, listen, |_| None).unwrap();
    assert_eq!((cut.finish, cut.ids.len(), cut.prompt_tokens), (Finish::Cancelled, 0, 1024));
    assert_eq!((stopped.n_past(), &cut.held[..]), (1024, &prompt[..1024]));
    let rest = &prompt[1024..];
    let found = generate_after(&mut stopped, &cut.held, rest, &request, |_| true).unwrap();
    assert_eq!(found.text, whole.text, "what was read is as good as new");

    // within what is read after the context became full
    let mut full = Session::new(&model, SessionOptions { n_ctx: Some(1110), ..options }).unwrap();
    let shifted: Vec<u32> = prompt[200..1000].to_vec();
    let turned = std::cell::Cell::new(false);
    let on_full = |_: &[u32]| {
        turned.set(true);
        Some(shifted.clone())
    };
    let cut =
        generate_shifting(&mut full, &[], &prompt, &request, |_| !turned.get(), on_full).unwrap();
    assert_eq!((cut.finish, full.n_past(), cut.held.len()), (Finish::Cancelled, 512, 512));
    assert_eq!(cut.held, shifted[..512]);
}

#[test]
fn a_model_without_a_tokenizer_says_so() {
    let source = Source::open(shared("golden/minimind2")).unwrap();
    let model = Model::from_gguf(gguf(&source, FileType::F32), LoadOptions::default()).unwrap();
    let error = generate(&mut session(&model), &[1], &request(wild(1), 3), |_| true).unwrap_err();
    assert!(error.to_string().contains("golden.gguf"), "{error}");
}
