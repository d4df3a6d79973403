//! Logits `[vocab]` to one id.
//!
//! The order is that of Transformers' `generate`, whose settings models are published with:
//! repetition penalty, temperature, top-k, top-p, min-p, then one draw. Temperature 0 takes the
//! most likely id. Bias, presence and frequency penalty (OpenAI's) come between repetition penalty
//! and temperature.

use mmx_converters::model::generation::Generation as Defaults;
use mmx_converters::tokenizer::Tokenizer;

use crate::error::{Error, Result};
use mmx_converters::random::SplitMix64;

/// Settings of a [`Sampler`].
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0: the most likely id.
    pub temperature: f64,
    /// Keep this many of the most likely ids; 0: all.
    pub top_k: usize,
    /// Keep the fewest ids that reach this probability together; 1: all.
    pub top_p: f64,
    /// Keep ids of at least this share of the most likely one's probability; 0: all.
    pub min_p: f64,
    /// Logits of ids that were there already are divided by this, negative ones multiplied; 1: off.
    pub repeat_penalty: f64,
    /// Taken from the logit of every id that was drawn already; 0: off.
    pub presence_penalty: f64,
    /// Taken from the logit of each token once for each time it was drawn; 0: off.
    pub frequency_penalty: f64,
    /// Added to the logits of these ids.
    pub bias: Vec<(u32, f32)>,
    /// The same seed gives the same draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy sampling: always the most likely id.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// The settings that a model's files name.
    pub fn from_defaults(defaults: &Defaults, seed: u64) -> Self {
        let off = Self::default();
        Self {
            temperature: if defaults.do_sample { defaults.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: defaults.top_k.map_or(off.top_k, |k| k as usize),
            top_p: defaults.top_p.unwrap_or(off.top_p),
            min_p: defaults.min_p.unwrap_or(off.min_p),
            repeat_penalty: defaults.repetition_penalty.unwrap_or(off.repeat_penalty),
            seed,
            ..off
        }
    }

    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// The first such setting, with the range expected.
    pub fn check(&self) -> Result<()> {
        let range = |name: &str, found: f64, fits: bool, expected: &'static str| match fits {
            true => Ok(()),
            false => Err(Error::Setting { name: name.to_owned(), expected, found }),
        };
        let (t, p, m, r) = (self.temperature, self.top_p, self.min_p, self.repeat_penalty);
        range("temperature", t, t.is_finite() && t >= 0.0, "0 (greedy) or more")?;
        range("top_p", p, p > 0.0 && p <= 1.0, "more than 0, at most 1")?;
        range("min_p", m, (0.0..=1.0).contains(&m), "0 to 1")?;
        range("repeat_penalty", r, r.is_finite() && r > 0.0, "more than 0")?;
        // OpenAI's own range
        let penalty =
            |name, value: f64| range(name, value, (-2.0..=2.0).contains(&value), "-2 to 2");
        penalty("presence_penalty", self.presence_penalty)?;
        penalty("frequency_penalty", self.frequency_penalty)?;
        match self.bias.iter().find(|(_, bias)| bias.is_nan()) {
            Some((id, bias)) => {
                range(&format!("bias of id {id}"), f64::from(*bias), false, "a number")
            }
            None => Ok(()),
        }
    }
}

/// A sampler: draws ids from logits.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Ids that may be drawn; as long as the model's vocabulary.
    allowed: Vec<bool>,
    /// Every id is allowed.
    unrestricted: bool,
    /// Ids of the prompt and drawn ones.
    seen: Vec<bool>,
    /// How often each id was drawn.
    drawn: Vec<u32>,
    /// Per id; empty where there is none.
    bias: Vec<f32>,
    rng: SplitMix64,
    /// `(logit, id)` of the candidates; kept to save allocations.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// Makes a sampler that may draw any id below `vocab`.
    ///
    /// # Errors
    /// See [`Sampling::check`].
    pub fn new(sampling: Sampling, vocab: usize) -> Result<Self> {
        sampling.check()?;
        let rng = SplitMix64::new(sampling.seed);
        let mut bias = Vec::new();
        if !sampling.bias.is_empty() {
            bias = vec![0.0; vocab];
            for &(id, value) in &sampling.bias {
                let slot = bias.get_mut(id as usize).ok_or_else(|| Error::Request {
                    message: format!("bias: expected ids below {vocab}, found {id}"),
                })?;
                *slot = value;
            }
        }
        Ok(Self {
            sampling,
            allowed: vec![true; vocab],
            unrestricted: true,
            seen: vec![false; vocab],
            drawn: vec![0; vocab],
            bias,
            rng,
            candidates: Vec::new(),
        })
    }

    /// Never draws an id that the tokenizer has no token for (rows that only fill the embedding
    /// up).
    #[must_use]
    pub fn restricted_to(mut self, tokenizer: &Tokenizer) -> Self {
        for (id, allowed) in self.allowed.iter_mut().enumerate() {
            *allowed &= u32::try_from(id).is_ok_and(|id| tokenizer.has_token(id));
        }
        self.unrestricted = self.allowed.iter().all(|&a| a);
        self
    }

    /// Counts an id of the prompt as seen, for the repetition penalty.
    pub fn see(&mut self, id: u32) {
        if let Some(seen) = self.seen.get_mut(id as usize) {
            *seen = true;
        }
    }

    /// Counts an id as drawn, for all penalties.
    pub fn accept(&mut self, id: u32) {
        self.see(id);
        if let Some(drawn) = self.drawn.get_mut(id as usize) {
            *drawn = drawn.saturating_add(1);
        }
    }

    /// Draws one id.
    ///
    /// # Errors
    /// Logits of another length, or none of them a number.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        self.sample_among(logits, None)
    }

    /// Draws one id among those whose bit is set: bit `id % 32` of word `id / 32`.
    ///
    /// # Errors
    /// See [`Sampler::sample`]; no bit that is set.
    pub fn sample_among(&mut self, logits: &[f32], among: Option<&[u32]>) -> Result<u32> {
        if logits.len() != self.allowed.len() {
            return Err(Error::Request {
                message: format!("expected {} logits, found {}", self.allowed.len(), logits.len()),
            });
        }
        let s = &self.sampling;
        let plain = self.unrestricted
            && among.is_none()
            && self.bias.is_empty()
            && s.repeat_penalty == 1.0
            && s.presence_penalty == 0.0
            && s.frequency_penalty == 0.0;
        let drawn = if plain && self.sampling.temperature == 0.0 {
            argmax(logits)
        } else {
            self.collect(logits, among);
            if self.sampling.temperature == 0.0 {
                self.candidates.iter().copied().reduce(better).map(|(_, id)| id)
            } else {
                self.draw()
            }
        };
        drawn.ok_or_else(|| Error::Request {
            message: match among {
                Some(_) => "no token fits what the text must be".to_owned(),
                None => "no logit is a number: the model computes NaN".to_owned(),
            },
        })
    }

    /// Allowed ids with their penalized logits.
    fn collect(&mut self, logits: &[f32], among: Option<&[u32]>) {
        let penalty = self.sampling.repeat_penalty as f32;
        let presence = self.sampling.presence_penalty as f32;
        let frequency = self.sampling.frequency_penalty as f32;
        let fits = |id: usize| {
            among
                .is_none_or(|bits| bits.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1))
        };
        self.candidates.clear();
        for (id, &logit) in logits.iter().enumerate() {
            if !self.allowed[id] || logit.is_nan() || !fits(id) {
                continue;
            }
            let mut logit = match self.seen[id] {
                true if logit > 0.0 => logit / penalty,
                true => logit * penalty,
                false => logit,
            };
            if self.drawn[id] > 0 {
                logit -= presence + frequency * self.drawn[id] as f32;
            }
            if let Some(bias) = self.bias.get(id) {
                logit += bias;
            }
            if logit > f32::NEG_INFINITY {
                self.candidates.push((logit, id as u32));
            }
        }
    }

    /// Draws one of the candidates by its probability after temperature, top-k, top-p and min-p.
    fn draw(&mut self) -> Option<u32> {
        let unit = self.rng.next_f64();
        draw_kept(&mut self.candidates, &self.sampling, unit).map(|(id, _)| id)
    }
}

/// Keeps what temperature, top-k, top-p and min-p leave of the candidates, `(logit, id)`, most likely
/// first, and draws one by a number `unit` of [0, 1): its id, and the logarithm of its probability
/// among those kept.
pub(super) fn draw_kept(
    candidates: &mut Vec<(f32, u32)>,
    sampling: &Sampling,
    unit: f64,
) -> Option<(u32, f64)> {
    let Sampling { temperature, top_k, top_p, min_p, .. } = *sampling;
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, order);
        candidates.truncate(top_k);
    }
    let (largest, _) = candidates.iter().copied().reduce(better)?;
    let exponent = |logit: f32| f64::from(logit - largest) / temperature;
    let weight = |logit: f32| exponent(logit).exp();
    let total: f64 = candidates.iter().map(|&(logit, _)| weight(logit)).sum();
    if top_p < 1.0 || min_p > 0.0 {
        // Ids below (1 - top_p) / n of the probability sum up to less than 1 - top_p, so none
        // of them is needed to reach top_p; the few that are left are cheap to sort.
        let floor = total * (1.0 - top_p) / candidates.len() as f64;
        candidates.retain(|&(logit, _)| weight(logit) >= floor.max(min_p));
    }
    candidates.sort_unstable_by(order);
    let mut kept = 0;
    let mut sum = 0.0;
    for &(logit, _) in candidates.iter() {
        sum += weight(logit);
        kept += 1;
        if top_p < 1.0 && sum >= top_p * total {
            break;
        }
    }
    candidates.truncate(kept);
    let mut left = unit * sum;
    let drawn = candidates.iter().find(|&&(logit, _)| {
        left -= weight(logit);
        left < 0.0
    });
    let &(logit, id) = drawn.or(candidates.last())?;
    Some((id, exponent(logit) - sum.ln()))
}

/// The larger logit, the lower id of equals.
fn better(a: (f32, u32), b: (f32, u32)) -> (f32, u32) {
    if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a }
}

/// The model's own probabilities, natural logarithms, before any setting of a sampler: that of
/// `id`, and the `n` most likely ids with theirs, most likely first.
pub fn log_probabilities(logits: &[f32], id: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&l| f64::from(l - largest).exp()).sum();
    let log = |logit: f32| (f64::from(logit - largest) - total.ln()) as f32;
    let mut order: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    let n = n.min(order.len());
    if n > 0 && n < order.len() {
        order.select_nth_unstable_by(n - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }
    order.truncate(n);
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let own = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    (log(own), order.into_iter().map(|(logit, id)| (id, log(logit))).collect())
}

/// The index of the first of the largest logits; nothing if no value is a number.
///
/// Two passes, since the largest value alone is found many at a time.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = logits.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let largest =
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    logits.iter().position(|&v| v == largest).map(|i| i as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = SplitMix64::new(seed);
        (0..n).map(|_| (rng.next_f64() * 12.0 - 6.0) as f32).collect()
    }

    /// The sampler as one would write it down: everything sorted, every step on all ids.
    fn naive(s: &Sampling, logits: &[f32], u: f64) -> u32 {
        let mut p: Vec<(f64, usize)> = logits
            .iter()
            .enumerate()
            .map(|(i, &l)| ((f64::from(l) / s.temperature).exp(), i))
            .collect();
        p.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if s.top_k > 0 {
            p.truncate(s.top_k);
        }
        let total: f64 = p.iter().map(|x| x.0).sum();
        let before: Vec<f64> = (0..p.len()).map(|i| p[..i].iter().map(|x| x.0).sum()).collect();
        let keep = before.iter().filter(|&&b| s.top_p >= 1.0 || b < s.top_p * total).count();
        p.truncate(keep);
        let most = p[0].0;
        p.retain(|x| x.0 >= s.min_p * most);
        let sum: f64 = p.iter().map(|x| x.0).sum();
        let mut at = 0.0;
        let place = p.iter().position(|x| {
            at += x.0;
            u * sum < at
        });
        p[place.unwrap_or(p.len() - 1)].1 as u32
    }

    #[test]
    fn draws_what_the_naive_twin_draws() {
        let settings = [
            (1.0, 0, 1.0, 0.0),
            (0.85, 0, 0.85, 0.0),
            (0.7, 40, 0.95, 0.05),
            (1.5, 5, 1.0, 0.0),
            (2.0, 0, 1.0, 0.3),
            (1.0, 0, 0.01, 0.0),
        ];
        for (case, (temperature, top_k, top_p, min_p)) in settings.into_iter().enumerate() {
            let sampling =
                Sampling { temperature, top_k, top_p, min_p, seed: 5, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling.clone(), 300).unwrap();
            let mut rng = SplitMix64::new(5);
            for round in 0..200 {
                let logits = logits(round, 300);
                let expected = naive(&sampling, &logits, rng.next_f64());
                assert_eq!(sampler.sample(&logits).unwrap(), expected, "case {case}, {round}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut values = logits(1, 77);
        values[40] = 9.0;
        values[70] = 9.0;
        let mut sampler = Sampler::new(Sampling::default(), 77).unwrap();
        assert_eq!(sampler.sample(&values).unwrap(), 40);
        assert_eq!(argmax(&values[41..]), Some(29));
        assert_eq!(argmax(&[f32::NAN, -1.0]), Some(1));
        assert_eq!(argmax(&[f32::NAN]), None);
        assert!(sampler.sample(&[f32::NAN; 77]).is_err());
        assert!(sampler.sample(&[0.0]).is_err());
    }

    #[test]
    fn the_penalty_makes_seen_ids_less_likely() {
        let sampling = Sampling { repeat_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, 4).unwrap();
        let values = [3.0, 2.0, -1.0, -1.5];
        assert_eq!(sampler.sample(&values).unwrap(), 0);
        sampler.accept(0);
        assert_eq!(sampler.sample(&values).unwrap(), 1, "3 / 2 < 2");
        sampler.accept(1);
        assert_eq!(sampler.sample(&values).unwrap(), 0, "1.5 > 2 / 2 > -1");
        let negative = [-1.0, -1.0, -1.5, f32::NEG_INFINITY];
        assert_eq!(sampler.sample(&negative).unwrap(), 2, "-1 * 2 < -1.5");
    }

    #[test]
    fn bias_and_penalties_of_drawn_ids_move_logits() {
        let values = [3.0, 2.0, -1.0, -1.5];
        let sampling = Sampling {
            presence_penalty: 0.5,
            frequency_penalty: 0.3,
            bias: vec![(2, 3.3)],
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(sampling, 4).unwrap();
        sampler.see(0);
        assert_eq!(sampler.sample(&values).unwrap(), 0, "an id of the prompt is not penalized");
        sampler.accept(0);
        assert_eq!(sampler.sample(&values).unwrap(), 2, "3 - 0.8 < -1 + 3.3");
        sampler.accept(2);
        assert_eq!(sampler.sample(&values).unwrap(), 0, "2.2 > 2 and 1.5");
        sampler.accept(0);
        assert_eq!(sampler.sample(&values).unwrap(), 1, "3 - 1.1 < 2");
        let outside = Sampling { bias: vec![(4, 1.0)], ..Sampling::default() };
        assert!(Sampler::new(outside, 4).is_err());
        let wide = Sampling { presence_penalty: 2.5, ..Sampling::default() };
        assert!(Sampler::new(wide, 4).unwrap_err().to_string().contains("-2 to 2"));
    }

    #[test]
    fn only_ids_whose_bit_is_set_are_drawn() {
        let values = logits(8, 70);
        let mut bits = [0u32; 3];
        for id in [5, 33, 69] {
            bits[id / 32] |= 1 << (id % 32);
        }
        for temperature in [0.0, 5.0] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, 70).unwrap();
            for _ in 0..50 {
                let id = sampler.sample_among(&values, Some(&bits)).unwrap();
                assert!([5, 33, 69].contains(&id), "{id}");
            }
            assert!(sampler.sample_among(&values, Some(&[0, 0, 0])).is_err());
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let values = [1.0f32, 3.0, 2.0, 3.0];
        let total: f64 = values.iter().map(|&v| f64::from(v).exp()).sum();
        let (own, top) = log_probabilities(&values, 2, 3);
        assert!((f64::from(own) - (2.0 - total.ln())).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
        assert!((f64::from(top[0].1).exp() - 3f64.exp() / total).abs() < 1e-6);
        assert!(log_probabilities(&values, 0, 0).1.is_empty());
        assert_eq!(log_probabilities(&values, 0, 9).1.len(), 4);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let values = logits(3, 500);
        let draw = |seed| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, 500).unwrap();
            (0..20).map(|_| sampler.sample(&values).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn rejects_settings_without_sense() {
        let bad = |sampling: Sampling| Sampler::new(sampling, 2).unwrap_err().to_string();
        let greedy = Sampling::default;
        assert!(bad(Sampling { top_p: 0.0, ..greedy() }).contains("top_p: expected more than 0"));
        assert!(bad(Sampling { temperature: -1.0, ..greedy() }).contains("found -1"));
        assert!(bad(Sampling { min_p: 2.0, ..greedy() }).contains("min_p"));
        assert!(bad(Sampling { repeat_penalty: f64::NAN, ..greedy() }).contains("NaN"));
    }
}
