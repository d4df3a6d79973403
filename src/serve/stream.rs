//! Events of an engine to the bytes of a response, whole or streamed, and the parts of answers that
//! all protocols share.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::channel;
use tokio_stream::wrappers::ReceiverStream;

use crate::engine::{Event, Events, TokenLogprob};
use crate::error::ApiError;
use crate::served_model::ServedModel;

/// The content type of server-sent events.
pub(crate) const EVENT_STREAM: &str = "text/event-stream";

/// Most pieces that wait for a slow client. With more, the engine's events wait, and then its text.
const PIECES: usize = 16;

/// Silence after which a stream of server-sent events gets a comment: proxies close connections on
/// which nothing comes, most of them after 60 seconds.
const SILENCE: Duration = Duration::from_secs(5);

/// A translation of the events of one request into a protocol's words.
pub(crate) trait Translate: Send + 'static {
    /// Adds what comes before any event.
    fn open(&mut self, _out: &mut Vec<u8>) {}

    /// Adds what an event of text `index` becomes to `out`.
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<u8>);

    /// True when all texts have ended.
    fn is_done(&self) -> bool;
}

/// Makes a response that grows with the events. When the client leaves, the receiver is dropped, by
/// which the engine notices. While a text waits for its turn, or its prompt is being read, comments
/// are sent where the form has any.
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
        let mut out = Vec::new();
        translate.open(&mut out);
        if !out.is_empty() && sender.send(Ok(out.into())).await.is_err() {
            return;
        }
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

/// Waits for the end of `texts` texts; `take` gets each event.
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

/// Adds a server-sent event with a name.
pub(crate) fn sse_named(out: &mut Vec<u8>, name: &str, value: &Value) {
    out.extend_from_slice(format!("event: {name}\n").as_bytes());
    sse(out, value);
}

/// A token as JSON, with its text and its bytes: a token may end inside a character.
fn token_json(served: &ServedModel, id: u32, logprob: f32) -> Value {
    let Ok(tokenizer) = served.tokenizer() else { return Value::Null };
    json!({
        "token": tokenizer.decode(&[id], false),
        "logprob": logprob,
        "bytes": tokenizer.token_bytes(id),
    })
}

/// A token as JSON with its probability and those of others.
pub(crate) fn logprob_json(served: &ServedModel, token: &TokenLogprob) -> Value {
    let mut value = token_json(served, token.id, token.logprob);
    value["top_logprobs"] =
        token.top.iter().map(|&(id, logprob)| token_json(served, id, logprob)).collect();
    value
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
                sender.try_send((0, Event::Text("x".to_owned(), Vec::new()))).unwrap();
                sender.try_send((0, Event::Prompt(Vec::new()))).unwrap();
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
