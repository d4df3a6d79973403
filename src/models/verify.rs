//! The proof that the forms of a model are equal: ids go through every form in every engine that
//! can open it, and the logits are compared with a reference's.
//!
//! In: paths and ids (or a text). Out: one [`Row`] per form and engine. Unquantized forms are
//! judged by the largest difference of a logit, 16-bit and quantized ones by mean KL divergence,
//! since rounding the weights moves single logits much further than it moves the distribution.

use std::path::{Path, PathBuf};

use mmx_converters::gguf::GgmlType;

pub use crate::limit::{Measure, default_limit};

use crate::compare::{self, Difference};
use crate::engines::{self, Engine, Kind};
use crate::live;
use crate::open::Form;
use crate::sample_text::SAMPLE_TEXT;
use mmx_converters::{Error, Result};
use mmx_hub::live::Server;

impl Row {
    /// Why it is not ok, in words; nothing where it is.
    pub fn fault(&self) -> Option<String> {
        let value = match self.measure {
            Measure::MaxAbsDiff => self.difference.max_abs_diff,
            Measure::MeanKl => self.difference.mean_kl,
        };
        match self.ok {
            true => None,
            false if value <= self.tolerance => Some("other ids".to_owned()),
            false => Some(format!("{} > {:.1e}", self.measure.name(), self.tolerance)),
        }
    }
}

/// A request to compare the forms of a model.
#[derive(Debug)]
pub struct Request {
    /// The reference.
    pub reference: PathBuf,
    /// The other forms of the model.
    pub others: Vec<PathBuf>,
    /// Engines to compare in; empty for every engine that can open a form.
    pub engines: Vec<Kind>,
    /// Input of the engines.
    pub input: Input,
    /// Limit that replaces the default one: the largest absolute difference of a logit.
    pub tolerance: Option<f64>,
    /// Threads of the CPU engines.
    pub threads: usize,
    /// Running servers to compare with, by their names (`ollama:NAME`, `openai:URL`).
    pub servers: Vec<String>,
}

/// The input of the engines.
#[derive(Debug)]
pub enum Input {
    /// A built-in text in Chinese, English and code, by the reference's tokenizer, at most so many
    /// tokens; made-up ids where the reference has no tokenizer.
    Sample(usize),
    /// A text of the user's.
    Text(String),
    /// Ids of the user's.
    Ids {
        /// The file that holds them.
        path: PathBuf,
        /// One list per sequence.
        rows: Vec<Vec<u32>>,
    },
}

/// The comparison of one form in one engine with the reference.
#[derive(Debug)]
pub struct Row {
    /// The form.
    pub path: PathBuf,
    /// The engine.
    pub engine: Kind,
    /// The type that most of its weights have.
    pub ty: GgmlType,
    /// Distance of its logits from the reference's.
    pub difference: Difference,
    /// Perplexity of the ids under this form, where a sequence has two or more.
    pub ppl: Option<f64>,
    /// The form's own tokenizer in this engine gives the reference's ids; nothing to compare
    /// without a text.
    pub tokens_equal: Option<bool>,
    /// Place where the ids first differ: `(position, expected, found)`.
    pub first_token: Option<(usize, Option<u32>, Option<u32>)>,
    /// Measure that decides.
    pub measure: Measure,
    /// Limit of the measure.
    pub tolerance: f64,
    /// True where the measure is within its limit and the ids are equal.
    pub ok: bool,
}

/// The outcome of a comparison.
#[derive(Debug)]
pub struct Report {
    /// The reference and the engine that computed it.
    pub reference: (PathBuf, Kind),
    /// Perplexity of the ids under the reference.
    pub reference_ppl: Option<f64>,
    /// Tokens compared.
    pub tokens: usize,
    /// True where the tokens are of the built-in text, or made up: made to walk every branch, not
    /// to be predicted, so that their perplexity says nothing of how good the model is.
    pub sample: bool,
    /// One row per form and engine, in the order given.
    pub rows: Vec<Row>,
    /// One row per running server, in the order given.
    pub live: Vec<live::Row>,
}

impl Report {
    /// True when every row is ok.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(|row| row.ok) && self.live.iter().all(|row| row.fault.is_none())
    }
}

/// What is computed or asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A form in an engine.
    Engine(Kind),
    /// A running server.
    Server,
}

/// Compares the forms of a model. `progress` hears of each row before it is computed.
///
/// # Errors
/// A form that no engine can open, ids beyond a vocabulary, a library's own failure. Differences
/// are no errors.
pub fn verify(request: &Request, progress: &mut dyn FnMut(&Path, Step)) -> Result<Report> {
    verify_form(&Form::open(&request.reference)?, request, progress)
}

/// Compares forms with a reference that is open already, such as adapters on a base that they do
/// not name.
///
/// # Errors
/// As [`verify`].
pub fn verify_form(
    reference: &Form,
    request: &Request,
    progress: &mut dyn FnMut(&Path, Step),
) -> Result<Report> {
    let allowed = |kind: &Kind| request.engines.is_empty() || request.engines.contains(kind);
    // the reference is computed by its most faithful engine; the request chooses those of the rest
    let kind = reference.engines()[0];
    // opened first: one that cannot be is known before anything is computed
    let others = request.others.iter().map(|p| Form::open(p)).collect::<Result<Vec<_>>>()?;
    let servers = request.servers.iter().map(|name| {
        let unknown = || Error::misuse(format!("{name}: expected ollama:NAME or openai:URL"));
        Server::named(name).unwrap_or_else(|| Err(unknown()))
    });
    let mut servers = servers.collect::<Result<Vec<_>>>()?;
    let tokenizer = match servers.is_empty() {
        true => None,
        false => Some(reference.expect_tokenizer()?),
    };
    progress(&request.reference, Step::Engine(kind));
    let mut truth = engines::open(kind, reference, request.threads)?;
    let vocab = truth.vocab();
    let (ids, text) = input(request, truth.as_mut())?;
    if let Input::Ids { path, .. } = &request.input
        && let Some(id) = ids.iter().flatten().find(|&&id| id as usize >= vocab)
    {
        return Err(Error::failed(format!(
            "{}: expected ids below {vocab} (the vocabulary of {}), found {id}",
            path.display(),
            request.reference.display()
        )));
    }
    let expected = logits(truth.as_mut(), &ids)?;
    let largest = expected.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    let mut live = Vec::new();
    if let Some(tokenizer) = &tokenizer {
        let mut truth = live::Reference {
            engine: truth.as_mut(),
            tokenizer,
            ends: tokenizer.stop_ids(&reference.model.config.eos_token_id),
            types: std::iter::once(reference).chain(&others).map(Form::weight_type).collect(),
            tolerance: request.tolerance,
        };
        for server in &mut servers {
            progress(Path::new(&server.name), Step::Server);
            live.push(live::compare(server, &mut truth)?);
        }
    }
    drop(truth);

    let mut rows = Vec::new();
    // the reference itself in its other engines, then every other form
    let skip_first = std::iter::once((&request.reference, reference, Some(kind)));
    let others = request.others.iter().zip(&others).map(|(path, form)| (path, form, None));
    for (path, form, skip) in skip_first.chain(others) {
        let kinds: Vec<Kind> =
            form.engines().into_iter().filter(|k| allowed(k) && Some(*k) != skip).collect();
        if kinds.is_empty() && skip.is_none() {
            return Err(engines::none_of(&request.engines, form));
        }
        for kind in kinds {
            progress(path, Step::Engine(kind));
            let mut engine = engines::open(kind, form, request.threads)?;
            rows.push(row(
                request,
                form,
                kind,
                engine.as_mut(),
                &Truth { ids: &ids, text: text.as_deref(), logits: &expected, vocab, largest },
            )?);
        }
    }
    Ok(Report {
        reference: (request.reference.clone(), kind),
        reference_ppl: mean_perplexity(&expected, &ids, vocab),
        tokens: ids.iter().map(Vec::len).sum(),
        sample: matches!(request.input, Input::Sample(_)),
        rows,
        live,
    })
}

/// The reference's side of a comparison.
struct Truth<'a> {
    ids: &'a [Vec<u32>],
    text: Option<&'a str>,
    logits: &'a [f32],
    vocab: usize,
    largest: f64,
}

fn row(
    request: &Request,
    form: &Form,
    kind: Kind,
    engine: &mut dyn Engine,
    truth: &Truth<'_>,
) -> Result<Row> {
    let path = form.path().to_owned();
    if engine.vocab() != truth.vocab {
        return Err(Error::failed(format!(
            "{}: expected {} logits per position as in the reference, {}, found {}",
            path.display(),
            truth.vocab,
            request.reference.display(),
            engine.vocab()
        )));
    }
    let found = logits(engine, truth.ids)?;
    let difference = compare::difference(truth.logits, &found, truth.vocab);
    let (mut tokens_equal, mut first_token) = (None, None);
    if let Some(text) = truth.text
        && let Some(own) = engine.tokenize(text)?
    {
        let expected = &truth.ids[0];
        let own = &own[..own.len().min(expected.len())];
        first_token = (0..expected.len())
            .map(|i| (i, expected.get(i).copied(), own.get(i).copied()))
            .find(|(_, expected, found)| expected != found);
        tokens_equal = Some(first_token.is_none());
    }
    let ty = form.weight_type();
    let (measure, tolerance) = match request.tolerance {
        Some(limit) => (Measure::MaxAbsDiff, limit),
        None => default_limit(ty, truth.largest),
    };
    let value = match measure {
        Measure::MaxAbsDiff => difference.max_abs_diff,
        Measure::MeanKl => difference.mean_kl,
    };
    Ok(Row {
        path,
        engine: kind,
        ty,
        difference,
        ppl: mean_perplexity(&found, truth.ids, truth.vocab),
        tokens_equal,
        first_token,
        measure,
        tolerance,
        ok: value <= tolerance && tokens_equal != Some(false),
    })
}

/// The ids, and the text they came from.
fn input(request: &Request, engine: &mut dyn Engine) -> Result<(Vec<Vec<u32>>, Option<String>)> {
    let (text, most) = match &request.input {
        Input::Ids { rows, .. } => return Ok((rows.clone(), None)),
        Input::Text(text) => (text.as_str(), usize::MAX),
        Input::Sample(n) => (SAMPLE_TEXT, *n),
    };
    match engine.tokenize(text)? {
        Some(mut ids) => {
            ids.truncate(most);
            if ids.is_empty() {
                return Err(Error::failed(format!(
                    "{}: expected a text in which its tokenizer finds a token, found none",
                    request.reference.display()
                )));
            }
            Ok((vec![ids], Some(text.to_owned())))
        }
        None if matches!(request.input, Input::Text(_)) => Err(Error::failed_with_hint(
            format!(
                "{}: expected a tokenizer with the weights, to read the text, found none",
                request.reference.display()
            ),
            "give ids with `ids`, or neither for made-up ids",
        )),
        None => Ok((vec![made_up_ids(most, engine.vocab())], None)),
    }
}

/// Ids spread over the vocabulary by a fixed multiplicative step (Weyl sequence).
pub(crate) fn made_up_ids(n: usize, vocab: usize) -> Vec<u32> {
    (1..=n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % vocab as u64) as u32).collect()
}

fn logits(engine: &mut dyn Engine, ids: &[Vec<u32>]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for row in ids {
        all.extend(engine.logits(row)?);
    }
    Ok(all)
}

/// Perplexity over all sequences, each id weighing the same.
fn mean_perplexity(logits: &[f32], ids: &[Vec<u32>], vocab: usize) -> Option<f64> {
    let (mut total, mut count, mut at) = (0.0, 0usize, 0);
    for row in ids {
        let own = &logits[at..at + row.len() * vocab];
        at += row.len() * vocab;
        if let Some(ppl) = compare::perplexity(own, row, vocab) {
            total += ppl.ln() * (row.len() - 1) as f64;
            count += row.len() - 1;
        }
    }
    (count > 0).then(|| (total / count as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_ids_stay_in_the_vocabulary_and_differ() {
        let ids = made_up_ids(64, 500);
        assert!(ids.iter().all(|&id| id < 500));
        assert!(ids.iter().collect::<std::collections::HashSet<_>>().len() > 40);
    }
}
