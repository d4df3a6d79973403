//! Names of a file's keys for those of the known forms: `text=content`, `output=answer.best`.

use mmx_converters::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::turns;

/// Every key that a known form has, each once, in the order of the forms.
pub(super) const NAMES: &[&str] = &[
    "text",
    "conversations",
    "system",
    "tools",
    "messages",
    "instruction",
    "output",
    "input",
    "history",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "rejected_messages",
    "rejected_response",
    "preferred_output",
    "non_preferred_output",
];

/// Names within a turn, which may be mapped like those of a record.
const OF_TURNS: [&str; 4] = ["role", "content", "reasoning_content", "tool_calls"];

/// The keys at which a file keeps what the known forms keep under another name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Fields {
    of_records: Vec<(String, String)>,
    of_turns: Vec<(String, String)>,
}

impl Fields {
    /// Reads `NAME=PATH` each: a name of the known forms, and the key that stands for it; a key
    /// within another follows it after a dot, an element of a list by its number from 0.
    ///
    /// # Errors
    /// A pair of another form, a name that no form has, a name given twice.
    pub fn parse<S: AsRef<str>>(pairs: &[S]) -> Result<Self> {
        let mut fields = Self::default();
        for pair in pairs {
            let pair = pair.as_ref();
            let (name, path) = match pair.split_once('=') {
                Some((name, path)) if !name.is_empty() && !path.is_empty() => (name, path),
                _ => return Err(Error::setting("field", "NAME=PATH", format!("{pair:?}"))),
            };
            let list = if OF_TURNS.contains(&name) {
                &mut fields.of_turns
            } else if NAMES.contains(&name) {
                &mut fields.of_records
            } else {
                let known: Vec<&str> = NAMES.iter().copied().chain(OF_TURNS).collect();
                return Err(Error::setting(
                    "field",
                    format!("one of the names {}", known.join(", ")),
                    name,
                ));
            };
            if list.iter().any(|(given, _)| given == name) {
                return Err(Error::setting("field", format!("{name} once"), "it twice"));
            }
            list.push((name.to_owned(), path.to_owned()));
        }
        Ok(fields)
    }

    /// True where nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of_records.is_empty() && self.of_turns.is_empty()
    }

    /// True where a key of a record is mapped.
    pub(super) fn maps(&self, name: &str) -> bool {
        self.of_records.iter().any(|(known, _)| known == name)
    }

    /// The columns that are read for mapped names.
    pub(super) fn roots(&self) -> impl Iterator<Item = &str> {
        self.of_records.iter().flat_map(|(_, path)| {
            [path.as_str(), path.split_once('.').map_or(path.as_str(), |(root, _)| root)]
        })
    }

    /// Puts what is mapped under the known names.
    pub fn apply(&self, object: &mut Map<String, Value>) {
        let mapped: Vec<(&String, Value)> = self
            .of_records
            .iter()
            .filter_map(|(name, path)| Some((name, at(object, path)?.clone())))
            .collect();
        for (name, value) in mapped {
            object.insert(name.clone(), value);
        }
        if self.of_turns.is_empty() {
            return;
        }
        for key in NAMES.iter().copied() {
            let Some(mut list) = object.get(key).and_then(turns::list) else { continue };
            for turn in list.iter_mut().filter_map(Value::as_object_mut) {
                for (name, path) in &self.of_turns {
                    if let Some(value) = at(turn, path).cloned() {
                        if !path.contains('.') {
                            turn.shift_remove(path);
                        }
                        turn.insert(name.clone(), value);
                    }
                }
            }
            object.insert(key.to_owned(), list.into());
        }
    }
}

impl TryFrom<Vec<String>> for Fields {
    type Error = Error;

    fn try_from(pairs: Vec<String>) -> Result<Self> {
        Self::parse(&pairs)
    }
}

impl From<Fields> for Vec<String> {
    fn from(fields: Fields) -> Self {
        let pairs = fields.of_records.into_iter().chain(fields.of_turns);
        pairs.map(|(name, path)| format!("{name}={path}")).collect()
    }
}

/// The value at a path: a key as it stands, or keys and numbers of elements with dots between.
fn at<'a>(object: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = object.get(path) {
        return Some(value);
    }
    let mut parts = path.split('.');
    let mut value = object.get(parts.next()?)?;
    for part in parts {
        value = match value {
            Value::Object(object) => object.get(part)?,
            Value::Array(list) => list.get(part.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(pairs: &[&str], record: Value) -> Value {
        let Value::Object(mut object) = record else { panic!("a record") };
        Fields::parse(pairs).unwrap().apply(&mut object);
        object.into()
    }

    #[test]
    fn keys_are_found_by_name_path_and_number() {
        let record = json!({"a.b": "dot", "a": {"b": "in"}, "answers": [{"text": "first"}]});
        assert_eq!(applied(&["text=a.b"], record.clone())["text"], "dot");
        assert_eq!(applied(&["text=answers.0.text"], record.clone())["text"], "first");
        assert_eq!(applied(&["text=answers.1.text"], record.clone()), record);
    }

    #[test]
    fn names_of_turns_are_mapped_within_every_list_of_turns() {
        let record = json!({"dialogue": [{"speaker": "user", "says": "a"}]});
        let pairs = ["conversations=dialogue", "role=speaker", "content=says"];
        let expected = json!([{"role": "user", "content": "a"}]);
        assert_eq!(applied(&pairs, record)["conversations"], expected);
    }

    #[test]
    fn rejects_what_is_no_pair_and_names_that_no_form_has() {
        for (pairs, words) in [
            (vec!["text"], "expected NAME=PATH"),
            (vec!["=a"], "expected NAME=PATH"),
            (vec!["body=a"], "expected one of the names text, "),
            (vec!["text=a", "text=b"], "expected text once"),
        ] {
            let error = Fields::parse(&pairs).unwrap_err();
            assert!(error.is_misuse() && error.to_string().contains(words), "{error}");
        }
    }
}
