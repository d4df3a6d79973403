//! Ollama's Modelfile: written so that Ollama's reader gives back exactly what was meant.
//!
//! The reader's rules (read in Ollama's source): a value begins after its command and blanks. At
//! each line end the value so far, trimmed, is taken if it is complete; else reading goes on. A
//! value that begins with three quotes is complete once it has six characters and ends with three
//! quotes; one that begins with one quote, once it ends with one; any other is one line. There is
//! no escape. Characters that Go does not call printable are dropped, except line ends, blanks and
//! tabs.

use std::path::Path;

use crate::error::{Error, Result};

/// A Modelfile's commands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modelfile {
    /// The GGUF: a file name beside the Modelfile, or an absolute path.
    pub from: String,
    /// `PARAMETER` lines in order; `stop` may come several times.
    pub parameters: Vec<(String, String)>,
    /// A Go template. Without one Ollama renders the GGUF's own chat template (tools included);
    /// older versions need one.
    pub template: Option<String>,
    /// The default system prompt.
    pub system: Option<String>,
    /// Licences, each a text of its own.
    pub licenses: Vec<String>,
}

/// A Modelfile as text, and what Ollama will read otherwise than meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file's content.
    pub text: String,
    /// Sentences for the user.
    pub warnings: Vec<String>,
}

impl Modelfile {
    /// The Modelfile of a finished GGUF with a chat template: the stops of ChatML, the sampling the
    /// reference uses (temperature and top-p 0.85), and the length the model was trained for.
    pub fn chat(from: impl Into<String>, num_ctx: usize) -> Self {
        let mut parameters: Vec<(String, String)> = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
            .into_iter()
            .map(|stop| ("stop".into(), stop.into()))
            .collect();
        for name in ["temperature", "top_p"] {
            parameters.push((name.into(), "0.85".into()));
        }
        parameters.push(("num_ctx".into(), num_ctx.to_string()));
        Self { from: from.into(), parameters, ..Self::default() }
    }

    /// The file's text.
    ///
    /// # Errors
    /// A FROM, parameter or text that no spelling makes Ollama read back.
    pub fn write(&self) -> Result<Written> {
        let mut out = Written { text: String::new(), warnings: Vec::new() };
        out.text.push_str(&format!("FROM {}\n", self.bare_from()?));
        for (name, value) in &self.parameters {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(plain) {
                return Err(refused("PARAMETER", format!("{name:?} is no parameter's name")));
            }
            let quoted = quoted(value, &format!("PARAMETER {name}"), &mut out.warnings)?;
            out.text.push_str(&format!("PARAMETER {name} {quoted}\n"));
        }
        let texts = self.template.iter().map(|t| ("TEMPLATE", t));
        let texts = texts.chain(self.system.iter().map(|t| ("SYSTEM", t)));
        for (command, text) in texts.chain(self.licenses.iter().map(|t| ("LICENSE", t))) {
            let quoted = quoted(text, command, &mut out.warnings)?;
            out.text.push_str(&format!("{command} {quoted}\n"));
        }
        Ok(out)
    }

    /// FROM takes a bare value: a path in quotes would be taken for a model's name.
    fn bare_from(&self) -> Result<String> {
        let from = &self.from;
        let fault = if from.trim().is_empty() {
            "is empty"
        } else if from.contains(is_line_end) {
            "holds a line break"
        } else if from.trim() != from {
            "begins or ends with a blank"
        } else if from.starts_with('"') {
            "begins with a quote"
        } else if from.chars().any(is_dropped) {
            "holds a character that Ollama drops"
        } else {
            let rooted = from.starts_with("./") || from.starts_with("../");
            return Ok(if rooted || Path::new(from).is_absolute() {
                from.clone()
            } else {
                format!("./{from}")
            });
        };
        Err(refused("FROM", format!("the path {from:?} {fault}, and a path cannot be quoted")))
    }

    /// Reads a Modelfile by the rules above. Commands of no interest here are passed over.
    ///
    /// # Errors
    /// A value that is never complete, or a file without FROM.
    pub fn read(text: &str) -> Result<Self> {
        let mut file = Self::default();
        let text: String = text.chars().filter(|&c| !is_dropped(c)).collect();
        let mut rest = text.as_str();
        loop {
            rest = rest.trim_start_matches(|c| is_line_end(c) || is_blank(c));
            if rest.is_empty() {
                break;
            }
            if rest.starts_with('#') {
                rest = &rest[rest.find(is_line_end).unwrap_or(rest.len())..];
                continue;
            }
            let word = |s: &str| s.find(|c| is_blank(c) || is_line_end(c)).unwrap_or(s.len());
            let (command, after) = rest.split_at(word(rest));
            let mut after = after.trim_start_matches(is_blank);
            let mut name = "";
            if command.eq_ignore_ascii_case("PARAMETER") {
                (name, after) = after.split_at(word(after));
                after = after.trim_start_matches(is_blank);
            }
            let (value, left) = value(after).ok_or_else(|| {
                refused(command, "its value is never complete: a quote is missing".into())
            })?;
            rest = left;
            match command.to_ascii_uppercase().as_str() {
                "FROM" => file.from = value,
                "PARAMETER" => file.parameters.push((name.to_owned(), value)),
                "TEMPLATE" => file.template = Some(value),
                "SYSTEM" => file.system = Some(value),
                "LICENSE" => file.licenses.push(value),
                _ => {}
            }
        }
        if file.from.is_empty() {
            return Err(refused("FROM", "expected one, found none".into()));
        }
        Ok(file)
    }
}

fn refused(what: &str, reason: String) -> Error {
    Error::unsupported(format!("Modelfile: {what}"), reason)
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// The value at the beginning of `text`, without its quotes, and what follows its line.
fn value(text: &str) -> Option<(String, &str)> {
    let ends = text.char_indices().filter(|(_, c)| is_line_end(*c)).map(|(at, _)| at);
    for end in ends.chain([text.len()]) {
        let so_far = text[..end].trim_matches(|c| is_blank(c) || is_line_end(c));
        if let Some(value) = complete(so_far) {
            return Some((value.to_owned(), &text[end..]));
        }
    }
    None
}

/// The value inside the quotes, if it is complete.
fn complete(so_far: &str) -> Option<&str> {
    const THREE: &str = "\"\"\"";
    if let Some(inner) = so_far.strip_prefix(THREE) {
        return inner.strip_suffix(THREE);
    }
    if let Some(inner) = so_far.strip_prefix('"') {
        return inner.strip_suffix('"');
    }
    Some(so_far)
}

/// A text in the spelling that reads back: bare where that is plain, else in three quotes.
fn quoted(text: &str, what: &str, warnings: &mut Vec<String>) -> Result<String> {
    let dropped: Vec<char> = text.chars().filter(|&c| is_dropped(c)).collect();
    if !dropped.is_empty() {
        let mut names: Vec<String> =
            dropped.iter().map(|&c| format!("U+{:04X}", u32::from(c))).collect();
        names.sort_unstable();
        names.dedup();
        warnings.push(format!(
            "Modelfile: {what}: Ollama drops {} of its characters: {}",
            dropped.len(),
            names.join(", ")
        ));
    }
    let kept: String = text.chars().filter(|&c| !is_dropped(c)).collect();
    let spellings = [
        // a number or word needs no quotes
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.').then(|| text.to_owned()),
        Some(format!("\"\"\"{text}\"\"\"")),
        Some(format!("\"{text}\"")),
    ];
    for spelling in spellings.into_iter().flatten() {
        let read: String = spelling.chars().filter(|&c| !is_dropped(c)).collect();
        // another line follows in the file
        if value(&format!("{read}\nX")).is_some_and(|(v, rest)| v == kept && rest == "\nX") {
            return Ok(spelling);
        }
    }
    Err(refused(
        what,
        "no spelling reads back as this text: three quotes at the end of a line end it there"
            .into(),
    ))
}

/// True for what Go's `unicode.IsPrint` refuses and the reader therefore drops: control and format
/// characters, private use, and every space but U+0020; line ends and tabs are kept.
fn is_dropped(c: char) -> bool {
    if is_line_end(c) || is_blank(c) {
        return false;
    }
    // Cf of Unicode 15, as ranges
    const FORMAT: [(u32, u32); 21] = [
        (0xad, 0xad),
        (0x600, 0x605),
        (0x61c, 0x61c),
        (0x6dd, 0x6dd),
        (0x70f, 0x70f),
        (0x890, 0x891),
        (0x8e2, 0x8e2),
        (0x180e, 0x180e),
        (0x200b, 0x200f),
        (0x202a, 0x202e),
        (0x2060, 0x2064),
        (0x2066, 0x206f),
        (0xfeff, 0xfeff),
        (0xfff9, 0xfffb),
        (0x110bd, 0x110bd),
        (0x110cd, 0x110cd),
        (0x13430, 0x1343f),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0001, 0xe0001),
        (0xe0020, 0xe007f),
    ];
    let code = u32::from(c);
    let private = matches!(code, 0xe000..=0xf8ff | 0xf0000..=0x10ffff);
    // noncharacters are unassigned for good
    let nothing = (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe;
    c.is_control()
        || c.is_whitespace()
        || private
        || nothing
        || FORMAT.iter().any(|&(from, to)| (from..=to).contains(&code))
}

/// Go templates that render what the Jinja templates do, for versions of Ollama that need one.
pub mod go_template {
    /// MiniMind2: the system turn is always there, a user's turn opens the answer's.
    pub const MINIMIND2: &str = "<|im_start|>system\n\
        {{ if .System }}{{ .System }}{{ else }}You are a helpful assistant{{ end }}<|im_end|>\n\
        {{ range .Messages }}{{ if eq .Role \"user\" }}<|im_start|>user\n\
        {{ .Content }}<|im_end|>\n<|im_start|>assistant\n\
        {{ else if eq .Role \"assistant\" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_texts_read_back() {
        let mut file = Modelfile::chat("model-Q4_K_M.gguf", 32_768);
        file.system = Some("你叫 mmx。\n\"Quoted\"".into());
        file.template = Some(go_template::MINIMIND2.into());
        file.licenses = vec!["MIT\n\nCopyright \"x\"".into(), "Apache-2.0".into()];
        let written = file.write().unwrap();
        assert!(written.warnings.is_empty(), "{:?}", written.warnings);
        file.from = "./model-Q4_K_M.gguf".into();
        assert_eq!(Modelfile::read(&written.text).unwrap(), file);
    }

    #[test]
    fn rejects_paths_that_cannot_be_written_bare() {
        for from in ["", "a\nb.gguf", " a.gguf", "\"a.gguf\"", "a\u{3000}b.gguf"] {
            let error = Modelfile::chat(from, 1).write().unwrap_err().to_string();
            assert!(error.contains("FROM"), "{from:?}: {error}");
        }
    }

    #[test]
    fn rejects_a_value_without_its_last_quote() {
        assert!(Modelfile::read("FROM x\nSYSTEM \"\"\"never\nends").is_err());
        assert!(Modelfile::read("# FROM x\nSYSTEM a").is_err());
    }
}
