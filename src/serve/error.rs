//! The error that a client gets when its request cannot be served.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An HTTP error with OpenAI's body.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// A sentence that says what is wrong.
    pub(crate) message: String,
    /// The field of the request that is at fault.
    pub(crate) param: Option<String>,
    /// OpenAI's code of the error.
    pub(crate) code: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// Makes a 400: the request makes no sense.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// Makes a 429: `more` texts do not fit into a queue of `queue`, of which `waiting` wait.
    pub(crate) fn busy(more: usize, waiting: usize, queue: usize) -> Self {
        let text = format!(
            "{waiting} texts are waiting already, and {more} more do not fit: the queue holds {queue}"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, text).coded("queue_full")
    }

    /// Makes a 503: there is no engine, or it is being stopped.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(crate) fn coded(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// OpenAI's name of the kind of error.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The error's JSON body in OpenAI's form, also for one in the middle of a stream.
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        }})
    }

    /// Makes the response in the form of the API to which `path` belongs.
    pub(crate) fn at(self, path: &str) -> Response {
        match path {
            "/v1/messages" | "/v1/messages/count_tokens" => self.anthropic(),
            path if is_ollamas(path) => self.ollama(),
            _ => self.into_response(),
        }
    }

    /// Makes the response in Ollama's form.
    pub(crate) fn ollama(self) -> Response {
        self.with(json!({"error": self.message}))
    }

    /// Makes the response in Anthropic's form, with its status 529 where the server is stopping.
    pub(crate) fn anthropic(mut self) -> Response {
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // 529, their "overloaded": clients come again
            self.status = StatusCode::from_u16(529).unwrap_or(self.status);
        }
        self.with(self.anthropic_body())
    }

    /// The error's JSON body in Anthropic's form, also for one in the middle of a stream.
    pub(crate) fn anthropic_body(&self) -> serde_json::Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 | 529 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    fn with(&self, body: serde_json::Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// True for the paths of Ollama's API, whose errors have Ollama's form.
fn is_ollamas(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.with(self.body())
    }
}

impl From<mmx_ggml::Error> for ApiError {
    /// Takes a refusal of the runner as a fault of the request (400), everything else as one of the
    /// server (500).
    fn from(error: mmx_ggml::Error) -> Self {
        let status = match error {
            mmx_ggml::Error::Request { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<mmx_converters::Error> for ApiError {
    fn from(error: mmx_converters::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}
