//! HTTP requests to a hub or Ollama: JSON and files, and an error in a sentence for every refusal.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::http::Response;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use mmx_converters::{Error, Result};

/// Longest answer that is kept in memory: listings of large repositories have some megabytes.
const LONGEST_ANSWER: u64 = 64 << 20;

/// A connection to one server.
pub(super) struct Client {
    agent: Agent,
    /// Without a slash at the end.
    base: String,
    token: Option<String>,
}

/// A header's name and value.
pub(super) type Header<'a> = (&'a str, &'a str);

impl std::fmt::Debug for Client {
    /// The token is not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(base: &str, token: Option<String>) -> Self {
        // loading or hashing a large file takes its time before the first byte of an answer
        Self::waiting(base, token, Duration::from_secs(600), None)
    }

    /// One whose answers may take `timeout`, each from the request to its last byte.
    pub(super) fn patient(base: &str, token: Option<String>, timeout: Duration) -> Self {
        Self::waiting(base, token, timeout, Some(timeout))
    }

    fn waiting(
        base: &str,
        token: Option<String>,
        first_byte: Duration,
        whole: Option<Duration>,
    ) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .tls_config(TlsConfig::builder().root_certs(authorities()).build())
            .user_agent(concat!("mmx/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(first_byte))
            .timeout_global(whole)
            .build()
            .into();
        Self { agent, base: base.trim_end_matches('/').to_owned(), token }
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The address of a path, and the token for it. Absolute addresses stay as they are, and those
    /// of other servers get no token: they are signed themselves.
    fn address(&self, path: &str) -> (String, Option<&str>) {
        match path.starts_with("http://") || path.starts_with("https://") {
            true => {
                let own = path.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'));
                (path.to_owned(), self.token.as_deref().filter(|_| own))
            }
            false => (format!("{}{path}", self.base), self.token.as_deref()),
        }
    }

    /// Sends a GET or HEAD.
    pub(super) fn get(
        &self,
        method: &str,
        path: &str,
        headers: &[Header<'_>],
    ) -> Result<Response<Body>> {
        self.ask(method, path, headers, None)
    }

    /// Sends a GET whose answer is not waited for long: there is something else to go on with.
    pub(super) fn get_soon(&self, path: &str, headers: &[Header<'_>]) -> Result<Response<Body>> {
        self.ask("GET", path, headers, Some((Duration::from_secs(3), Duration::from_secs(10))))
    }

    /// Sends a GET or HEAD; `most` is the time for a connection and that for an answer.
    fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[Header<'_>],
        most: Option<(Duration, Duration)>,
    ) -> Result<Response<Body>> {
        let (url, token) = self.address(path);
        let mut request = match method {
            "HEAD" => self.agent.head(&url),
            _ => self.agent.get(&url),
        };
        if let Some((connect, answer)) = most {
            let config = request.config();
            let config = config.timeout_resolve(Some(connect)).timeout_connect(Some(connect));
            request = config.timeout_recv_response(Some(answer)).build();
        }
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        recorded(method, &url, request.call()).map_err(|e| unreachable_server(&url, &e))
    }

    /// Sends a POST or PUT; `length` says how many bytes the reader will give.
    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[Header<'_>],
        body: &mut dyn Read,
        length: u64,
    ) -> Result<Response<Body>> {
        let (url, token) = self.address(path);
        let mut request = match method {
            "PUT" => self.agent.put(&url),
            _ => self.agent.post(&url),
        };
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("Content-Length", length.to_string());
        let answer = request.send(SendBody::from_reader(body));
        recorded(method, &url, answer).map_err(|e| unreachable_server(&url, &e))
    }

    /// Sends a POST of JSON.
    pub(super) fn post_json(
        &self,
        path: &str,
        headers: &[Header<'_>],
        value: &Value,
    ) -> Result<Response<Body>> {
        let text = value.to_string();
        let json = [("Content-Type", "application/json")];
        let own = headers.iter().any(|(name, _)| *name == "Content-Type");
        let all = [if own { &[][..] } else { &json[..] }, headers].concat();
        self.send("POST", path, &all, &mut text.as_bytes(), text.len() as u64)
    }
}

/// An answer, which is recorded; of the address nothing that is signed.
fn recorded(
    method: &str,
    url: &str,
    answer: std::result::Result<Response<Body>, ureq::Error>,
) -> std::result::Result<Response<Body>, ureq::Error> {
    let url = without_query(url);
    match &answer {
        Ok(answer) => log::debug!("{method} {url}: HTTP {}", answer.status().as_u16()),
        Err(error) => log::debug!("{method} {url}: {error}"),
    }
    answer
}

/// The certificate authorities: the system's, to which a company adds its own; Mozilla's list where
/// the system has none, as in a bare container. Proxies are ureq's own reading of `HTTPS_PROXY`,
/// `ALL_PROXY` and `NO_PROXY`.
fn authorities() -> RootCerts {
    #[cfg(all(unix, not(target_vendor = "apple"), not(target_os = "android")))]
    {
        let found = openssl_probe::probe(); // SSL_CERT_FILE and SSL_CERT_DIR besides
        if found.cert_file.is_none() && found.cert_dir.is_empty() {
            return RootCerts::WebPki;
        }
    }
    RootCerts::PlatformVerifier
}

fn unreachable_server(url: &str, error: &ureq::Error) -> Error {
    let hint = match error {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
        ureq::Error::Io(io) => io.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    };
    let message = format!("{}: {error}", without_query(url));
    match hint {
        true => Error::failed_with_hint(message, "is the server running, and its address right?"),
        false => Error::failed(message),
    }
}

/// An address as it may be shown: signatures stand after the question mark.
fn without_query(url: &str) -> &str {
    url.split_once('?').map_or(url, |(before, _)| before)
}

/// A successful answer, or the server's words as an error.
pub(super) fn expect_ok(doing: &str, mut answer: Response<Body>) -> Result<Response<Body>> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let header =
        |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let from_header = header("x-error-message");
    let body = answer.body_mut().with_config().limit(1 << 16).lossy_utf8(true).read_to_string();
    let body = body.unwrap_or_default();
    let parsed: Option<Value> = serde_json::from_str(&body).ok();
    let from_body = parsed.and_then(|v| match &v["error"] {
        Value::String(text) => Some(text.clone()),
        Value::Object(object) => object.get("message")?.as_str().map(str::to_owned),
        _ => v["message"].as_str().map(str::to_owned),
    });
    let first_line = body.lines().next().unwrap_or_default().trim().to_owned();
    let words = from_header.or(from_body).unwrap_or(first_line);
    let words = if words.is_empty() { String::new() } else { format!(": {words}") };
    let message = format!("{doing}: expected success, found HTTP {}{words}", status.as_u16());
    Err(match status.as_u16() {
        401 | 403 => Error::failed_with_hint(
            message,
            "HF_TOKEN holds the token; it must be allowed to read (or write) this repository",
        ),
        _ => Error::failed(message),
    })
}

/// The answer's JSON.
pub(super) fn json(doing: &str, answer: Response<Body>) -> Result<Value> {
    let mut answer = expect_ok(doing, answer)?;
    let text = answer
        .body_mut()
        .with_config()
        .limit(LONGEST_ANSWER)
        .read_to_string()
        .map_err(|e| Error::failed(format!("{doing}: {e}")))?;
    serde_json::from_str(&text).map_err(|e| Error::failed(format!("{doing}: expected JSON: {e}")))
}

/// What stands in an address as it is: letters, digits and `-_.~`.
const PLAIN: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PLAIN_AND_SLASH: &percent_encoding::AsciiSet = &PLAIN.remove(b'/');

/// Text as a part of an address: what is not plain, `/` too unless `slashes`, as `%XX`.
pub(super) fn escaped(text: &str, slashes: bool) -> String {
    let set = if slashes { PLAIN_AND_SLASH } else { PLAIN };
    percent_encoding::utf8_percent_encode(text, set).to_string()
}

/// A file, read while it is counted.
pub(super) struct Counted<'a> {
    file: fs_err::File,
    count: &'a mut dyn FnMut(u64),
}

impl<'a> Counted<'a> {
    pub(super) fn open(path: &Path, count: &'a mut dyn FnMut(u64)) -> Result<Self> {
        Ok(Self { file: fs_err::File::open(path).map_err(|e| Error::io(path, e))?, count })
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        (self.count)(read as u64);
        Ok(read)
    }
}

impl Counted<'_> {
    /// Goes on from a place in the file.
    pub(super) fn seek(&mut self, to: u64) -> std::io::Result<()> {
        std::io::Seek::seek(&mut self.file, std::io::SeekFrom::Start(to)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_plain_characters_only() {
        assert_eq!(escaped("a b/ü", true), "a%20b/%C3%BC");
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
    }

    #[test]
    fn a_token_goes_to_its_own_server_only() {
        let client = Client::new("http://hub:1/", Some("secret".into()));
        assert_eq!(client.address("/api").1, Some("secret"));
        assert_eq!(client.address("http://hub:1/lfs").1, Some("secret"));
        for other in ["http://hub:10/x", "http://hub.evil/x", "https://cdn/x"] {
            assert_eq!(client.address(other).1, None, "{other}");
        }
    }
}
