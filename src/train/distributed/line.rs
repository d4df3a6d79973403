//! Lines of text over a connection, read with a limit so that the reader can look after other
//! things.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How often each side says that it is there.
pub(super) const BEAT: Duration = Duration::from_millis(500);
/// After so long without a word a rank counts as gone: its machine is off or hangs, or the
/// connection is cut. A process that swaps or writes much may be silent for seconds.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// A line that is longer is none of ours.
const LONGEST: usize = 64 << 10;

/// Lines that arrive.
pub(super) struct Lines {
    stream: TcpStream,
    read: Vec<u8>,
}

/// What a look at a connection found.
pub(super) enum Heard {
    Line(String),
    Nothing,
    End,
}

impl Lines {
    /// The lines of a connection.
    pub(super) fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(BEAT))?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// The next line; nothing where none comes within a beat.
    pub(super) fn next(&mut self) -> Heard {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).take(end).collect::<Vec<u8>>();
                return Heard::Line(String::from_utf8_lossy(&line).into_owned());
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Heard::End,
                Ok(_) if self.read.len() > LONGEST => return Heard::End,
                Ok(count) => self.read.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Heard::Nothing;
                }
                Err(_) => return Heard::End,
            }
        }
    }
}

/// Sends a line; line breaks within it become blanks. Whether it was taken: a reader finds the end
/// of the connection by itself.
pub(super) fn send(mut stream: &TcpStream, line: &str) -> bool {
    let line = format!("{}\n", line.replace(['\n', '\r'], " "));
    stream.write_all(line.as_bytes()).is_ok()
}

/// Prepares a connection: small messages go at once, and no reader that hangs holds the writer.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(BEAT))
}

/// A word and the rest of a line.
pub(super) fn split(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn lines_arrive_whole_whatever_the_pieces() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let mut lines = Lines::new(listener.accept().expect("came").0).expect("lines");
        assert!(matches!(lines.next(), Heard::Nothing));
        (&far).write_all(b"one\ntw").expect("sent");
        assert!(matches!(lines.next(), Heard::Line(line) if line == "one"));
        assert!(matches!(lines.next(), Heard::Nothing));
        assert!(send(&far, "o\nthree"));
        assert!(matches!(lines.next(), Heard::Line(line) if line == "two three"));
        drop(far);
        assert!(matches!(lines.next(), Heard::End));
        assert_eq!(split("fail no memory"), ("fail", "no memory"));
        assert_eq!(split("bye"), ("bye", ""));
    }
}
