//! The gate that every request passes first: is it let in, is it small enough, does it come in
//! time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::error::ApiError;
use crate::request_log::Facts;

/// Longest time that a client may take to send its request's body.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Paths that need no key: they tell nothing and cost nothing.
const OPEN: [&str; 3] = ["/", "/health", "/favicon.ico"];

/// Names under which containers reach the machine that they run on: nobody else can have them.
/// Source: the manuals of Docker and Podman.
const CONTAINERS: [&str; 3] =
    ["host.docker.internal", "gateway.docker.internal", "host.containers.internal"];

/// Headers that pages may send, besides those that they ask for. Source: the browser clients of
/// OpenAI, Anthropic and Ollama.
const HEADERS: &str = "accept, anthropic-beta, anthropic-dangerous-direct-browser-access, anthropic-version, api-key, authorization, content-type, idempotency-key, openai-beta, openai-organization, \
                       openai-project, user-agent, x-api-key, x-request-id, x-requested-with, x-stainless-arch, \
                       x-stainless-async, x-stainless-custom-poll-interval, x-stainless-helper-method, \
                       x-stainless-lang, x-stainless-os, x-stainless-package-version, x-stainless-poll-helper, \
                       x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, \
                       x-stainless-timeout";

/// Lets requests in, reads their bodies, counts their answers.
pub(crate) async fn pass(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_owned());
    let uri = request.uri().clone();
    // files are not taken, and need not be held to be refused
    let unread = uri.path().starts_with("/api/blobs/");
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.as_ref().filter(|o| app.options.allows_origin(o)).cloned();
    let preflight = request.method() == Method::OPTIONS && allowed.is_some();
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
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
        set(header::VARY, "origin, access-control-request-headers");
        set(header::ACCESS_CONTROL_EXPOSE_HEADERS, "retry-after");
        if preflight {
            set(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, DELETE, OPTIONS");
            set(header::ACCESS_CONTROL_MAX_AGE, "600");
            // a page of the internet that asks this machine
            set(HeaderName::from_static("access-control-allow-private-network"), "true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(asked.as_ref()));
        }
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
        let option = app.options.settings.cors;
        return forbidden(format!("pages of {origin} may not use this server: see {option}"));
    }
    // and a name that points to this machine would make such a page one of our own
    if app.loopback && !host_is_allowed(headers, &app.options.allowed_hosts) {
        let host = headers.get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
        let host = String::from_utf8_lossy(host).into_owned();
        let name = host_name(&host).filter(|name| !name.is_empty()).unwrap_or("NAME".to_owned());
        let option = app.options.settings.allowed_host;
        return forbidden(format!(
            "the Host header names {host:?}, which is no name of this machine; start the server with \
             {option} {name} to let it in"
        ));
    }
    let preflight = request.method() == Method::OPTIONS;
    if OPEN.contains(&request.uri().path()) || preflight || app.options.keys.is_empty() {
        return Ok(());
    }
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    // Anthropic's clients have a header of their own
    let own = || headers.get("x-api-key").and_then(|value| value.to_str().ok()).map(str::trim);
    let given = bearer.or_else(own);
    // all keys are compared, so that the time tells nothing about which one it was
    let same = |given: &str| {
        app.options.keys.iter().enumerate().fold(None, |found, (index, key)| {
            if equal(given.as_bytes(), key.key.as_bytes()) { Some(index) } else { found }
        })
    };
    match given.and_then(same) {
        Some(index) => {
            if let Some(facts) = Facts::current() {
                facts.bears(index);
            }
            Ok(())
        }
        None => {
            let what = if given.is_some() { "another one" } else { "none" };
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

/// The headers that a page of an allowed origin may send: it could send the request from elsewhere
/// with any.
fn allowed_headers(asked: Option<&HeaderValue>) -> HeaderValue {
    let known: Vec<&str> = HEADERS.split(", ").collect();
    let asked = asked.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let more = asked.split(',').map(|name| name.trim().to_ascii_lowercase());
    let more = more.filter(|name| !name.is_empty() && !known.contains(&name.as_str()));
    let all: Vec<String> = std::iter::once(HEADERS.to_owned()).chain(more).collect();
    HeaderValue::try_from(all.join(", ")).unwrap_or(HeaderValue::from_static(HEADERS))
}

/// The name or address in a `Host` header, without the port, in small letters; nothing where it is
/// none.
pub fn host_name(host: &str) -> Option<String> {
    let uri = host.parse::<Uri>().ok().filter(|uri| uri.path().len() < 2 && uri.scheme().is_none());
    let uri = uri?;
    let name = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

/// True for `localhost`, addresses, and the names that containers have for this machine, besides
/// `allowed` names (`*` for all): other names could be made to point here.
fn host_is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    if allowed.iter().any(|name| name == "*") {
        return true;
    }
    let Some(host) = host.to_str().ok().and_then(host_name) else { return false };
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok()
        || CONTAINERS.contains(&host.as_str())
        || allowed.contains(&host)
}

/// Reads the request's whole body.
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
        let local = |host: &'static str| host_is_allowed(&headers(host), &[]);
        for host in ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:8080", "a.localhost"] {
            assert!(local(host), "{host}");
        }
        for host in
            ["LocalHost", "localhost.:80", "host.docker.internal:1", "host.containers.internal"]
        {
            assert!(local(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example"] {
            assert!(!local(host), "{host}");
        }
        for host in
            ["host.docker.internal.evil.example", "docker.internal", "http://localhost/", "a/b", ""]
        {
            assert!(!local(host), "{host}");
        }
        let allowed = ["box.lan".to_owned()];
        assert!(host_is_allowed(&headers("Box.lan:8080"), &allowed));
        assert!(!host_is_allowed(&headers("a.box.lan"), &allowed));
        assert!(host_is_allowed(&headers("evil.example"), &["*".to_owned()]));
    }

    #[test]
    fn pages_may_send_the_headers_they_ask_for_and_those_of_the_known_clients() {
        let of = |asked| allowed_headers(Some(&HeaderValue::from_static(asked)));
        assert_eq!(allowed_headers(None), HEADERS);
        assert_eq!(of("Authorization,x-stainless-os"), HEADERS);
        assert_eq!(of("X-Mine, content-type"), format!("{HEADERS}, x-mine").as_str());
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
