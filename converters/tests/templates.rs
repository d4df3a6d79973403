//! mmx's own chat templates: what Jinja2 makes of conversations of every kind, and contents in
//! parts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use mmx_converters::chat::{Options, Template, message};
use mmx_converters::tokenizer::SpecialSet;
use serde_json::{Map, Value, json};

const SETS: [(&str, SpecialSet); 2] =
    [("minimind2", SpecialSet::MiniMind2), ("minimind3", SpecialSet::MiniMind3)];

fn template(set: SpecialSet) -> Template {
    Template::new(set.template(), Map::new())
}

/// Made by scripts/golden/conversations.py.
fn conversations() -> Vec<Value> {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/templates/conversations.json");
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn conversations_are_rendered_as_jinja2_renders_them() {
    let conversations = conversations();
    assert!(conversations.len() >= 40, "{}", conversations.len());
    for (name, set) in SETS {
        let template = template(set);
        for one in &conversations {
            let mut variables = Map::new();
            if let Some(open) = one.get("open_thinking") {
                variables.insert("open_thinking".into(), open.clone());
            }
            let options = Options {
                tools: one.get("tools").cloned(),
                add_generation_prompt: one["add_generation_prompt"].as_bool().unwrap(),
                variables,
            };
            let messages = one["messages"].as_array().unwrap();
            let found = template.render(messages, &options).unwrap();
            assert_eq!(found, one[name].as_str().unwrap(), "{name}: {}", one["name"]);
        }
    }
}

#[test]
fn parts_of_a_content_are_joined_and_a_text_stays_as_it_is() {
    let part = |text: &str| json!({"type": "text", "text": text});
    for (name, set) in SETS {
        let template = template(set);
        for role in ["system", "user", "assistant", "tool"] {
            let whole = [message("user", "?"), message(role, "one, 二"), message("user", "!")];
            let mut parts = whole.clone();
            parts[1]["content"] = json!([part("one, "), part(""), part("二")]);
            let options = Options::generation();
            let expected = template.render(&whole, &options).unwrap();
            assert_eq!(template.render(&parts, &options).unwrap(), expected, "{name} {role}");
            let mut first = parts.to_vec();
            first.remove(0);
            let expected = template.render(&whole[1..], &options).unwrap();
            assert_eq!(template.render(&first, &options).unwrap(), expected, "{name} {role}");
        }
    }
}

#[test]
fn a_part_that_is_no_text_is_refused_and_not_dropped() {
    for (name, set) in SETS {
        for part in [
            json!({"type": "image_url", "image_url": {"url": "x"}}),
            json!({"text": "x"}),
            json!("x"),
        ] {
            let text = json!({"type": "text", "text": "what is this?"});
            let messages = [json!({"role": "user", "content": [text, part]})];
            let error = template(set).render(&messages, &Options::generation()).unwrap_err();
            assert!(error.to_string().contains("expected parts of type text"), "{name}: {error}");
        }
    }
}
