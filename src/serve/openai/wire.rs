//! Parts of OpenAI's answers that chats and completions have in common.

use serde_json::{Value, json};

use crate::engine::Summary;
use crate::error::ApiError;
use crate::fields::Fields;

/// Reads from the field `stream_options` whether a stream ends with the counts of tokens.
pub(crate) fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    let mut options = Fields::of(options);
    let usage = options.flag("include_usage");
    options.any("include_obfuscation"); // bytes against listeners, no part of the text
    let within = |mut error: ApiError| {
        let name = format!("stream_options.{}", error.param.unwrap_or_default());
        error.message = format!("stream_options.{}", error.message);
        error.param = Some(name);
        error
    };
    let usage = usage.map_err(within)?;
    options.finish(&[("continuous_usage_stats", &["false"])]).map_err(within)?;
    Ok(usage.unwrap_or(false))
}

/// Adds the end of server-sent events.
pub(crate) fn sse_done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// The counts of tokens of all texts of one request, and the times of the last one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
    summary: Option<Summary>,
}

impl Usage {
    /// Adds a text; texts after the same prompt count it once, with the first of them, whichever
    /// ends first.
    pub(crate) fn add(&mut self, summary: &Summary, same_prompt: bool) {
        if !same_prompt {
            self.prompt += summary.prompt_tokens;
            self.cached += summary.cached_tokens;
        }
        self.completion += summary.completion_tokens;
        self.summary = Some(*summary);
    }

    /// The counts in OpenAI's form, `usage`.
    pub(crate) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }

    /// The times of the last text in llama.cpp's form, `timings`.
    pub(crate) fn timings(self) -> Value {
        let Some(summary) = self.summary else { return Value::Null };
        let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let read = summary.prompt_tokens - summary.cached_tokens.min(summary.prompt_tokens);
        let (prefill, decode) = (summary.prefill.as_secs_f64(), summary.decode.as_secs_f64());
        json!({
            "queued_ms": summary.queued.as_secs_f64() * 1e3,
            "prompt_n": read,
            "prompt_ms": prefill * 1e3,
            "prompt_per_second": rate(read, prefill),
            "predicted_n": summary.completion_tokens,
            "predicted_ms": decode * 1e3,
            // the first one came with the prompt
            "predicted_per_second": rate(summary.completion_tokens.saturating_sub(1), decode),
        })
    }
}
