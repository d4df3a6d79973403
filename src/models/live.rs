//! Running servers beside the forms of a model: greedy text token by token, and the probabilities
//! that they return, against the reference's.
//!
//! The reference follows the server: at every token of its text it says which it would have taken,
//! and how likely it finds the server's. So one token that differs does not make all that come
//! after it differ too.

use std::collections::HashMap;

use mmx_converters::gguf::GgmlType;
use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::{Result, chat};
use mmx_hub::live::{Prompt, Server, Token, Told, Written};

use crate::compare::{argmax, log_likelihood};
use crate::consumers::check::{CHAT, RAW};
use crate::engines::Engine;
use crate::limit::{Measure, default_limit};

/// Tokens of each text.
const TOKENS: usize = 24;
/// How far a logit may be below the likeliest one's before a text without probabilities counts as
/// another one. Source: measured for the programs of `consumers::check`.
const GAP: f64 = 0.15;
/// The least probability that is told apart from none: servers round what they return.
const LEAST: f64 = 1e-9;

/// The place where a server's text is not the reference's.
#[derive(Clone, Debug, PartialEq)]
pub struct First {
    /// `text` or `chat`.
    pub prompt: &'static str,
    /// The token's place in the answer, from 0.
    pub position: usize,
    /// The reference's token.
    pub expected: String,
    /// The server's.
    pub found: String,
    /// How far the logit of the server's is below that of the reference's.
    pub gap: f64,
}

/// A server beside the reference.
#[derive(Clone, Debug)]
pub struct Row {
    /// The server's name as it was given.
    pub server: String,
    /// Its kind.
    pub kind: &'static str,
    /// The type of its weights, if it says so.
    pub ty: Option<String>,
    /// Tokens compared.
    pub tokens: usize,
    /// Largest absolute difference of a logarithm of a probability that it returned.
    pub max_abs_diff: Option<f64>,
    /// Mean over tokens of KL(reference || server), nats, over the tokens that it returned and all
    /// others as one.
    pub mean_kl: Option<f64>,
    /// Share of its tokens that the reference would have taken too.
    pub top1_agreement: f64,
    /// Its prompts have as many tokens as the reference's; nothing where it does not say.
    pub tokens_equal: Option<bool>,
    /// The first difference.
    pub first: Option<First>,
    /// What it does not return.
    pub not_returned: Vec<String>,
    /// The measure that decides.
    pub measure: Measure,
    /// Limit of the measure.
    pub tolerance: f64,
    /// Why it is not ok, in words; nothing where it is.
    pub fault: Option<String>,
}

/// The reference's side.
pub(crate) struct Reference<'a> {
    pub(crate) engine: &'a mut dyn Engine,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Ids that end a text.
    pub(crate) ends: Vec<u32>,
    /// The types of the forms compared: a server runs one of them.
    pub(crate) types: Vec<GgmlType>,
    /// Limit that replaces the default one: the largest difference of a logarithm.
    pub(crate) tolerance: Option<f64>,
}

/// What was gathered over both prompts.
#[derive(Default)]
struct Sums {
    tokens: usize,
    same: usize,
    worst: Option<f64>,
    kl: Vec<f64>,
    /// The largest distance of a logit from the likeliest one's.
    gap: f64,
    equal: Option<bool>,
    first: Option<First>,
    lacking: Vec<String>,
}

/// Compares a server with the reference.
///
/// # Errors
/// A server that does not answer, or refuses both prompts.
pub(crate) fn compare(server: &mut Server, truth: &mut Reference<'_>) -> Result<Row> {
    let ty = server.prepare()?;
    let spelled = spellings(truth.tokenizer);
    let mut sums = Sums::default();
    let mut refusals = Vec::new();
    let text = truth.tokenizer.encode_text(RAW)?;
    let mut prompts = vec![("text", Prompt::Text(RAW), text)];
    if truth.tokenizer.template().is_some() {
        let messages = [chat::message("user", CHAT)];
        let prompt = truth.tokenizer.encode_chat(&messages, &chat::Options::generation())?;
        prompts.push(("chat", Prompt::Chat(CHAT), prompt.ids));
    }
    let asked = prompts.len();
    for (name, prompt, ids) in prompts {
        match server.ask(prompt, TOKENS) {
            Ok(told) => follow(name, &told, ids, truth, &spelled, &mut sums)?,
            Err(refusal) => refusals.push((name, refusal)),
        }
    }
    if refusals.len() == asked {
        let (_, first) = refusals.remove(0);
        return Err(first);
    }
    sums.lacking.extend(refusals.into_iter().map(|(name, why)| format!("a {name} ({why})")));
    let mean_kl = (!sums.kl.is_empty()).then(|| sums.kl.iter().sum::<f64>() / sums.kl.len() as f64);
    let (measure, tolerance) = match truth.tolerance {
        Some(limit) => (Measure::MaxAbsDiff, limit),
        None => (Measure::MeanKl, limit(&truth.types, ty.as_deref())),
    };
    let value = match measure {
        Measure::MaxAbsDiff => sums.worst,
        Measure::MeanKl => mean_kl,
    };
    let fault = match value {
        _ if sums.equal == Some(false) => Some("other ids".to_owned()),
        Some(value) if value <= tolerance => None,
        Some(_) => Some(format!("{} > {tolerance:.1e}", measure.name())),
        None if sums.gap <= GAP => None,
        None => Some("another text".to_owned()),
    };
    Ok(Row {
        server: server.name.clone(),
        kind: server.kind(),
        ty,
        tokens: sums.tokens,
        max_abs_diff: sums.worst,
        mean_kl,
        top1_agreement: if sums.tokens == 0 { 1.0 } else { sums.same as f64 / sums.tokens as f64 },
        tokens_equal: sums.equal,
        first: sums.first,
        not_returned: sums.lacking,
        measure,
        tolerance,
        fault,
    })
}

/// The limit of the mean KL divergence: that of the coarsest type in play. Servers keep their caches
/// in 16 bits, so float32 counts as float16.
fn limit(types: &[GgmlType], told: Option<&str>) -> f64 {
    let of = |ty: GgmlType| match ty {
        GgmlType::F32 | GgmlType::F64 => default_limit(GgmlType::F16, 1.0).1,
        other => default_limit(other, 1.0).1,
    };
    let told = told.map(|name| {
        let name = name.to_ascii_uppercase();
        let known = [
            ("F32", GgmlType::F32),
            ("F16", GgmlType::F16),
            ("BF16", GgmlType::BF16),
            ("Q8_0", GgmlType::Q8_0),
            ("Q6_K", GgmlType::Q6_K),
            ("Q5", GgmlType::Q5_K),
        ];
        known
            .iter()
            .find(|(begin, _)| name.starts_with(begin))
            .map_or(GgmlType::Q4_0, |(_, ty)| *ty)
    });
    types.iter().copied().chain(told).map(of).fold(0.0, f64::max)
}

/// Ids by the bytes of their tokens, the first of equals.
fn spellings(tokenizer: &Tokenizer) -> HashMap<&[u8], u32> {
    let mut all = HashMap::new();
    for id in 0..tokenizer.vocab_size() as u32 {
        let bytes = tokenizer.token_bytes(id);
        if !bytes.is_empty() {
            all.entry(bytes).or_insert(id);
        }
    }
    all
}

/// Follows an answer with the reference, from the ids of its prompt on.
fn follow(
    name: &'static str,
    told: &Told,
    mut ids: Vec<u32>,
    truth: &mut Reference<'_>,
    spelled: &HashMap<&[u8], u32>,
    sums: &mut Sums,
) -> Result<()> {
    let mut lacking = |what: &str| {
        if !sums.lacking.iter().any(|known| known == what) {
            sums.lacking.push(what.to_owned());
        }
    };
    match told.prompt_tokens {
        Some(n) => sums.equal = Some(sums.equal != Some(false) && n == ids.len()),
        None => lacking("the number of a prompt's tokens"),
    }
    let text;
    let written: &[Written] = match &told.tokens {
        Some(tokens) if tokens.iter().any(|token| token.token.logprob != 0.0) => tokens,
        _ => {
            lacking("log-probabilities");
            // a character cut in two by the number of tokens is shown or left out
            let own = truth.tokenizer.encode_plain(told.text.trim_end_matches('\u{fffd}'))?;
            let token = |id: u32| Written {
                token: Token {
                    bytes: Some(truth.tokenizer.token_bytes(id).to_vec()),
                    logprob: f64::NAN,
                },
                top: Vec::new(),
            };
            text = own.into_iter().map(token).collect::<Vec<_>>();
            &text
        }
    };
    let (vocab, count, mut ended) = (truth.engine.vocab(), written.len(), false);
    // what was told last ends within a character: the next text may begin with that part of it
    let mut open = false;
    for (position, written) in written.iter().take(TOKENS).enumerate() {
        let row = truth.engine.logits_from(&ids, ids.len() - 1)?; // [1, vocab]
        let best = argmax(&row) as u32;
        let found = |token: &Token| {
            let id = spelled.get(token.bytes.as_deref()?).copied();
            id.filter(|&id| (id as usize) < vocab)
        };
        let empty = written.token.bytes.as_ref().is_some_and(Vec::is_empty);
        let last = position + 1 == count && count < TOKENS;
        let told = written.token.bytes.as_deref();
        let completed = open
            && told.is_some_and(|bytes| {
                let of_best = truth.tokenizer.token_bytes(best);
                !of_best.is_empty() && bytes.ends_with(of_best)
            });
        let after_part = std::mem::replace(&mut open, empty || told.is_none());
        let id = match found(&written.token).filter(|_| !completed) {
            Some(id) => id,
            // an end without a text
            None if empty && (last || truth.ends.contains(&best)) => {
                likeliest(&row, &truth.ends).unwrap_or(best)
            }
            // vLLM and Ollama tell a part of a character as an empty text, too
            None if after_part || open => {
                lacking("the bytes of tokens that are parts of characters");
                best
            }
            None => {
                // a token that the reference does not have
                sums.equal = Some(false);
                return Ok(());
            }
        };
        sums.tokens += 1;
        sums.same += usize::from(id == best);
        let gap = f64::from(row[best as usize]) - f64::from(row[id as usize]);
        sums.gap = sums.gap.max(gap);
        if id != best && sums.first.is_none() {
            let (expected, found) = (shown(truth.tokenizer, best), shown(truth.tokenizer, id));
            sums.first = Some(First { prompt: name, position, expected, found, gap });
        }
        if written.token.logprob.is_finite() {
            let mut known = HashMap::from([(id, written.token.logprob)]);
            let whole = written.top.iter().filter(|_| !after_part);
            known.extend(whole.filter_map(|token| Some((found(token)?, token.logprob))));
            known.retain(|_, logprob| logprob.is_finite());
            let own = |id: u32| log_likelihood(&row, id);
            let far = known.iter().map(|(&id, logprob)| (own(id) - logprob).abs());
            sums.worst = far.chain(sums.worst).reduce(f64::max);
            sums.kl.push(divergence(known.iter().map(|(&id, &other)| (own(id), other))));
        }
        ids.push(id);
        ended = truth.ends.contains(&id);
        if ended {
            break;
        }
    }
    if !ended && written.len() < TOKENS {
        // a text that stopped early must have had a reason
        let row = truth.engine.logits_from(&ids, ids.len() - 1)?;
        let best = argmax(&row) as u32;
        let end = likeliest(&row, &truth.ends).map_or(f32::NEG_INFINITY, |id| row[id as usize]);
        let gap = f64::from(row[best as usize]) - f64::from(end);
        sums.gap = sums.gap.max(gap);
        sums.tokens += 1;
        sums.same += usize::from(truth.ends.contains(&best));
        if !truth.ends.contains(&best) && sums.first.is_none() {
            let expected = shown(truth.tokenizer, best);
            let found = "the end".to_owned();
            let position = written.len();
            sums.first = Some(First { prompt: name, position, expected, found, gap });
        }
    }
    Ok(())
}

/// A token's text, bytes that are none as `\xE4`.
fn shown(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| format!("\\x{b:02X}")).collect(),
    }
}

/// The likeliest of some ids.
fn likeliest(row: &[f32], ids: &[u32]) -> Option<u32> {
    let inside = ids.iter().copied().filter(|&id| (id as usize) < row.len());
    inside.max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]))
}

/// KL divergence of pairs of logarithms of probabilities, all other tokens taken as one.
fn divergence(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut kl, mut ours, mut theirs) = (0.0, 0.0, 0.0);
    for (own, other) in pairs {
        kl += own.exp() * (own - other);
        ours += own.exp();
        theirs += other.exp();
    }
    let (ours, theirs) = ((1.0 - ours).max(LEAST), (1.0 - theirs).max(LEAST));
    kl + ours * (ours / theirs).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_not_returned_count_as_one() {
        let ln = f64::ln;
        let same = divergence([(ln(0.5), ln(0.5)), (ln(0.25), ln(0.25))].into_iter());
        assert!(same.abs() < 1e-12, "{same}");
        // p = (1/2, 1/2), q = (1/4, 3/4)
        let kl = divergence([(ln(0.5), ln(0.25))].into_iter());
        let expected = 0.5 * ln(2.0) + 0.5 * ln(2.0 / 3.0);
        assert!((kl - expected).abs() < 1e-12, "{kl}");
    }

    #[test]
    fn the_coarsest_type_gives_the_limit() {
        let q8 = default_limit(GgmlType::Q8_0, 1.0).1;
        assert_eq!(limit(&[GgmlType::F32, GgmlType::Q8_0], None), q8);
        assert_eq!(limit(&[GgmlType::F32], Some("Q8_0")), q8);
        assert_eq!(limit(&[GgmlType::F32], None), default_limit(GgmlType::F16, 1.0).1);
        assert!(limit(&[GgmlType::Q8_0], Some("IQ3_XS")) > q8);
    }
}
