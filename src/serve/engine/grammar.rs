//! Grammars of texts that must be JSON of a schema or calls of tools, followed by masks over the
//! vocabulary.

use std::collections::HashSet;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Value, json};
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::error::ApiError;

/// The longest token that the library takes, in bytes (its trie keeps depths in 10 bits).
const LONGEST: usize = 1000;

/// Space between the parts of JSON: one, or a line break and indentation. Without a bound, a small
/// model that once writes a line break may write nothing else.
const SPACE: &str = r"\x20|\x0A\x20{0,8}";

/// A tool that may be called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// JSON schema of the arguments.
    pub(crate) schema: Value,
    /// Place of the schema in the request, for errors.
    pub(crate) place: String,
}

/// A compiler of grammars for one vocabulary.
pub(crate) struct Grammars(ParserFactory);

/// A grammar half way through a text.
pub(crate) struct Constraint {
    matcher: Matcher,
    /// The text that must come first: the end of a thought.
    after: Option<&'static str>,
    before: String,
}

/// Bounds the space that JSON of a schema may hold.
fn spaced(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other,
    };
    if let Some(object) = schema.as_object_mut() {
        object.insert("x-guidance".to_owned(), json!({"whitespace_pattern": SPACE}));
    }
    schema
}

/// The first reference of a schema that leads to itself through nothing but references: no text
/// could ever fit there.
pub(crate) fn endless_reference(schema: &Value) -> Option<String> {
    let target = |reference: &str| schema.pointer(reference.strip_prefix('#')?);
    let reference = |value: &Value| value.get("$ref").and_then(Value::as_str).map(str::to_owned);
    let mut rest = vec![schema];
    let mut ending = HashSet::new();
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(values) => rest.extend(values),
            Value::Object(fields) => rest.extend(fields.values()),
            _ => {}
        }
        let mut seen = HashSet::new();
        let mut next = reference(value);
        while let Some(found) = next.take_if(|found| !ending.contains(found)) {
            next = target(&found).and_then(reference);
            if let Some(again) = seen.replace(found) {
                return Some(again);
            }
        }
        ending.extend(seen);
    }
    None
}

struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }
}

impl Grammars {
    /// Makes the compiler for a model of `vocab` ids whose texts end with `end`.
    pub(crate) fn new(tokenizer: &Tokenizer, vocab: usize, end: u32) -> Result<Self, ApiError> {
        let words: Vec<Vec<u8>> = (0..vocab as u32)
            .map(|id| match tokenizer.token_bytes(id) {
                bytes if bytes.len() > LONGEST => Vec::new(),
                // a control token is never text
                bytes if tokenizer.is_control(id) => {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
                }
                bytes => bytes.to_vec(),
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words);
        let environment: TokEnv = Arc::new(Vocabulary(trie));
        let mut factory = ParserFactory::new_simple(&environment)
            .map_err(|e| ApiError::unavailable(format!("grammars: {e}")))?;
        factory.quiet();
        Ok(Self(factory))
    }

    /// Compiles the grammar of JSON that a schema allows, which stands at `place` in the request.
    pub(crate) fn json(
        &self,
        schema: Value,
        place: &str,
        after: Option<&'static str>,
    ) -> Result<Constraint, ApiError> {
        if let Some(reference) = endless_reference(&schema) {
            let text = format!("{place}: no text fits the schema: {reference} refers to itself");
            return Err(ApiError::invalid(place, text));
        }
        let grammar = TopLevelGrammar::from_json_schema(spaced(schema));
        self.compile(grammar, after).map_err(|why| unfollowed(place, &why))
    }

    /// Compiles the grammar of one call of the tools, or with `several` of one or more.
    ///
    /// The arguments of each tool are a grammar of their own, so that `#`, `$defs` and
    /// `definitions` in a schema are its own and no other tool's.
    pub(crate) fn calls(
        &self,
        tools: &[Function],
        several: bool,
        after: Option<&'static str>,
    ) -> Result<Constraint, ApiError> {
        let start = if several { "call (\"\\n\" call)*" } else { "call" };
        let mut lark = format!("start: {start}\n");
        let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        lark += &format!("call: {}\n", names.join(" | "));
        let mut grammars = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            // strings of a grammar are written as JSON's
            let name = Value::from(tool.name.as_str());
            let head = format!("<tool_call>\n{{\"name\": {name}, \"arguments\": ");
            let (head, tail) = (Value::from(head), Value::from("}\n</tool_call>"));
            lark += &format!("call_{i}: {head} @arguments_{i} {tail}\n");
            let mut arguments = GrammarWithLexer::from_json_schema(spaced(tool.schema.clone()));
            arguments.name = Some(format!("arguments_{i}"));
            grammars.push(arguments);
        }
        grammars.insert(0, GrammarWithLexer::from_lark(lark));
        let all = TopLevelGrammar { grammars, max_tokens: None };
        self.compile(all, after).map_err(|why| {
            // which one it is
            let alone = |tool: &Function| {
                let schema = spaced(tool.schema.clone());
                self.compile(TopLevelGrammar::from_json_schema(schema), None).err()
            };
            let found = tools.iter().find_map(|tool| Some((&tool.place, alone(tool)?)));
            match found {
                Some((place, why)) => unfollowed(place, &why),
                None => unfollowed("tools", &why),
            }
        })
    }

    fn compile(
        &self,
        grammar: TopLevelGrammar,
        after: Option<&'static str>,
    ) -> Result<Constraint, String> {
        let parser = self.0.create_parser(grammar).map_err(|e| e.to_string())?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(why) => Err(why),
            None => Ok(Constraint { matcher, after, before: String::new() }),
        }
    }
}

/// The error for a schema that no grammar can be made of.
fn unfollowed(place: &str, why: &str) -> ApiError {
    // the library shows its state after the first line
    let line = why.lines().next().unwrap_or_default();
    ApiError::invalid(place, format!("{place}: the schema cannot be followed: {line}"))
}

impl Constraint {
    /// The mask of ids that may come next, a bit each; nothing while any may.
    pub(crate) fn mask(&mut self) -> Result<Option<toktrie::SimpleVob>, String> {
        if self.after.is_some() {
            return Ok(None);
        }
        self.matcher.compute_mask_or_eos().map(Some).map_err(|e| {
            // the library shows its state after the first line
            let why = e.to_string();
            let line = why.lines().next().unwrap_or_default();
            format!("no text fits the schema from here on: {line}")
        })
    }

    /// Takes the next token: an id and its text.
    pub(crate) fn consume(&mut self, id: u32, text: &str) -> Result<(), String> {
        match self.after {
            None => self.matcher.consume_token(id).map_err(|e| e.to_string()),
            Some(mark) => {
                self.before.push_str(text);
                if self.before.contains(mark) {
                    self.after = None;
                }
                Ok(())
            }
        }
    }

    /// True when nothing more can follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.after.is_none() && self.matcher.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn tokenizer() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden");
        Tokenizer::open(path).unwrap()
    }

    /// True for a text that can be written, token by token.
    fn accepts(constraint: impl Fn() -> Constraint, tokenizer: &Tokenizer, text: &str) -> bool {
        let mut constraint = constraint();
        let ids = tokenizer.encode_plain(text).unwrap();
        let allows = |constraint: &mut Constraint, id| {
            constraint.mask().unwrap().is_none_or(|m| m.is_allowed(id))
        };
        ids.iter().all(|&id| {
            let text = tokenizer.decode(&[id], false);
            allows(&mut constraint, id) && constraint.consume(id, &text).is_ok()
        }) && allows(&mut constraint, 2)
    }

    #[test]
    fn only_json_of_the_schema_can_be_written() {
        let tokenizer = tokenizer();
        let grammars = Grammars::new(&tokenizer, 512, 2).unwrap();
        let schema = json!({
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["好", "x"]}},
            "required": ["a", "b"], "additionalProperties": false,
        });
        let of = |text| {
            accepts(|| grammars.json(schema.clone(), "schema", None).unwrap(), &tokenizer, text)
        };
        assert!(of(r#"{"a": 12, "b": "好"}"#));
        assert!(!of(r#"{"a": "12", "b": "好"}"#));
        assert!(!of(r#"{"a": 12, "b": "y"}"#));
        assert!(!of(r#"{"a": 12}"#));
        let after = || grammars.json(schema.clone(), "schema", Some("</think>")).unwrap();
        assert!(accepts(after, &tokenizer, r#"well </think>{"a": 1, "b": "x"}"#));
        assert!(!accepts(after, &tokenizer, r#"well </think>{"a": x"#));
    }

    #[test]
    fn calls_name_a_tool_and_fit_its_schema() {
        let tokenizer = tokenizer();
        let grammars = Grammars::new(&tokenizer, 512, 2).unwrap();
        let schema = json!({"type": "object", "properties": {"x": {"type": "number"}},
            "required": ["x"], "additionalProperties": false});
        let tools = [function("add", schema)];
        let of = |text| accepts(|| grammars.calls(&tools, true, None).unwrap(), &tokenizer, text);
        assert!(of("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"x\": 1.5}}\n</tool_call>"));
        assert!(!of("<tool_call>\n{\"name\": \"sub\", \"arguments\": {\"x\": 1.5}}\n</tool_call>"));
        assert!(!of("hello"));
    }

    fn function(name: &str, schema: Value) -> Function {
        let place = format!("tools[{name}].function.parameters");
        Function { name: name.to_owned(), schema, place }
    }

    /// Two tools with definitions of the same name, one that is recursive, and names that must be
    /// escaped.
    #[test]
    fn references_stay_within_the_schema_of_their_tool() {
        let tokenizer = tokenizer();
        let grammars = Grammars::new(&tokenizer, 512, 2).unwrap();
        let of = |kind: Value, at: &str| {
            json!({"type": "object", "properties": {"x": {"$ref": format!("#/{at}/T")}},
            "required": ["x"], "additionalProperties": false, at: {"T": kind}})
        };
        let tree = json!({"type": "object", "properties": {"v": {"enum": [0, 1]}, "next": {"$ref": "#"}},
            "required": ["v"], "additionalProperties": false});
        let tools = [
            function("a", of(json!({"enum": [1]}), "$defs")),
            function("say \"b\"", of(json!({"enum": [2]}), "definitions")),
            function("tree", tree),
        ];
        let call = |name: &str, arguments: &str| {
            let name = Value::from(name);
            let text = format!(
                "<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>"
            );
            accepts(|| grammars.calls(&tools, false, None).unwrap(), &tokenizer, &text)
        };
        assert!(call("a", r#"{"x": 1}"#) && !call("a", r#"{"x": 2}"#));
        assert!(call("say \"b\"", r#"{"x": 2}"#) && !call("say \"b\"", r#"{"x": 1}"#));
        assert!(call("tree", r#"{"v": 0, "next": {"v": 1, "next": {"v": 0}}}"#));
        assert!(!call("tree", r#"{"v": 0, "next": {"name": "tree", "arguments": {"v": 1}}}"#));
    }

    #[test]
    fn a_tool_whose_schema_cannot_be_followed_is_named() {
        let grammars = Grammars::new(&tokenizer(), 512, 2).unwrap();
        let good = function("0", json!({"type": "object"}));
        for schema in [
            json!({"type": "nonsense"}),
            json!({"properties": {"x": {"$ref": "#/$defs/None"}}, "required": ["x"]}),
            json!({"properties": {"x": {"$ref": "https://example.com/x.json"}}, "required": ["x"]}),
        ] {
            let tools = [good.clone(), function("1", schema.clone())];
            let error = grammars.calls(&tools, false, None).err();
            let error = error.unwrap_or_else(|| panic!("{schema} is followed"));
            assert_eq!(error.param.as_deref(), Some("tools[1].function.parameters"), "{schema}");
            assert!(error.message.contains("cannot be followed"), "{error:?}");
        }
    }

    #[test]
    fn a_reference_that_leads_to_itself_alone_is_found_and_a_recursive_type_is_none() {
        let of = |to_a: &str, to_b: &str| {
            json!({"properties": {"x": {"$ref": "#/$defs/a"}},
                "$defs": {"a": {"$ref": to_a}, "b": {"$ref": to_b}}})
        };
        assert_eq!(endless_reference(&of("#/$defs/b", "#/$defs/a")).as_deref(), Some("#/$defs/a"));
        assert!(endless_reference(&json!({"$ref": "#"})).is_some());
        assert_eq!(endless_reference(&of("#/$defs/b", "#/$defs/none")), None);
        let tree = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        assert_eq!(endless_reference(&tree), None);
        // each reference of a long chain is followed once
        let chain: Map<String, Value> = (0..100_000)
            .map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)})))
            .collect();
        assert_eq!(endless_reference(&json!({"$defs": chain})), None);
    }

    #[test]
    fn a_schema_without_sense_is_the_requests_fault() {
        let grammars = Grammars::new(&tokenizer(), 512, 2).unwrap();
        let error = grammars.json(json!({"type": "nonsense"}), "schema", None).err().unwrap();
        assert_eq!(error.status, axum::http::StatusCode::BAD_REQUEST);
    }
}
