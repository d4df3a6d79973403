//! JSON as Python's `json.dumps(..., ensure_ascii=False)` writes it: a space after commas and colons,
//! floats with a point. Templates show tools so, and models have learned results in this form.

use std::io::{self, Write};

use mmx_converters::chat::python_float;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// The text of a value.
#[must_use]
pub fn json_text(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, Python);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        // writing to memory does not fail
        Err(_) => value.to_string(),
    }
}

struct Python;

impl Formatter for Python {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn commas_and_colons_are_followed_by_a_space() {
        let value = json!({"a": [1, 2.0, "北京\n"], "b": {}, "c": []});
        assert_eq!(json_text(&value), "{\"a\": [1, 2.0, \"北京\\n\"], \"b\": {}, \"c\": []}");
    }
}
