//! What every request passes first: it is worked on within its [`Facts`], and where a log is kept,
//! its line is written when the answer has ended. Of what is asked and answered nothing is told.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use chrono::Utc;
use http_body::{Frame, SizeHint};

use crate::app::App;
use crate::request_log::{Facts, RequestLine, RequestLog};

/// Begins the facts of a request, and logs it where a log is kept.
pub(crate) async fn log(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (time, started) = (Utc::now(), Instant::now());
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let facts = Facts::default();
    let response = facts.clone().scope(next.run(request)).await;
    let Some(log) = app.options.request_log.clone() else { return response };
    let line = RequestLine {
        time,
        method,
        path,
        status: response.status().as_u16(),
        began: started.elapsed().as_secs_f64(),
        ended: 0.0,
        bytes: 0,
        whole: false,
        model: None,
        tokens: None,
    };
    let (head, inner) = response.into_parts();
    let length = inner.size_hint().exact();
    Response::from_parts(head, Body::new(Logged { inner, line, length, started, facts, log }))
}

/// A body that is counted; when it ends, or the client leaves, the line is written.
struct Logged {
    inner: Body,
    line: RequestLine,
    length: Option<u64>,
    started: Instant,
    facts: Facts,
    log: RequestLog,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = Pin::new(&mut self.inner).poll_frame(context);
        match &next {
            Poll::Ready(Some(Ok(frame))) => {
                self.line.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            Poll::Ready(None) => self.line.whole = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // bodies of a known length are not asked for an end
        let all = self.length.is_some_and(|length| length == self.line.bytes);
        self.line.whole |= all || self.inner.is_end_stream();
        self.line.ended = self.started.elapsed().as_secs_f64();
        (self.line.model, self.line.tokens) = self.facts.all();
        self.log.write(&self.line);
    }
}
