//! What a policy wrote in answer to a task, as rewards read it.

use serde_json::Value;

use crate::rollout::Finish;

/// The mark that ends a thought.
const THOUGHT_ENDS: &str = "</think>";

/// A tool that was called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Called {
    /// The turn that called it, from 0.
    pub turn: usize,
    /// What stood between the tags, as JSON; no object where the call is invalid.
    pub call: Value,
    /// Whether the call names a tool that is offered, with an object of arguments.
    pub is_valid: bool,
    /// What the tool answered, JSON as text, as the policy read it.
    pub result: String,
}

/// The texts of one rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The text of each turn, without control tokens.
    pub turns: Vec<String>,
    /// The tools that were called, in order.
    pub calls: Vec<Called>,
    /// Why it ends.
    pub finish: Finish,
    /// Ids that were sampled.
    pub ids: usize,
    /// Whether the prompt ended inside a thought.
    pub thinking: bool,
}

impl Written {
    /// The written text of a rollout of one turn.
    #[must_use]
    pub fn one_turn(text: impl Into<String>) -> Self {
        Self { turns: vec![text.into()], finish: Finish::Stop, ..Self::default() }
    }

    /// The last turn's text: all of it, thoughts included.
    #[must_use]
    pub fn last(&self) -> &str {
        self.turns.last().map_or("", String::as_str)
    }

    /// The answer: what follows the last turn's thought, without white space around it. Nothing
    /// where a thought was opened and never ended.
    #[must_use]
    pub fn answer(&self) -> &str {
        let text = self.last();
        match text.split_once(THOUGHT_ENDS) {
            Some((_, answer)) => answer.trim(),
            None if self.thinking || text.trim_start().starts_with("<think>") => "",
            None => text.trim(),
        }
    }
}
