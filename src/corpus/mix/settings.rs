//! What is mixed, and how.

use std::path::PathBuf;

use mmx_converters::{Error, Result};
use serde::Serialize;

/// What is mixed, and how.
#[derive(Clone, Debug)]
pub struct Mix {
    /// The files and their shares.
    pub sources: Vec<(PathBuf, Share)>,
    /// What sizes are counted in.
    pub unit: Unit,
    /// The size of the output where shares are weights; the files' own together unless given.
    pub total: Option<u64>,
    /// False for the files in their order, pass after pass.
    pub shuffle: bool,
    /// The seed of everything random.
    pub seed: u64,
    /// The part of the output that is made, from 0, and the number of parts.
    pub part: (u64, u64),
    /// Bytes of records that are sorted at once.
    pub memory_bytes: u64,
}

/// How much of a file is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// Every record so many times; a fraction is of its size.
    Passes(f64),
    /// A share of the output, in proportion to the others' weights.
    Weight(f64),
    /// So much, in the unit.
    Budget(u64),
}

/// What sizes are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Records.
    Records,
    /// Characters of text.
    Characters,
    /// Tokens of text, without a chat template.
    Tokens,
}

impl Mix {
    /// Bytes of records that are sorted at once unless said otherwise.
    pub const MEMORY_BYTES: u64 = 256 << 20;

    /// Refuses what makes no mixture.
    ///
    /// # Errors
    /// Weights beside budgets or passes, a part that is none, parts of what is not shuffled.
    pub fn check(&self) -> Result<()> {
        let weighed = |share: &Share| matches!(share, Share::Weight(_));
        let weights = self.sources.iter().filter(|(_, share)| weighed(share)).count();
        if weights != 0 && weights != self.sources.len() {
            return Err(Error::misuse(
                "expected weights for all files or for none, found both weights and other shares",
            ));
        }
        for (path, share) in &self.sources {
            let (value, least) = match share {
                Share::Passes(value) | Share::Weight(value) => (*value, 0.0),
                Share::Budget(value) => (*value as f64, 1.0),
            };
            if !value.is_finite() || value < least || (weights > 0 && value == 0.0) {
                let message =
                    format!("{}: expected a share above 0, found {value}", path.display());
                return Err(Error::misuse(message));
            }
        }
        if self.total.is_some() && weights == 0 {
            return Err(Error::setting("total", "files with weights", "none"));
        }
        let (part, parts) = self.part;
        if part >= parts || (parts > 1 && !self.shuffle) {
            let expected = "a part of a shuffled mixture such as 1/4";
            return Err(Error::setting("part", expected, format!("{}/{parts}", part + 1)));
        }
        Ok(())
    }
}
