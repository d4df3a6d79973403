//! Keys of config.json ([`Keys`]) and of one architecture in a GGUF ([`ArchKeys`]), read one by
//! one.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::gguf::{self, Metadata};

/// Reads keys of one JSON object; every error names file, key, expected and found.
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) object: &'a Map<String, Value>,
}

impl Keys<'_> {
    /// The first of several spellings that is present and not null.
    pub(super) fn find(&self, names: &[&str]) -> Option<(String, &Value)> {
        names.iter().find_map(|&name| {
            self.object.get(name).filter(|v| !v.is_null()).map(|v| (name.to_owned(), v))
        })
    }

    pub(super) fn error(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::key(self.path, key, format!("expected {expected}, found {found}"))
    }

    pub(super) fn none(&self, key: &str, expected: &str) -> Error {
        Error::key(self.path, key, format!("expected {expected}, found none"))
    }

    pub(super) fn usize_or(&self, names: &[&str], default: Option<usize>) -> Result<usize> {
        match self.find(names) {
            // 2^31 bounds every dimension: products of two still fit 64 bits
            Some((key, v)) => match v.as_u64() {
                Some(n) if (1..1 << 31).contains(&n) => Ok(n as usize),
                _ => Err(self.error(&key, "a whole number from 1 to 2147483647", v)),
            },
            None => default.ok_or_else(|| self.none(names[0], "a whole number")),
        }
    }

    pub(super) fn f64_or(&self, names: &[&str], default: Option<f64>) -> Result<f64> {
        match self.find(names) {
            Some((key, v)) => match v.as_f64() {
                Some(x) if x.is_finite() => Ok(x),
                _ => Err(self.error(&key, "a number", v)),
            },
            None => default.ok_or_else(|| self.none(names[0], "a number")),
        }
    }

    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.find(&[name]) {
            Some((key, v)) => v.as_bool().ok_or_else(|| self.error(&key, "true or false", v)),
            None => Ok(default),
        }
    }

    pub(super) fn ids_or(&self, name: &str, default: &[u32]) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let Some((key, found)) = self.find(&[name]) else { return Ok(default.to_vec()) };
        let ids = match found {
            Value::Array(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            one => id(one).map(|n| vec![n]),
        };
        ids.filter(|ids| !ids.is_empty())
            .ok_or_else(|| self.error(&key, "a token id or a list of them", found))
    }

    pub(super) fn has_any(&self, names: &[&str]) -> bool {
        self.find(names).is_some()
    }

    /// True for MiniMind's own config.json, false for that of a stock Transformers class.
    pub(super) fn is_minimind(&self) -> bool {
        match self.object.get("model_type").and_then(Value::as_str) {
            Some(name) => name.starts_with("minimind"),
            None => true,
        }
    }
}

/// Reads `{arch}.*` keys of a GGUF; every error names file, key, expected and found.
pub(super) struct ArchKeys<'a> {
    pub(super) path: &'a Path,
    pub(super) metadata: &'a Metadata,
    pub(super) arch: &'static str,
}

impl ArchKeys<'_> {
    pub(super) fn get(&self, key: &str) -> Option<&gguf::Value> {
        self.metadata.get(&self.name(key))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.metadata.string(&self.name(key))
    }

    pub(super) fn error(&self, key: &str, message: String) -> Error {
        Error::key(self.path, self.name(key), message)
    }

    pub(super) fn usize_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.get(key) {
            Some(v) => match v.as_u64() {
                Some(n) if (1..1 << 31).contains(&n) => Ok(n as usize),
                _ => Err(self.wrong(key, "a whole number from 1 to 2147483647", v)),
            },
            None => default
                .ok_or_else(|| self.error(key, "expected a whole number, found none".to_owned())),
        }
    }

    pub(super) fn f64_or(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match self.get(key) {
            Some(v) => match v.as_f64() {
                Some(x) if x.is_finite() => Ok(x),
                _ => Err(self.wrong(key, "a number", v)),
            },
            None => {
                default.ok_or_else(|| self.error(key, "expected a number, found none".to_owned()))
            }
        }
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn wrong(&self, key: &str, expected: &str, found: &gguf::Value) -> Error {
        self.error(key, format!("expected {expected}, found {}", found.describe()))
    }
}
