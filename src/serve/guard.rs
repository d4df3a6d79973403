//! What every request passes first: is it let in, is it small enough, does it come in time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::ApiError;

/// Time a client has to send its request's body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Paths that need no key: they tell nothing and cost nothing.
const OPEN: [&str; 3] = ["/", "/health", "/favicon.ico"];

/// Lets requests in, reads their bodies, counts their answers.
pub(crate) async fn pass(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_owned());
    let uri = request.uri().clone();
    // files are not taken, and need not be held to be refused
    let unread = uri.path().starts_with("/api/blobs/");
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.as_ref().filter(|o| app.options.allows_origin(o)).cloned();
    let preflight = request.method() == Method::OPTIONS && allowed.is_some();
    let mut response = match check(&app, &request) {
        Err(error) => error.at(uri.path()),
        Ok(()) if preflight => StatusCode::NO_CONTENT.into_response(),
        Ok(()) if unread => next.run(request).await,
        Ok(()) => match whole(&app, request).await {
            Err(error) => error.at(uri.path()),
            Ok(request) => next.run(request).await,
        },
    };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value: &'static str| {
            headers.insert(name, HeaderValue::from_static(value));
        };
        set(header::VARY, "origin");
        set(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS");
        set(header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type");
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    app.requests.count(path.as_deref().unwrap_or("other"), response.status().as_u16());
    response
}

fn check(app: &App, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let forbidden = |text: String| Err(ApiError::new(StatusCode::FORBIDDEN, text));
    // a page of another site may send requests to this machine, though it cannot read the answers
    if let Some(origin) = headers.get(header::ORIGIN)
        && !app.options.allows_origin(origin)
        && !is_own(origin, headers)
    {
        let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
        return forbidden(format!("pages of {origin} may not use this server: see --cors"));
    }
    // and a name that points to this machine would make such a page one of our own
    if app.loopback && !host_is_local(headers) {
        return forbidden("the Host header names another machine".to_owned());
    }
    let preflight = request.method() == Method::OPTIONS;
    if OPEN.contains(&request.uri().path()) || preflight || app.options.api_key.is_none() {
        return Ok(());
    }
    let key = app.options.api_key.as_deref().unwrap_or_default();
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    match given {
        Some(given) if equal(given.as_bytes(), key.as_bytes()) => Ok(()),
        found => {
            let what = if found.is_some() { "another one" } else { "none" };
            let text = format!("expected the API key as a bearer token, found {what}");
            Err(ApiError::new(StatusCode::UNAUTHORIZED, text).coded("invalid_api_key"))
        }
    }
}

/// Compares all bytes, so that the time tells nothing about where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// True for a page that this server gave out.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let authority = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, rest)| rest);
    authority.is_some() && authority == headers.get(header::HOST).and_then(|h| h.to_str().ok())
}

/// True for `localhost` and addresses: names of other machines could be made to point here.
fn host_is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Some(uri) = host.to_str().ok().and_then(|host| host.parse::<Uri>().ok()) else {
        return false;
    };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

/// The request with its whole body read.
async fn whole(app: &App, request: Request) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let limit = app.options.max_body;
    let too_large = || {
        let text = format!("the request's body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text).coded("body_too_large")
    };
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    if announced.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
        Ok(Err(error)) => {
            let text = error.to_string();
            Err(if text.contains("length limit") {
                too_large()
            } else {
                ApiError::new(StatusCode::BAD_REQUEST, format!("the request's body: {text}"))
            })
        }
        Err(_) => {
            let text = format!("the body did not come within {} seconds", BODY_TIME.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))])
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:8080", "a.localhost"] {
            assert!(host_is_local(&headers(host)), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example"] {
            assert!(!host_is_local(&headers(host)), "{host}");
        }
    }

    #[test]
    fn only_the_servers_own_pages_are_its_own() {
        let own = |origin: &'static str| {
            is_own(&HeaderValue::from_static(origin), &headers("localhost:1"))
        };
        assert!(own("http://localhost:1"));
        assert!(!own("http://localhost:2"));
        assert!(!own("http://evil.example"));
        assert!(!own("null"));
    }

    #[test]
    fn keys_are_equal_or_not() {
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"abc", b"ab"));
    }
}
