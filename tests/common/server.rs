//! A running `mmx serve` and the least of an HTTP client: tests want to see the bytes and to leave early.

#![allow(unreachable_pub, reason = "a part of each test that asks a server")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A server on a port of its own, ended with the test.
pub struct Server {
    pub child: Child,
    pub address: String,
}

/// An answer: status, headers as text, body as the chunks it came in.
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub chunks: Vec<Vec<u8>>,
}

impl Server {
    /// Starts `mmx serve ARGS --port 0` and waits until it answers.
    pub fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mmx"))
            .arg("serve")
            .args(args)
            .args(["--port", "0"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("mmx starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("no server: {said}")).expect("a line");
            if let Some((_, address)) = line.rsplit_once(" at http://") {
                break address.to_owned();
            }
            said += &line;
        };
        // what it says later must not fill the pipe
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// Sends a request, with one more header where given, and leaves the answer unread.
    pub fn send(&self, method: &str, path: &str, header: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\n{header}\r\n",
            self.address,
            body.len()
        );
        // a server that refuses early may close while the body is being sent
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        stream
    }

    pub fn request(&self, method: &str, path: &str, header: &str, body: &[u8]) -> Answer {
        let mut stream = self.send(method, path, header, body);
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes);
        assert!(end.is_ok() || !bytes.is_empty(), "{method} {path}: {end:?}");
        Answer::parse(&bytes)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "", body.to_string().as_bytes())
    }

    /// The object of an answer that must be good.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        answer.json()
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|l| l.starts_with(&format!("mmx_{name}"))).map(str::to_owned);
        let line = line.unwrap_or_else(|| panic!("no metric {name} in {text}"));
        line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("the end of the headers");
        let headers = String::from_utf8(bytes[..end].to_vec()).expect("headers are text");
        let status = headers.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let mut rest = &bytes[end + 4..];
        let mut chunks = Vec::new();
        if headers.to_lowercase().contains("transfer-encoding: chunked") {
            loop {
                let line = rest.windows(2).position(|w| w == b"\r\n").expect("a chunk's size");
                let size = std::str::from_utf8(&rest[..line]).expect("a number");
                let size = usize::from_str_radix(size.trim(), 16).expect("a number");
                if size == 0 {
                    break;
                }
                chunks.push(rest[line + 2..line + 2 + size].to_vec());
                rest = &rest[line + 4 + size..];
            }
        } else {
            chunks.push(rest.to_vec());
        }
        Self { status, headers, chunks }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.chunks.concat()).expect("the body is UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text()).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The error's message.
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().expect("a message").to_owned()
    }

    /// The objects of server-sent events, which must end with `[DONE]`; every chunk is UTF-8.
    pub fn events(&self) -> Vec<Value> {
        assert!(self.headers.to_lowercase().contains("content-type: text/event-stream"));
        for chunk in &self.chunks {
            assert!(std::str::from_utf8(chunk).is_ok(), "a chunk that is not UTF-8: {chunk:?}");
        }
        let text = self.text();
        let text =
            text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("no end: {text}"));
        let event = |event: &str| {
            assert!(!event.contains('\n'), "one line an event: {event}");
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("no data: {event}"));
            serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"))
        };
        // comments come while a text waits
        text.split_terminator("\n\n").filter(|e| !e.starts_with(':')).map(event).collect()
    }
}

/// The text of a chat's chunks.
pub fn streamed_text(events: &[Value]) -> String {
    let parts = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    parts.collect()
}
