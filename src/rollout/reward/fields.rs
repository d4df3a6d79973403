//! The keys of a reward, read one by one: what is of the wrong type, and what nobody read, are faults.

use std::cell::RefCell;

use serde_json::{Map, Value};

/// The key with a dot before it, and what was expected and found.
pub(super) type Fault = (String, String);

/// A JSON object that is being read.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    read: RefCell<Vec<&'static str>>,
}

pub(super) fn fault(key: &str, message: impl Into<String>) -> Fault {
    (format!(".{key}"), message.into())
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, read: RefCell::default() }
    }

    pub(super) fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Marks keys as read, which something else reads.
    pub(super) fn skip(&self, keys: &[&'static str]) {
        self.read.borrow_mut().extend(keys);
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<&'a str>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(fault(key, format!("expected a string, found {other}"))),
        }
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<bool, Fault> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(fault(key, format!("expected true or false, found {other}"))),
        }
    }

    pub(super) fn number(&self, key: &'static str) -> Result<Option<f64>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| fault(key, format!("expected a number, found {value}"))),
        }
    }

    pub(super) fn count(&self, key: &'static str) -> Result<Option<usize>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .map(Some)
                .ok_or_else(|| fault(key, format!("expected a whole number, found {value}"))),
        }
    }

    /// One of some words; nothing where the key is not there.
    pub(super) fn word<T: Copy>(
        &self,
        key: &'static str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, Fault> {
        let Some(found) = self.text(key)? else { return Ok(None) };
        let known = words.iter().find(|(word, _)| *word == found).map(|(_, value)| Some(*value));
        known.ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            fault(key, format!("expected one of {}, found {found}", words.join(", ")))
        })
    }

    /// A text or several.
    pub(super) fn texts(&self, key: &'static str) -> Result<Option<Vec<String>>, Fault> {
        self.get(key)
            .map(|value| {
                texts_of(value).ok_or_else(|| {
                    fault(
                        key,
                        format!("expected a text, a number or a list of them, found {value}"),
                    )
                })
            })
            .transpose()
    }

    /// Refuses keys that nobody has read.
    pub(super) fn finish(&self) -> Result<(), Fault> {
        let mut read = self.read.borrow().clone();
        match self.object.keys().find(|key| !read.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                read.sort_unstable();
                read.dedup();
                Err(fault(key, format!("expected one of {}, found {key}", read.join(", "))))
            }
        }
    }
}

/// The texts of a text, a number, or a list of them.
pub(super) fn texts_of(value: &Value) -> Option<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        other => one(other).map(|text| vec![text]),
    }
}
