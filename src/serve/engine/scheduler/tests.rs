//! Back-pressure: what happens to a text whose client is slow; and texts that come back after they
//! lost their slot.

use mmx_ggml::run::{KvType, LoadOptions, Model, Sampling, SlotsOptions};

use super::*;
use crate::engine::{self, Events, Write};
use mmx_models::open::Form;

const TOKENS: usize = 500;
/// More draft tokens than a client's channel has room for.
const AHEAD: usize = 400;

/// Slots of a golden model, and its tokenizer.
fn golden() -> (Slots, Tokenizer) {
    let shared =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden");
    let form = Form::open(&shared.join("minimind2")).expect("a golden model");
    let gguf = form.to_gguf().expect("a GGUF");
    let model = Model::from_gguf(gguf, LoadOptions::default()).expect("a model");
    let options = SlotsOptions { slots: 2, n_ctx: Some(600), kv: KvType::F32, threads: Some(1) };
    let tokenizer = Tokenizer::open(shared).expect("a tokenizer");
    (Slots::new(&model, options).expect("slots"), tokenizer)
}

fn job(tokenizer: &Tokenizer) -> (Job, Events) {
    asked(tokenizer, "apples", TOKENS)
}

fn asked(tokenizer: &Tokenizer, prompt: &str, max_tokens: usize) -> (Job, Events) {
    let (events, receiver) = engine::events(1);
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let write = Write {
        max_tokens,
        sampling,
        stop: Vec::new(),
        logprobs: Some(0),
        echo_logprobs: false,
        constraint: None,
        ignore_end: true,
    };
    let since = Instant::now();
    let job = Job {
        prompt: tokenizer.encode(prompt).expect("ids"),
        task: Task::Write(Box::new(write)),
        deadline: since + std::time::Duration::from_secs(600),
        since,
        index: 0,
        texts: 1,
        events,
    };
    (job, receiver)
}

/// Takes what is there: ids so far, and true at the end.
fn read(events: &mut Events, ids: &mut Vec<u32>) -> bool {
    while let Ok((_, event)) = events.try_recv() {
        match event {
            Event::Text(_, tokens) => ids.extend(tokens.iter().map(|t| t.id)),
            Event::Done(summary) => {
                assert_eq!((summary.completion_tokens, summary.finish), (TOKENS, Finish::Length));
                return true;
            }
            other => panic!("expected text or its end, found {other:?}"),
        }
    }
    false
}

#[test]
fn a_text_waits_for_a_client_that_reads_slowly_and_loses_nothing() {
    let (slots, tokenizer) = golden();
    let stats = Stats::default();
    let mut scheduler = Scheduler::new(slots, AHEAD, PromptCache::new(0), &tokenizer, &stats);
    let (one, mut quick) = job(&tokenizer);
    let (other, mut slow) = job(&tokenizer);
    scheduler.queue(one);
    scheduler.queue(other);
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    let rounds = (0..TOKENS * 2).take_while(|_| {
        scheduler.round();
        !read(&mut quick, &mut expected)
    });
    assert!(rounds.count() < TOKENS * 2, "the quick client's text ends");
    assert_eq!(expected.len(), TOKENS);
    let written = stats.completion_tokens.load(Ordering::Relaxed) as usize - TOKENS;
    assert!(slow.len() < 150 && written < 150, "{} wait, {written} written", slow.len());
    assert!(!scheduler.round() && !scheduler.is_idle(), "nothing to compute, but not done");
    while !read(&mut slow, &mut found) {
        assert!(scheduler.round() || !slow.is_empty(), "goes on once there is room");
    }
    assert_eq!(found, expected);
    assert!(scheduler.is_idle());
    assert!(stats.accepted_tokens.load(Ordering::Relaxed) > 100, "drafts came true");
}

#[test]
fn a_client_that_does_not_read_at_all_loses_its_slot_and_is_told() {
    let (slots, tokenizer) = golden();
    let stats = Stats::default();
    let mut scheduler = Scheduler::new(slots, 3, PromptCache::new(0), &tokenizer, &stats);
    let (job, mut events) = job(&tokenizer);
    scheduler.queue(job);
    while scheduler.round() {}
    let run = scheduler.lanes.iter_mut().find_map(|lane| lane.run.as_mut()).expect("a run");
    assert!(run.stalled.is_some());
    run.stalled = Instant::now().checked_sub(STALL);
    assert!(run.stalled.is_some(), "a clock that runs for half a minute");
    scheduler.round();
    assert!(scheduler.is_idle() && stats.cancelled.load(Ordering::Relaxed) == 1);
    let mut last = None;
    while let Ok((_, event)) = events.try_recv() {
        last = Some(event);
    }
    let Some(Event::Failed(error)) = last else { panic!("expected an error, found {last:?}") };
    assert_eq!(error.code, Some("client_too_slow"));
}

/// Texts one after the other with two slots and a cache of so many bytes: of each the ids written,
/// and how many tokens of its prompt were not read.
fn in_turn(prompts: &[&str], cache: usize) -> (Vec<(Vec<u32>, usize)>, usize) {
    let (slots, tokenizer) = golden();
    let stats = Stats::default();
    let mut scheduler = Scheduler::new(slots, 0, PromptCache::new(cache), &tokenizer, &stats);
    let mut said = Vec::new();
    for prompt in prompts {
        let (job, mut events) = asked(&tokenizer, prompt, 20);
        scheduler.queue(job);
        let mut ids = Vec::new();
        let mut cached = None;
        while !scheduler.is_idle() {
            scheduler.round();
            while let Ok((_, event)) = events.try_recv() {
                match event {
                    Event::Text(_, tokens) => ids.extend(tokens.iter().map(|t| t.id)),
                    Event::Done(summary) => cached = Some(summary.cached_tokens),
                    other => panic!("expected text or its end, found {other:?}"),
                }
            }
        }
        said.push((ids, cached.expect("an end")));
    }
    (said, stats.prompt_cache_bytes.load(Ordering::Relaxed))
}

#[test]
fn a_text_that_lost_its_slot_is_not_read_again_and_goes_on_the_same() {
    let long = |word: &str| [word; 40].join(" and ");
    let [a, b, c] = ["apples", "trains", "a green house"].map(long);
    let prompts = [a.as_str(), &b, &c, &a, &b, &c];
    let (found, bytes) = in_turn(&prompts, 64 << 20);
    let (expected, none) = in_turn(&prompts, 0);
    assert_eq!(none, 0);
    assert!(bytes > 0);
    let texts =
        |of: &[(Vec<u32>, usize)]| of.iter().map(|(ids, _)| ids.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&found), texts(&expected), "the cache changes no token");
    let (_, tokenizer) = golden();
    for (prompt, (_, cached)) in prompts.iter().zip(&found).skip(3) {
        let length = tokenizer.encode(prompt).expect("ids").len();
        assert_eq!(*cached, length - 1, "all but the last token, whose logits are wanted");
    }
    // three texts take turns in two slots: the one that is asked for was always taken over
    assert!(expected[3..].iter().all(|(_, cached)| *cached < 5), "{expected:?}");
}

#[test]
fn texts_that_lost_their_slot_take_no_more_memory_than_they_may() {
    let long = |word: &str| [word; 40].join(" and ");
    let prompts = ["one", "two", "three", "four", "five", "six"].map(long);
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let (_, all) = in_turn(&prompts, 64 << 20);
    let most = all / 2;
    let (_, bytes) = in_turn(&prompts, most);
    assert!(bytes > 0 && bytes <= most, "{bytes} of {most}");
    let (_, bytes) = in_turn(&prompts, 1000);
    assert_eq!(bytes, 0, "nothing fits");
}
