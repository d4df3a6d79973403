//! A longer context for a model that was trained on a shorter one, as people ask for it:
//! `linear:4`, `yarn:4:512`.
//!
//! In: such words, and a configuration. Out: the configuration with its rotary positions scaled.

use std::fmt;
use std::str::FromStr;

use super::config::{Config, Llama3, RopeScaling, Yarn};
use super::rope;

/// A way to stretch a model's rotary positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    kind: Kind,
    factor: f64,
    trained: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Linear,
    Ntk,
    Dynamic,
    Yarn,
    Llama3,
}

const KINDS: [(&str, Kind); 5] = [
    ("linear", Kind::Linear),
    ("ntk", Kind::Ntk),
    ("dynamic", Kind::Dynamic),
    ("yarn", Kind::Yarn),
    ("llama3", Kind::Llama3),
];

impl FromStr for Stretch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || {
            format!(
                "expected KIND:FACTOR[:TRAINED] with linear, ntk, dynamic, yarn or llama3, as linear:4 or yarn:4:512, found {text}"
            )
        };
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let (_, kind) = KINDS.into_iter().find(|(known, _)| *known == name).ok_or_else(fault)?;
        let factor: f64 = parts.next().and_then(|part| part.parse().ok()).ok_or_else(fault)?;
        if !(1.0..=1024.0).contains(&factor) {
            return Err(format!("expected a factor of 1 to 1024, found {factor}"));
        }
        let trained = match parts.next() {
            None => None,
            Some(part) => {
                let length = part.parse().ok().filter(|length| *length > 0);
                Some(length.ok_or_else(fault)?)
            }
        };
        match parts.next() {
            None => Ok(Self { kind, factor, trained }),
            Some(_) => Err(fault()),
        }
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        write!(f, "{name}:{}", self.factor)?;
        match self.trained {
            Some(trained) => write!(f, ":{trained}"),
            None => Ok(()),
        }
    }
}

impl Stretch {
    /// Scales a configuration's rotary positions in place of what it has; its longest sequence
    /// becomes the trained length times the factor. Where the trained length was not given it is
    /// the one that the configuration names, and no sequence gets shorter. [`RopeScaling::Dynamic`] takes the longest
    /// sequence for the trained length, which is what it becomes there.
    pub fn apply(&self, config: &mut Config) {
        let factor = self.factor;
        let known = match &config.rope_scaling {
            Some(RopeScaling::Yarn(yarn)) => yarn.original_max_position_embeddings,
            Some(RopeScaling::Llama3(llama3)) => llama3.original_max_position_embeddings,
            Some(RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. }) | None => {
                config.max_position_embeddings
            }
        };
        let original_max_position_embeddings = self.trained.unwrap_or(known);
        let longest = (original_max_position_embeddings as f64 * factor).round() as usize;
        config.max_position_embeddings = match self.kind {
            Kind::Dynamic => original_max_position_embeddings,
            _ if self.trained.is_some() => longest,
            _ => config.max_position_embeddings.max(longest),
        };
        config.rope_scaling = match self.kind {
            Kind::Linear => Some(RopeScaling::Linear { factor }),
            Kind::Ntk => {
                config.rope_theta = rope::ntk_theta(config.rope_theta, config.head_dim, factor);
                None
            }
            Kind::Dynamic => Some(RopeScaling::Dynamic { factor }),
            // the betas of the paper, and its attention factor (Peng et al. 2023)
            Kind::Yarn => Some(RopeScaling::Yarn(Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: 1.0 + 0.1 * factor.ln(),
            })),
            // the bounds of Llama 3.1's configuration
            Kind::Llama3 => Some(RopeScaling::Llama3(Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings,
            })),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::presets;

    #[test]
    fn words_are_read_and_written_alike_and_others_are_refused_with_the_form() {
        for text in ["linear:4", "ntk:2.5", "dynamic:4:512", "yarn:16:2048", "llama3:8"] {
            assert_eq!(text.parse::<Stretch>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "linear",
            "linear:",
            "linear:0.5",
            "linear:nan",
            "cubic:4",
            "yarn:4:0",
            "yarn:4:512:1",
        ] {
            let error = text.parse::<Stretch>().unwrap_err();
            assert!(error.starts_with("expected "), "{text}: {error}");
        }
    }

    #[test]
    fn the_context_grows_from_the_trained_length_and_a_second_stretch_replaces_the_first() {
        let mut config = presets::preset("minimind3").unwrap();
        config.max_position_embeddings = 1000;
        "yarn:4:512".parse::<Stretch>().unwrap().apply(&mut config);
        assert_eq!(config.max_position_embeddings, 2048);
        "dynamic:8".parse::<Stretch>().unwrap().apply(&mut config);
        assert_eq!(config.rope_scaling, Some(RopeScaling::Dynamic { factor: 8.0 }));
        assert_eq!((config.max_position_embeddings, config.longest()), (512, 4096));
    }

    /// Position 4p stretched by 4 is position p: what linear scaling means. A fixed base turns the
    /// fastest dimension as before and the slowest four times slower.
    #[test]
    fn the_slowest_dimension_turns_slower_by_the_factor_in_every_kind() {
        let plain = presets::preset("minimind3").unwrap();
        let before = rope::inverse_frequencies(&plain, 0);
        for kind in ["linear", "ntk", "dynamic", "yarn", "llama3"] {
            let mut config = plain.clone();
            format!("{kind}:4:512").parse::<Stretch>().unwrap().apply(&mut config);
            let after = rope::inverse_frequencies(&config, 2048);
            let last = after.len() - 1;
            // dynamic at 4 times the length: a base for 4 * 4 - 3
            let times = if kind == "dynamic" { 13.0 } else { 4.0 };
            let found = before[last] / after[last];
            assert!((found / times - 1.0).abs() < 1e-9, "{kind}: {found}");
            let fastest = if kind == "linear" { 4.0 } else { 1.0 };
            assert!((before[0] / after[0] / fastest - 1.0).abs() < 1e-9, "{kind}");
        }
    }
}
