//! A table that a tool looks up: arguments to a value.

use serde_json::{Number, Value};

/// What a tool of the type `lookup` does.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lookup {
    /// Arguments that lead through the table, one for each level.
    pub(super) by: Vec<String>,
    /// Values by the first argument, or tables by the next one.
    pub(super) table: Value,
    /// What an entry that is not there gives; an error where nothing is given.
    pub(super) otherwise: Option<Value>,
    /// Whether the case of letters counts in keys.
    pub(super) ignore_case: bool,
    /// An argument that a number of the table is multiplied by, and the digits after the point that
    /// are kept.
    pub(super) times: Option<(String, i32)>,
}

impl Lookup {
    /// The entry for arguments.
    pub(super) fn find(&self, arguments: &Value) -> Result<Value, String> {
        let mut at = &self.table;
        for name in &self.by {
            let key = match &arguments[name.as_str()] {
                Value::String(text) => text.trim().to_owned(),
                Value::Null => return Err(format!("expected argument {name}")),
                other => other.to_string(),
            };
            match (self.entry(at, &key), &self.otherwise) {
                (Some(value), _) => at = value,
                (None, Some(otherwise)) => return Ok(otherwise.clone()),
                (None, None) => return Err(format!("{name}: {key} is not known")),
            }
        }
        let Some((name, digits)) = &self.times else { return Ok(at.clone()) };
        let number = |value: &Value| match value {
            Value::String(text) => text.trim().parse::<f64>().ok(),
            other => other.as_f64(),
        };
        let times = number(&arguments[name.as_str()])
            .ok_or_else(|| format!("{name}: expected a number"))?;
        let factor = number(at).ok_or_else(|| "the table holds no number".to_owned())?;
        let unit = 10f64.powi(*digits);
        let value = (times * factor * unit).round_ties_even() / unit;
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| "the value is out of range".to_owned())
    }

    fn entry<'t>(&self, table: &'t Value, key: &str) -> Option<&'t Value> {
        let table = table.as_object()?;
        table.get(key).or_else(|| {
            let lower = key.to_lowercase();
            let mut same = table.iter().filter(|(name, _)| name.to_lowercase() == lower);
            same.next().filter(|_| self.ignore_case).map(|(_, value)| value)
        })
    }
}
