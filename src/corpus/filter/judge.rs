//! A record to its verdict, and files of records through it.

use std::collections::BTreeSet;

use mmx_converters::tokenizer::Tokenizer;
use mmx_converters::{Error, Result};
use serde_json::Value;

use super::rules::{Range, Rules};
use super::shares::Shares;
use super::{c4, encoding, gopher, personal};
use crate::language;
use crate::reading::{self, Raw, Reading, Source};
use crate::report::{Example, Report};
use crate::words::SCRIPTS;
use crate::writing::Output;

/// Rules, ready to judge.
#[derive(Debug)]
pub struct Filter<'a> {
    rules: Rules,
    languages: Vec<whatlang::Lang>,
    tokenizer: Option<&'a Tokenizer>,
}

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is written, as it was or changed; with the rules that changed it.
    Keep {
        /// The record's line.
        line: String,
        /// Rules that changed it, each once.
        changed: BTreeSet<&'static str>,
    },
    /// It is left out.
    Drop {
        /// The rule's name.
        rule: String,
        /// What it found.
        found: String,
    },
}

struct Judged {
    source: Source,
    verdict: Verdict,
    bytes: u64,
    kept_bytes: u64,
    /// The beginning of its text, for examples.
    text: String,
}

impl<'a> Filter<'a> {
    /// Rules, with the tokenizer that lengths in tokens need.
    ///
    /// # Errors
    /// A length in tokens without a tokenizer.
    pub fn new(rules: Rules, tokenizer: Option<&'a Tokenizer>) -> Result<Self> {
        if rules.needs_tokenizer() && tokenizer.is_none() {
            return Err(Error::setting("tokenizer", "one for the rule length.tokens", "none"));
        }
        let keep = rules.language.iter().flat_map(|language| &language.keep);
        let languages = keep.filter_map(|code| language::known(code)).collect();
        Ok(Self { rules, languages, tokenizer })
    }

    /// Judges every record of the files, and writes those that stay, in their order.
    ///
    /// # Errors
    /// Files that cannot be read or written, faulty records, a text the tokenizer refuses.
    pub fn run(&mut self, reading: &Reading, output: &mut Output<'_>) -> Result<Report> {
        let mut report = Report::default();
        let read = reading::for_each(
            reading,
            "filtering",
            |raw| self.judged(&raw),
            |judged: Result<Judged>| {
                let Judged { source, verdict, bytes, kept_bytes, text } = judged?;
                report.text_bytes += bytes;
                match verdict {
                    Verdict::Keep { line, changed } => {
                        output.push(&line)?;
                        report.kept += 1;
                        report.kept_text_bytes += kept_bytes;
                        report.changed += u64::from(!changed.is_empty());
                        for rule in changed {
                            let found = "changed".to_owned();
                            report.replace(rule, || {
                                Example::new(&reading.files, source, found, &text)
                            });
                        }
                    }
                    Verdict::Drop { rule, found } => {
                        report.drop(&rule, || Example::new(&reading.files, source, found, &text))
                    }
                }
                Ok(())
            },
        )?;
        report.reading(&read, &reading.files);
        Ok(report)
    }

    fn judged(&self, raw: &Raw<'_>) -> Result<Judged> {
        /// Bytes of text that an example is made of.
        const KEPT: usize = 1000;
        let text = raw.texts().join("\n");
        let (verdict, kept_bytes) = self.judge(raw, &text)?;
        let end = (0..=KEPT.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        let mut head = text[..end.unwrap_or(0)].to_owned();
        // of what was replaced an example shows nothing
        if let Verdict::Keep { line, changed } = &verdict
            && !changed.is_empty()
        {
            head = line.chars().take(200).collect();
        }
        Ok(Judged { source: raw.source, verdict, bytes: text.len() as u64, kept_bytes, text: head })
    }

    fn judge(&self, raw: &Raw<'_>, text: &str) -> Result<(Verdict, u64)> {
        let mut changed = BTreeSet::new();
        let mut object = None;
        let mut shorter = None;
        if let (Some(rules), Some(Value::String(own))) = (&self.rules.c4, raw.object.get("text")) {
            match c4::apply(rules, own) {
                c4::Outcome::Same => {}
                c4::Outcome::Less(less) => {
                    let mut mended = raw.object.clone();
                    mended.insert("text".to_owned(), less.clone().into());
                    object = Some(mended);
                    shorter = Some(less);
                    changed.insert("c4.lines");
                }
                c4::Outcome::Drop(rule, found) => {
                    return Ok((Verdict::Drop { rule: rule.to_owned(), found }, 0));
                }
            }
        }
        let text = shorter.as_deref().unwrap_or(text);
        if let Some((rule, found)) = self.fails(text)? {
            return Ok((Verdict::Drop { rule, found }, 0));
        }
        let own = object.as_ref().unwrap_or(&raw.object);
        if let Some(rules) = &self.rules.personal
            && own.values().any(|value| has_personal(value, &rules.replace))
        {
            let mut mended = Value::Object(own.clone());
            let mut kinds = BTreeSet::new();
            replace(&mut mended, &rules.replace, &mut kinds);
            if let (false, Value::Object(mended)) = (kinds.is_empty(), mended) {
                object = Some(mended);
                changed.extend(kinds.into_iter().map(personal::Kind::rule));
            }
        }
        let line = object.map_or_else(|| raw.line(), |object| Value::Object(object).to_string());
        Ok((Verdict::Keep { line, changed }, text.len() as u64))
    }

    /// The first rule that a text fails, cheap ones first, and what it found.
    fn fails(&self, text: &str) -> Result<Option<(String, String)>> {
        let rules = &self.rules;
        let shares = Shares::of(text);
        let characters = shares.characters;
        let outside = |rule: &str, range: Range, value: f64| {
            (!range.holds(value)).then(|| (rule.to_owned(), shown(value)))
        };
        let first = outside("length.characters", rules.length.characters, characters as f64);
        if first.is_some() {
            return Ok(first);
        }
        if let Some(encoding) = &rules.encoding {
            let (share, sign) = encoding::broken(text, characters);
            if !encoding.broken.holds(share) {
                let found = format!("{}, {}", shown(share), sign.unwrap_or_default());
                return Ok(Some(("encoding.broken".to_owned(), found)));
            }
        }
        for (name, range) in &rules.script {
            let known = SCRIPTS.iter().find(|(known, _)| known == name);
            let share = known.map_or(0.0, |(_, script)| shares.script(*script));
            let failed = outside(&format!("script.{name}"), *range, share);
            if failed.is_some() {
                return Ok(failed);
            }
        }
        if let Some(symbols) = &rules.symbols {
            let share = shares.symbols as f64 / characters.max(1) as f64;
            let failed = outside("symbols.share", symbols.share, share);
            if failed.is_some() {
                return Ok(failed);
            }
        }
        if let Some(language) = &rules.language
            && let Some((lang, code, confidence)) = language::detect(text)
            && confidence >= language.min_confidence
            && !self.languages.contains(&lang)
        {
            return Ok(Some(("language".to_owned(), format!("{code} ({confidence:.2})"))));
        }
        let counted = !rules.length.words.is_open();
        if counted || rules.gopher.is_some() || rules.repetition.is_some() {
            let words = gopher::words_of(text);
            let failed = outside("length.words", rules.length.words, words.len() as f64);
            if failed.is_some() {
                return Ok(failed);
            }
            let quality = |rules| gopher::quality(rules, text, &words, &shares);
            let repetition = |rules| gopher::repetition(rules, text, &words, characters);
            let failed = rules.gopher.as_ref().and_then(quality);
            let failed = failed.or_else(|| rules.repetition.as_ref().and_then(repetition));
            if let Some((rule, value)) = failed {
                return Ok(Some((rule.to_owned(), shown(value))));
            }
        }
        if let Some(tokenizer) = self.tokenizer.filter(|_| !rules.length.tokens.is_open()) {
            let tokens = tokenizer.encode_plain(text)?.len();
            return Ok(outside("length.tokens", rules.length.tokens, tokens as f64));
        }
        Ok(None)
    }
}

/// A number in a report: whole ones as they are, others with four digits.
fn shown(value: f64) -> String {
    match value.fract() == 0.0 {
        true => format!("{value}"),
        false => format!("{value:.4}"),
    }
}

/// True where a string within a value has personal data.
fn has_personal(value: &Value, kinds: &[personal::Kind]) -> bool {
    match value {
        Value::String(text) => personal::is_in(text, kinds),
        Value::Array(list) => list.iter().any(|value| has_personal(value, kinds)),
        Value::Object(object) => object.values().any(|value| has_personal(value, kinds)),
        _ => false,
    }
}

/// Replaces personal data in every string within a value.
fn replace(value: &mut Value, kinds: &[personal::Kind], found: &mut BTreeSet<personal::Kind>) {
    match value {
        Value::String(text) => {
            if let Some((mended, of_text)) = personal::replaced(text, kinds) {
                found.extend(of_text);
                *text = mended;
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace(value, kinds, found)),
        Value::Object(object) => {
            object.values_mut().for_each(|value| replace(value, kinds, found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn filtered(rules: &str, lines: &str) -> (String, Report) {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in.jsonl");
        fs_err::write(&input, lines).unwrap();
        let rules = Rules::parse(rules, Path::new("rules.toml")).unwrap();
        let mut out = Vec::new();
        let mut filter = Filter::new(rules, None).unwrap();
        let report = filter.run(&Reading::of(&[input]), &mut Output::lines(&mut out)).unwrap();
        (String::from_utf8(out).unwrap(), report)
    }

    #[test]
    fn records_that_stay_keep_their_bytes_and_their_order() {
        let lines = "{\"text\":  \"long enough\", \"id\": 1}\n{\"text\": \"no\"}\n\
            {\"conversations\": [{\"role\": \"user\", \"content\": \"hello there\"}]}\n";
        let (out, report) = filtered("[length]\ncharacters = { min = 5 }", lines);
        let expected: Vec<&str> = lines.lines().filter(|line| !line.contains("\"no\"")).collect();
        assert_eq!(out.lines().collect::<Vec<_>>(), expected);
        assert_eq!((report.read, report.kept, report.dropped_records()), (3, 2, 1));
        let dropped = &report.dropped[0];
        assert_eq!((dropped.rule.as_str(), dropped.examples[0].line), ("length.characters", 2));
        assert_eq!(dropped.examples[0].found, "2");
    }

    #[test]
    fn every_rule_is_named_where_it_drops() {
        let rules =
            "[script]\nhan = { min = 0.5 }\n[encoding]\n[symbols]\n[language]\nkeep = [\"zh\"]";
        let texts = ["中文很好", "english", "中\u{fffd}文", "中###", "中文"];
        let lines: Vec<String> =
            texts.iter().map(|t| serde_json::json!({ "text": t }).to_string()).collect();
        let (_, report) = filtered(rules, &lines.join("\n"));
        let named: Vec<&str> = report.dropped.iter().map(|d| d.rule.as_str()).collect();
        assert_eq!(named, ["script.han", "encoding.broken", "symbols.share"]);
    }

    #[test]
    fn personal_data_is_replaced_wherever_it_stands() {
        let lines =
            r#"{"conversations": [{"role": "user", "content": "I am a@b.cn"}], "by": "c@d.cn"}"#;
        let (out, report) = filtered("[personal]\nreplace = [\"email\"]", lines);
        assert!(!out.contains('@') && out.matches("[EMAIL]").count() == 2, "{out}");
        assert_eq!((report.changed, report.replaced[0].records), (1, 1));
        let shown = serde_json::to_string(&report).unwrap();
        assert!(!shown.contains('@'), "an example shows what was replaced: {shown}");
    }

    #[test]
    fn lengths_in_tokens_need_a_tokenizer() {
        let rules = Rules::parse("[length]\ntokens = { max = 3 }", Path::new("r")).unwrap();
        assert!(Filter::new(rules, None).unwrap_err().is_misuse());
    }
}
