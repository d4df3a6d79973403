//! One request, asked until it is answered or not worth asking again.

use std::time::Duration;

use serde_json::Value;

/// A model that answers chats.
pub trait Chat: Sync {
    /// Asks for a chat completion in OpenAI's form.
    ///
    /// # Errors
    /// The reason why there is no answer.
    fn ask(&self, body: &Value) -> Result<Value, Refused>;
}

/// The reason why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason in words.
    pub why: String,
    /// Whether the same request may be answered later.
    pub again: bool,
    /// The time that the server asks to wait.
    pub after: Option<Duration>,
}

/// How often and after what time a request is asked again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retries {
    /// Times after the first.
    pub count: usize,
    /// The wait before the second time; it doubles each time.
    pub first: Duration,
    /// The longest wait, also where the server asks for more.
    pub longest: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        Self { count: 6, first, longest }
    }
}

/// Asks until there is an answer that `fits`, which says what is wrong with one that does not;
/// `stopped` ends the waiting.
///
/// # Errors
/// The last reason, once all times are used up or one says that asking again is in vain.
pub fn asked(
    chat: &dyn Chat,
    body: &Value,
    retries: Retries,
    fits: impl Fn(&Value) -> Result<(), String>,
    stopped: &dyn Fn() -> bool,
) -> Result<Value, String> {
    let mut wait = retries.first;
    for time in 0.. {
        let refused = match chat.ask(body) {
            Ok(answer) => match fits(&answer) {
                Ok(()) => return Ok(answer),
                Err(why) => Refused { why, again: true, after: None },
            },
            Err(refused) => refused,
        };
        if !refused.again || time >= retries.count || stopped() {
            return Err(refused.why);
        }
        std::thread::sleep(refused.after.unwrap_or(wait).min(retries.longest));
        wait = (wait * 2).min(retries.longest);
    }
    Err("expected an answer".to_owned())
}

/// Checks that a chat completion holds the one answer that was asked for.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub fn whole(answer: &Value) -> Result<(), String> {
    let Some(choices) = answer["choices"].as_array() else {
        return Err("expected key choices, found none".to_owned());
    };
    match choices.first().map(|choice| &choice["message"]) {
        Some(Value::Object(_)) => Ok(()),
        Some(_) => Err("expected a message, found none".to_owned()),
        None => Err("expected one answer, found 0".to_owned()),
    }
}
