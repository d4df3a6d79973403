//! Events of an engine to the bytes of a response that grows, and what all protocols say alike.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use mmx_ggml::run::Finish;
use serde_json::{Value, json};
use tokio::sync::mpsc::channel;
use tokio_stream::wrappers::ReceiverStream;

use super::engine::{Event, Events, Summary};
use super::error::ApiError;

/// The type of server-sent events.
pub(crate) const EVENT_STREAM: &str = "text/event-stream";

/// Pieces that wait for a slow client before the engine's events wait, and then its text.
const PIECES: usize = 16;

/// Silence after which a stream of server-sent events gets a comment: proxies close connections on which nothing comes, most
/// of them after 60 seconds.
const SILENCE: Duration = Duration::from_secs(5);

/// A protocol's words for the events of one request.
pub(crate) trait Translate: Send + 'static {
    /// Adds what an event of text `index` becomes to `out`.
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<u8>);

    /// True when all texts have ended.
    fn is_done(&self) -> bool;
}

/// A response that grows with the events. When the client leaves, the receiver is dropped, by which the
/// engine notices. While a text waits for its turn, or its prompt is being read, comments are sent where the form has any.
pub(crate) fn respond(
    content_type: &'static str,
    events: Events,
    translate: impl Translate,
) -> Response {
    respond_after(content_type, SILENCE, events, translate)
}

fn respond_after(
    content_type: &'static str,
    silence: Duration,
    mut events: Events,
    mut translate: impl Translate,
) -> Response {
    let comments = content_type == EVENT_STREAM;
    let (sender, receiver) = channel::<Result<Bytes, Infallible>>(PIECES);
    tokio::spawn(async move {
        while !translate.is_done() {
            let next = tokio::select! {
                next = events.recv() => next,
                () = sender.closed() => return,
                () = tokio::time::sleep(silence), if comments => {
                    if sender.send(Ok(Bytes::from_static(b": waiting\n\n"))).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let mut out = Vec::new();
            match next {
                Some((index, event)) => translate.event(index, event, &mut out),
                None => {
                    let gone = ApiError::unavailable("the engine has ended");
                    translate.event(0, Event::Failed(gone), &mut out);
                }
            }
            while let Ok((index, event)) = events.try_recv() {
                translate.event(index, event, &mut out);
            }
            if !out.is_empty() && sender.send(Ok(out.into())).await.is_err() {
                return;
            }
        }
    });
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        // nginx, and what is built on it, would hold the pieces back
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

/// Waits for the end of `texts` texts; `take` gets what comes.
///
/// # Errors
/// The first text that could not be computed.
pub(crate) async fn collect(
    mut events: Events,
    texts: usize,
    mut take: impl FnMut(usize, Event),
) -> Result<(), ApiError> {
    let mut left = texts;
    while left > 0 {
        match events.recv().await {
            None => return Err(ApiError::unavailable("the engine has ended")),
            Some((_, Event::Failed(error))) => return Err(error),
            Some((index, event)) => {
                left -= usize::from(matches!(event, Event::Done(_) | Event::Embedding(..)));
                take(index, event);
            }
        }
    }
    Ok(())
}

/// Adds a server-sent event.
pub(crate) fn sse(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(value.to_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// Adds the end of server-sent events.
pub(crate) fn sse_done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// OpenAI's word for the end of a text.
pub(crate) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Context | Finish::Cancelled => "length",
    }
}

/// What the texts of one request took together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    prompt: usize,
    cached: usize,
    completion: usize,
    summary: Option<Summary>,
}

impl Usage {
    /// Adds a text; texts after the same prompt count it once, with the first of them, whichever ends first.
    pub(crate) fn add(&mut self, summary: &Summary, same_prompt: bool) {
        if !same_prompt {
            self.prompt += summary.prompt_tokens;
            self.cached += summary.cached_tokens;
        }
        self.completion += summary.completion_tokens;
        self.summary = Some(*summary);
    }

    /// OpenAI's `usage`.
    pub(crate) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }

    /// llama.cpp's `timings`, of the last text.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;

    struct Words(bool);

    impl Translate for Words {
        fn event(&mut self, _index: usize, event: Event, out: &mut Vec<u8>) {
            match event {
                Event::Text(text, _) => sse(out, &text.into()),
                _ => self.0 = true,
            }
        }

        fn is_done(&self) -> bool {
            self.0
        }
    }

    /// The whole body where the only text comes after `wait`.
    fn body_after(content_type: &'static str, wait: Duration) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, events) = engine::events(1);
            let silence = Duration::from_millis(20);
            let response = respond_after(content_type, silence, events, Words(false));
            assert_eq!(response.headers()["x-accel-buffering"], "no");
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                engine::send(&sender, 0, Event::Text("x".to_owned(), Vec::new()));
                engine::send(&sender, 0, Event::Prompt(Vec::new()));
            });
            let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            String::from_utf8(bytes.to_vec()).unwrap()
        })
    }

    #[test]
    fn a_stream_that_waits_sends_comments() {
        let said = body_after(EVENT_STREAM, Duration::from_millis(200));
        let comments = said.strip_suffix("data: \"x\"\n\n").unwrap();
        assert!(comments.starts_with(": waiting\n\n: waiting\n\n"), "{said}");
        assert_eq!(comments.replace(": waiting\n\n", ""), "");
        // lines of JSON have no comments
        let lines = body_after("application/x-ndjson", Duration::from_millis(100));
        assert_eq!(lines, "data: \"x\"\n\n");
    }
}
