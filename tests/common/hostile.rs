//! A server in threads of the test that answers chats by a function of what it is asked, and does everything wrong at
//! times.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What happens to the requests of one body, in order; the last goes on.
#[derive(Clone, Copy)]
pub(crate) enum Turn {
    Busy,
    Broken,
    Half,
    Slow,
    NoChoice,
    Hangs,
    Good,
}

/// Everything that can go wrong, and then an answer.
pub(crate) const TROUBLE: &[Turn] =
    &[Turn::Busy, Turn::Broken, Turn::Half, Turn::Slow, Turn::NoChoice, Turn::Hangs, Turn::Good];

/// A server; how often each body was asked.
pub(crate) struct Server {
    address: String,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Server {
    /// Starts one that says `said` of a request's body, `delay` after it came.
    pub(crate) fn start(
        turns: &'static [Turn],
        delay: Duration,
        said: impl Fn(&Value) -> String + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = asked.clone();
        let said = Arc::new(said);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, said) = (shared.clone(), said.clone());
                std::thread::spawn(move || {
                    // a client that left is no fault of the server's
                    let _ = answer(stream, turns, delay, &asked, &*said);
                });
            }
        });
        Self { address, asked }
    }

    /// A model of it as mmx names it.
    pub(crate) fn model(&self, name: &str) -> String {
        format!("openai:{}#{name}", self.address)
    }

    /// Its host and port.
    pub(crate) fn host(&self) -> &str {
        self.address.trim_start_matches("http://")
    }

    /// How often each body was asked.
    pub(crate) fn counts(&self) -> BTreeMap<String, usize> {
        self.asked.lock().expect("counts").clone()
    }

    /// Requests in all.
    pub(crate) fn requests(&self) -> usize {
        self.counts().values().sum()
    }
}

fn answer(
    mut stream: TcpStream,
    turns: &[Turn],
    delay: Duration,
    asked: &Mutex<BTreeMap<String, usize>>,
    said: &dyn Fn(&Value) -> String,
) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let time = {
        let mut asked = asked.lock().expect("counts");
        let times = asked.entry(body.to_string()).or_default();
        *times += 1;
        *times - 1
    };
    let good = json!({
        "choices": [{ "message": { "role": "assistant", "content": said(&body) }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10 },
    })
    .to_string();
    let turn = turns[time.min(turns.len() - 1)];
    let (status, mut text) = match turn {
        Turn::Busy => (
            "429 Too Many Requests\r\nRetry-After: 0",
            json!({"error": {"message": "busy"}}).to_string(),
        ),
        Turn::Broken => ("500 Broken", "oops".to_owned()),
        Turn::Half => ("200 OK", good[..good.len() / 2].to_owned()),
        Turn::NoChoice => ("200 OK", json!({"choices": []}).to_string()),
        Turn::Slow | Turn::Hangs | Turn::Good => ("200 OK", good),
    };
    std::thread::sleep(delay);
    let mut announced = text.len();
    match turn {
        Turn::Slow => std::thread::sleep(Duration::from_millis(1500)),
        Turn::Hangs => {
            // more is announced than comes
            announced += 100;
            text.truncate(10);
        }
        _ => {}
    }
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())
}

/// The content of a request's last message.
pub(crate) fn question(body: &Value) -> String {
    let turns = body["messages"].as_array().expect("turns");
    turns.last().expect("a turn")["content"].as_str().expect("a text").to_owned()
}
