//! Calls in a text: `<tool_call>JSON</tool_call>`.

use serde_json::Value;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The JSON values between the tags of a text, in order; what is no JSON is left out. A value need
/// be no call: a number is none, and is counted as an invalid one.
/// Source: the reference's pattern, from each opening tag to the next closing one.
#[must_use]
pub fn calls(text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(OPEN) {
        let Some((inside, behind)) = after.split_once(CLOSE) else { break };
        found.extend(serde_json::from_str::<Value>(inside.trim()).ok());
        rest = behind;
    }
    found
}
