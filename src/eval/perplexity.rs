//! Perplexity of a text under a model, and bits per byte, in which models with different tokenizers
//! can be compared.
//!
//! In: a text's ids and an engine. Out: sums over the tokens that were scored. Two ways to cut a
//! text that is longer than a model's context:
//!
//! - [`Cut::Sliding`]: windows that overlap, each token scored once, with at least `window -
//!   stride` tokens before it (the first window's begin with one). Source: Transformers' guide to
//!   perplexity of fixed-length models.
//! - [`Cut::Chunks`]: windows side by side, of which only the second half is scored and what does
//!   not fill a window is left out. Source: llama.cpp's llama-perplexity, whose numbers these are.
//!
//! [`Cut::Positions`] scores each token of windows side by side, to be read by position
//! ([`Perplexity::by_position`]).

use std::path::{Path, PathBuf};

use mmx_converters::tokenizer::Tokenizer;

use super::fault::fault_at;
use super::stats::Z95;
use mmx_converters::{Error, Result};
use mmx_data::texts;
use mmx_data::{Fields, jsonl};
use mmx_models::compare;
use mmx_models::engines::Engine;

/// A way to cut a text that is longer than a model's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Windows of `window` tokens, each `stride` tokens after the last.
    Sliding {
        /// Number of tokens that the model sees at a time.
        window: usize,
        /// Tokens scored in each window but the first.
        stride: usize,
    },
    /// Windows of `window` tokens side by side; the second half of each is scored.
    Chunks {
        /// Number of tokens that the model sees at a time.
        window: usize,
    },
    /// Windows of `window` tokens side by side; each token but the first of each is scored, and
    /// what does not fill a window is left out.
    Positions {
        /// Number of tokens that the model sees at a time.
        window: usize,
    },
}

impl Cut {
    /// The way's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sliding { .. } => "sliding",
            Self::Chunks { .. } => "chunks",
            Self::Positions { .. } => "positions",
        }
    }

    /// Number of tokens that the model sees at a time.
    pub fn window(self) -> usize {
        match self {
            Self::Sliding { window, .. } | Self::Chunks { window } | Self::Positions { window } => {
                window
            }
        }
    }

    /// Tokens from one window's beginning to the next one's.
    pub fn stride(self) -> usize {
        match self {
            Self::Sliding { stride, .. } => stride,
            Self::Chunks { window } | Self::Positions { window } => window,
        }
    }

    /// The way in words.
    pub fn describe(self) -> String {
        match self {
            Self::Sliding { window, stride } => {
                format!("windows of {window} tokens that move by {stride}, every token scored once")
            }
            Self::Positions { window } => {
                format!(
                    "windows of {window} tokens side by side, every token but each first scored"
                )
            }
            Self::Chunks { window } => {
                format!(
                    "chunks of {window} tokens, the second half of each scored (as llama-perplexity)"
                )
            }
        }
    }

    /// The pieces that are computed of `n` tokens.
    fn pieces(self, n: usize) -> Vec<Piece> {
        match self {
            Self::Sliding { window, stride } => {
                let mut pieces = Vec::new();
                let (mut start, mut scored) = (0, 1);
                while scored < n {
                    let end = (start + window).min(n);
                    pieces.push(Piece { start, end, scored });
                    (start, scored) = (start + stride, end);
                }
                pieces
            }
            Self::Chunks { window } => side_by_side(n, window, window / 2 + 1),
            Self::Positions { window } => side_by_side(n, window, 1),
        }
    }
}

/// Whole windows, each scored from its token `from` on.
fn side_by_side(n: usize, window: usize, from: usize) -> Vec<Piece> {
    let starts = (0..n / window).map(|i| i * window);
    starts.map(|start| Piece { start, end: start + window, scored: start + from }).collect()
}

/// A part of a text: the tokens from `start` to `end` are seen, those from `scored` on are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: usize,
    end: usize,
    scored: usize,
}

/// The texts of a file.
#[derive(Clone, Debug)]
pub struct Text {
    /// The file.
    pub path: PathBuf,
    /// One text, or one for each record of a JSON Lines file; none continues another.
    pub documents: Vec<String>,
}

impl Text {
    /// Reads a text file whole, or the texts of JSON Lines. Line ends at the end of a text file are
    /// an editor's, not the text's: one is left out, as llama.cpp's programs do.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8 (with the line), or holds no text.
    pub fn read(path: &Path) -> Result<Self> {
        let mut documents = Vec::new();
        if texts::has_records(path) {
            texts::for_each_batch(path, &Fields::default(), |batch| {
                documents.extend_from_slice(batch);
                Ok(())
            })?;
        } else {
            let bytes = fs_err::read(path).map_err(|e| Error::io(path, e))?;
            for line in jsonl::lines(&bytes) {
                jsonl::utf8(&line).map_err(|fault| fault_at(path, fault))?;
            }
            let text = String::from_utf8_lossy(&bytes);
            let mut text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
            if text.ends_with('\n') {
                text.pop();
            }
            documents.push(text);
        }
        documents.retain(|text| !text.is_empty());
        if documents.is_empty() {
            return Err(Error::failed(format!("{}: expected a text, found none", path.display())));
        }
        Ok(Self { path: path.to_owned(), documents })
    }

    /// Number of bytes of all texts.
    pub fn bytes(&self) -> usize {
        self.documents.iter().map(String::len).sum()
    }
}

/// The scored tokens' costs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Negative log-likelihood of each token, nats.
    pub nlls: Vec<f64>,
    /// Position of each token in its window.
    pub positions: Vec<usize>,
    /// Number of bytes of the scored tokens' text.
    pub bytes: usize,
}

impl Perplexity {
    /// Number of tokens scored.
    pub fn tokens(&self) -> usize {
        self.nlls.len()
    }

    /// Sum of the negative log-likelihoods, nats.
    pub fn nll(&self) -> f64 {
        self.nlls.iter().sum()
    }

    /// Perplexity: exp of the mean negative log-likelihood of a token.
    pub fn ppl(&self) -> f64 {
        (self.nll() / self.tokens() as f64).exp()
    }

    /// The perplexity's standard error, from the spread of the tokens' log-likelihoods. Source:
    /// llama-perplexity.
    pub fn stderr(&self) -> f64 {
        self.ppl() * mean_and_error(self.nlls.iter().copied()).1
    }

    /// This perplexity divided by another of the same tokens, and its 95 % interval: token by
    /// token, so that what is hard for both does not blur it. Nothing where the tokens are others.
    pub fn ratio(&self, reference: &Self) -> Option<(f64, f64, f64)> {
        if self.tokens() != reference.tokens() || self.bytes != reference.bytes {
            return None;
        }
        let differences = self.nlls.iter().zip(&reference.nlls).map(|(a, b)| a - b);
        let (mean, error) = mean_and_error(differences);
        Some((mean.exp(), (mean - Z95 * error).exp(), (mean + Z95 * error).exp()))
    }

    /// Bits for a byte of the scored tokens' text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nll() / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// The perplexities of `parts` equal parts of a window: each the positions it begins and ends
    /// at, and the perplexity of the tokens there, if any was scored.
    pub fn by_position(&self, window: usize, parts: usize) -> Vec<(usize, usize, Option<f64>)> {
        let parts = parts.clamp(1, window.max(1));
        let bounds = |part: usize| (part * window / parts, (part + 1) * window / parts);
        let mut sums = vec![(0.0, 0usize); parts];
        for (nll, &position) in self.nlls.iter().zip(&self.positions) {
            // the part whose bounds hold the position, as `bounds` divides
            let part = ((position + 1) * parts - 1) / window.max(1);
            if let Some((sum, count)) = sums.get_mut(part) {
                *sum += nll;
                *count += 1;
            }
        }
        let ppl = |(sum, count): (f64, usize)| (count > 0).then(|| (sum / count as f64).exp());
        sums.into_iter()
            .enumerate()
            .map(|(part, sums)| (bounds(part).0, bounds(part).1, ppl(sums)))
            .collect()
    }

    fn add(&mut self, log_likelihood: f64, bytes: usize, position: usize) {
        self.nlls.push(-log_likelihood);
        self.positions.push(position);
        self.bytes += bytes;
    }
}

/// A mean and its standard error.
fn mean_and_error(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / n;
    let squares = values.map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// The token that begins every text, for models whose tokenizer adds one.
pub fn leading_bos(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.before_text().first().copied()
}

/// Measures the perplexity of a text. A control token's name in the text is read as text. `bos`
/// comes before each text and, with chunks, in place of each chunk's first token. `progress` hears
/// of windows done, of how many.
///
/// # Errors
/// A text too short to score a token (with chunks: shorter than two of them, as llama-perplexity
/// has it), or the engine's failure.
pub fn perplexity(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    bos: Option<u32>,
    text: &Text,
    cut: Cut,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let mut documents = Vec::with_capacity(text.documents.len());
    for document in &text.documents {
        let mut ids: Vec<u32> = bos.into_iter().collect();
        ids.extend(tokenizer.encode_plain(document)?);
        let pieces = cut.pieces(ids.len());
        documents.push((ids, pieces));
    }
    let tokens: usize = documents.iter().map(|(ids, _)| ids.len()).sum();
    let total: usize = documents.iter().map(|(_, pieces)| pieces.len()).sum();
    let least = match cut {
        Cut::Sliding { .. } => 2,
        Cut::Positions { window } => window,
        Cut::Chunks { window } => 2 * window,
    };
    if total == 0 || tokens < least {
        return Err(Error::failed_with_hint(
            format!(
                "{}: expected a text of at least {least} tokens, found {tokens}",
                text.path.display()
            ),
            "`ctx` makes windows shorter",
        ));
    }
    let vocab = engine.vocab();
    let mut sums = Perplexity::default();
    let mut done = 0;
    for (ids, pieces) in &documents {
        for piece in pieces {
            // the last token is predicted, but predicts nothing
            let mut seen = ids[piece.start..piece.end - 1].to_vec();
            if let (Cut::Chunks { .. } | Cut::Positions { .. }, Some(bos)) = (cut, bos) {
                seen[0] = bos;
            }
            let rows = engine.logits_from(&seen, piece.scored - 1 - piece.start)?; // [scored, vocab]
            for (row, at) in rows.chunks_exact(vocab).zip(piece.scored..piece.end) {
                let bytes = tokenizer.token_bytes(ids[at]).len();
                sums.add(compare::log_likelihood(row, ids[at]), bytes, at - piece.start);
            }
            done += 1;
            progress(done, total);
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sliding_windows_score_each_token_but_the_first_once() {
        for (n, window, stride) in
            [(1, 4, 2), (2, 4, 2), (10, 4, 2), (11, 4, 3), (9, 4, 1), (4, 9, 4)]
        {
            let pieces = Cut::Sliding { window, stride }.pieces(n);
            let scored: Vec<usize> = pieces.iter().flat_map(|p| p.scored..p.end).collect();
            assert_eq!(scored, (1..n).collect::<Vec<_>>(), "{n} tokens, {window}, {stride}");
            for piece in &pieces {
                assert!(piece.end - piece.start <= window);
                let context = piece.scored - piece.start;
                assert!(context >= 1 && (piece.start == 0 || context >= window - stride));
            }
        }
    }

    #[test]
    fn chunks_score_their_second_half_but_its_first_token() {
        // llama-perplexity: n_ctx - 1 - n_ctx / 2 tokens of each whole chunk
        let pieces = Cut::Chunks { window: 8 }.pieces(20);
        assert_eq!(
            pieces,
            [Piece { start: 0, end: 8, scored: 5 }, Piece { start: 8, end: 16, scored: 13 }]
        );
        let odd = Cut::Chunks { window: 7 }.pieces(7);
        assert_eq!(odd[0].end - odd[0].scored, 7 - 1 - 7 / 2);
    }

    #[test]
    fn a_uniform_guess_costs_the_logarithm_of_the_vocabulary() {
        let mut sums = Perplexity::default();
        (0..10).for_each(|_| sums.add(-(256f64.ln()), 1, 1));
        assert!((sums.ppl() - 256.0).abs() < 1e-9 && (sums.bits_per_byte() - 8.0).abs() < 1e-12);
        assert!(sums.stderr() < 1e-4, "all alike: {}", sums.stderr());
    }

    #[test]
    fn each_token_counts_in_the_part_of_the_window_that_holds_its_position() {
        for (window, parts) in [(8, 4), (10, 4), (7, 3), (3, 16), (512, 16)] {
            let mut sums = Perplexity::default();
            // the cost of a token is the logarithm of its position
            (1..window).for_each(|at| sums.add(-((at as f64).ln()), 1, at));
            let found = sums.by_position(window, parts);
            assert_eq!((found[0].0, found.last().unwrap().1), (0, window));
            for (from, to, ppl) in found {
                let logs: Vec<f64> = (from.max(1)..to).map(|at| (at as f64).ln()).collect();
                let mean = logs.iter().sum::<f64>() / logs.len() as f64;
                match ppl {
                    Some(ppl) => assert!((ppl - mean.exp()).abs() < 1e-9, "{from} to {to}: {ppl}"),
                    None => assert!(logs.is_empty(), "{from} to {to}"),
                }
            }
        }
    }

    #[test]
    fn a_ratio_is_taken_token_by_token() {
        let of = |costs: &[f64]| {
            let mut sums = Perplexity::default();
            costs.iter().for_each(|cost| sums.add(-cost, 1, 1));
            sums
        };
        // hard and easy tokens, each a tenth harder: sure, though both perplexities are not
        let (one, other) = (of(&[0.1, 9.0, 3.0, 0.5]), of(&[0.2, 9.1, 3.1, 0.6]));
        let (ratio, low, high) = other.ratio(&one).expect("the same tokens");
        assert!((ratio - 0.1f64.exp()).abs() < 1e-9 && high - low < 1e-9 && one.stderr() > 1.0);
        let (ratio, low, high) = of(&[0.2, 8.9, 3.4, 0.5]).ratio(&one).expect("the same tokens");
        assert!(low < 1.0 && 1.0 < ratio && ratio < high);
        assert!(of(&[1.0]).ratio(&one).is_none());
    }

    #[test]
    fn texts_are_read_whole_and_faults_name_the_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs_err::write(&path, bytes).expect("written");
            path
        };
        let text = Text::read(&write("a.txt", "好\n\nb\n".as_bytes())).expect("a text");
        assert_eq!(
            (text.documents, text.path),
            (vec!["好\n\nb".to_owned()], dir.path().join("a.txt"))
        );
        let lines = b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
        assert_eq!(Text::read(&write("a.jsonl", lines)).expect("texts").documents, ["a", "b"]);
        let error = Text::read(&write("b.txt", b"ok\n\xc4\xe3\n")).expect_err("GBK").to_string();
        assert!(error.contains("b.txt:2: expected UTF-8"), "{error}");
        assert!(Text::read(&write("c.txt", b"\n")).is_err());
    }
}
