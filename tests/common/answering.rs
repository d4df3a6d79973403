//! A server in a thread of the test: each request is read whole, answered, and its connection closed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

/// Starts one that gives status and text for method, path and body; its address is returned.
pub(crate) fn answering(
    answer: impl Fn(&str, &str, Vec<u8>) -> (u16, String) + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut out = stream.try_clone().expect("a stream");
            let mut input = BufReader::new(stream);
            let mut line = String::new();
            input.read_line(&mut line).expect("a request");
            let mut words = line.split_whitespace();
            let method = words.next().expect("a method");
            let path = words.next().expect("a path");
            let mut length = 0;
            loop {
                let mut line = String::new();
                input.read_line(&mut line).expect("a header");
                match line.trim().split_once(':') {
                    Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                        length = value.trim().parse().expect("a length");
                    }
                    Some(_) => (),
                    None => break,
                }
            }
            let mut body = vec![0; length];
            input.read_exact(&mut body).expect("the body");
            let (status, text) = answer(method, path, body);
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", text.len());
            let whole = format!("{head}Connection: close\r\n\r\n{text}");
            out.write_all(whole.as_bytes()).expect("an answer");
        }
    });
    address
}
