//! Where all ranks keep a connection: it sees at once which of them is gone, hears which fails, and
//! tells the others in a sentence. It runs on threads of rank 0 and computes nothing.
//!
//! Lines to the hub: `hello TOKEN RANK SIZE HOST`, then `beat BEGUN` (operations begun so far),
//! `arrive N` (at the N-th barrier), `late op|barrier N SECONDS WHAT`, `fail SENTENCE`, `bye`.
//! Lines from it: `hosts HOST..` once all are there, `beat`, `pass N`, `abort SENTENCE`, `bye`.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::{BEAT, Heard, Lines, SILENCE, prepare, send, split};

/// How often the hub looks for new connections.
const TICK: Duration = Duration::from_millis(20);

/// The hub; dropped, it waits a moment for the others to leave first.
#[derive(Debug)]
pub(super) struct Hub {
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    token: String,
}

#[derive(Debug)]
struct State {
    /// Every rank's, once it has said hello.
    peers: Vec<Option<Peer>>,
    /// Why the run has ended, if it has failed.
    reason: Option<String>,
    closed: bool,
}

#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    host: String,
    heard: Instant,
    /// Operations begun.
    begun: u64,
    /// Barriers reached.
    arrived: u64,
    /// It said goodbye.
    left: bool,
    /// Its connection has ended.
    gone: bool,
}

impl Hub {
    /// Waits for `size` ranks at an address, so long at most.
    pub(super) fn serve(own: IpAddr, size: usize, limit: Duration) -> std::io::Result<Self> {
        let listener = TcpListener::bind((own, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let token = format!("{:x}", seed());
        let peers = (0..size).map(|_| None).collect();
        let state = Mutex::new(State { peers, reason: None, closed: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new(), token });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("mmx-hub".into())
            .spawn(move || of_thread.look_after(&listener, limit))?;
        Ok(Self { shared, address })
    }

    /// Where it is, and the word by which it knows those of this run.
    pub(super) fn address(&self) -> (SocketAddr, &str) {
        (self.address, &self.shared.token)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // whoever has not left yet may still read what there is to hear
        let patience = if self.shared.lock().reason.is_some() { 2 } else { 5 };
        let until = Instant::now() + Duration::from_secs(patience);
        let mut state = self.shared.lock();
        while state.peers.iter().flatten().any(|peer| !peer.left && !peer.gone) {
            let Some(rest) = until.checked_duration_since(Instant::now()) else { break };
            let waited = self.shared.changed.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.tell("bye");
        state.closed = true;
    }
}

/// A number that another run's hub hardly has.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes connections, says that it is there, and listens for silence.
    fn look_after(self: Arc<Self>, listener: &TcpListener, limit: Duration) {
        let begun = Instant::now();
        let (mut beat, mut last) = (begun, begun);
        let mut complete = false;
        loop {
            while let Ok((stream, _)) = listener.accept() {
                let shared = self.clone();
                let _ = std::thread::Builder::new()
                    .name("mmx-hub-peer".into())
                    .spawn(move || shared.hear(stream));
            }
            let mut state = self.lock();
            if state.closed {
                return;
            }
            let now = Instant::now();
            if now.duration_since(last) > SILENCE / 4 {
                // this process itself was stopped for a while
                state.peers.iter_mut().flatten().for_each(|peer| peer.heard = now);
            }
            last = now;
            if !complete && state.peers.iter().all(Option::is_some) {
                complete = true;
                let hosts = state.peers.iter().flatten().map(|peer| peer.host.as_str());
                let hosts = format!("hosts {}", hosts.collect::<Vec<_>>().join(" "));
                state.tell(&hosts);
            }
            if !complete && begun.elapsed() > limit {
                let missing = state.missing();
                state.fail(&format!("{missing} did not come within {} s", limit.as_secs()));
            }
            if now.duration_since(beat) >= BEAT {
                beat = now;
                state.tell("beat");
                if let Some(rank) = state.silent(now) {
                    let name = state.name(rank);
                    state.fail(&format!(
                        "{name} has not been heard of for {} s: its machine hangs or the \
                         connection is cut",
                        SILENCE.as_secs()
                    ));
                }
            }
            drop(state);
            std::thread::sleep(TICK);
        }
    }

    /// Listens to one connection to its end.
    fn hear(&self, stream: TcpStream) {
        let Ok(writer) = stream.try_clone() else { return };
        let (Ok(()), Ok(mut lines)) = (prepare(&stream), Lines::new(stream)) else { return };
        let begun = Instant::now();
        let hello = loop {
            match lines.next() {
                Heard::Line(line) => break line,
                Heard::Nothing if begun.elapsed() < SILENCE => {}
                _ => return,
            }
        };
        let Some(rank) = self.welcome(&hello, writer) else { return };
        loop {
            let heard = lines.next();
            let mut state = self.lock();
            if state.closed {
                return;
            }
            match heard {
                Heard::Line(line) => {
                    if let Some(peer) = state.peer(rank) {
                        peer.heard = Instant::now();
                    }
                    state.take(rank, &line);
                }
                Heard::Nothing => {}
                Heard::End => {
                    let name = state.name(rank);
                    let Some(peer) = state.peer(rank) else { return };
                    peer.gone = true;
                    if !peer.left {
                        state.fail(&format!("{name} is gone: it was killed or crashed"));
                    }
                    self.changed.notify_all();
                    return;
                }
            }
            self.changed.notify_all();
        }
    }

    /// The rank that a first line names, if it is one of this run.
    fn welcome(&self, hello: &str, stream: TcpStream) -> Option<usize> {
        let words: Vec<&str> = hello.split(' ').collect();
        let [_, token, rank, size, host] = words.as_slice() else { return None };
        let (rank, size) = (rank.parse::<usize>().ok()?, size.parse::<usize>().ok()?);
        if !hello.starts_with("hello ") || *token != self.token {
            return None;
        }
        let mut state = self.lock();
        let expected = state.peers.len();
        let wrong = match state.peers.get(rank) {
            _ if size != expected => {
                Some(format!("rank {rank} ({host}) expects {size} processes, rank 0 {expected}"))
            }
            None => Some(format!("rank {rank} ({host}) is none of {expected} processes")),
            Some(Some(there)) => {
                Some(format!("two processes are rank {rank}: {} and {host}", there.host))
            }
            Some(None) => None,
        };
        if let Some(reason) = wrong.or_else(|| state.reason.clone()) {
            state.fail(&reason);
            send(&stream, &format!("abort {reason}"));
            return None;
        }
        let host = (*host).to_owned();
        let (heard, begun, arrived) = (Instant::now(), 0, 0);
        *state.peers.get_mut(rank)? =
            Some(Peer { stream, host, heard, begun, arrived, left: false, gone: false });
        Some(rank)
    }
}

impl State {
    fn peer(&mut self, rank: usize) -> Option<&mut Peer> {
        self.peers.get_mut(rank)?.as_mut()
    }

    /// A rank with its host, as sentences name it.
    fn name(&self, rank: usize) -> String {
        match self.peers.get(rank).and_then(Option::as_ref) {
            Some(peer) => format!("rank {rank} ({})", peer.host),
            None => format!("rank {rank}"),
        }
    }

    fn names(&self, ranks: &[usize]) -> String {
        ranks.iter().map(|rank| self.name(*rank)).collect::<Vec<_>>().join(", ")
    }

    /// The ranks that have not said hello.
    fn missing(&self) -> String {
        let missing: Vec<usize> =
            (0..self.peers.len()).filter(|rank| self.peers[*rank].is_none()).collect();
        format!("{} of {} processes", self.names(&missing), self.peers.len())
    }

    /// A rank that has said nothing for too long.
    fn silent(&self, now: Instant) -> Option<usize> {
        self.peers.iter().position(|peer| {
            peer.as_ref().is_some_and(|peer| {
                !peer.left && !peer.gone && now.duration_since(peer.heard) > SILENCE
            })
        })
    }

    /// Sends a line to all.
    fn tell(&self, line: &str) {
        for peer in self.peers.iter().flatten().filter(|peer| !peer.gone) {
            send(&peer.stream, line);
        }
    }

    /// The run has failed: the first reason is what all hear.
    fn fail(&mut self, reason: &str) {
        if self.reason.is_none() {
            self.reason = Some(reason.to_owned());
            self.tell(&format!("abort {reason}"));
        }
    }

    /// The ranks that have left although others wait for them.
    fn left_early(&self) -> Vec<usize> {
        let all = || self.peers.iter().flatten();
        let begun = all().map(|peer| peer.begun).max().unwrap_or_default();
        let arrived = all().map(|peer| peer.arrived).max().unwrap_or_default();
        let early = |peer: &Peer| peer.left && (peer.begun < begun || peer.arrived < arrived);
        let of = |rank: &usize| self.peers[*rank].as_ref().is_some_and(early);
        (0..self.peers.len()).filter(of).collect()
    }

    /// Does what a line of a rank asks for.
    fn take(&mut self, rank: usize, line: &str) {
        let (word, rest) = split(line);
        let number = || rest.parse::<u64>().unwrap_or_default();
        match word {
            "beat" => {
                if let Some(peer) = self.peer(rank) {
                    peer.begun = number();
                }
            }
            "arrive" => {
                if let Some(peer) = self.peer(rank) {
                    peer.arrived = number();
                }
                let last = self.peers.iter().map(|peer| peer.as_ref().map_or(0, |p| p.arrived));
                if last.min() == Some(number()) {
                    self.tell(&format!("pass {}", number()));
                }
                self.refuse_early();
            }
            "bye" => {
                if let Some(peer) = self.peer(rank) {
                    peer.left = true;
                }
                self.refuse_early();
            }
            "late" => self.late(rank, rest),
            "fail" => {
                self.refuse_early();
                let name = self.name(rank);
                self.fail(&format!("{name}: {rest}"));
            }
            _ => {}
        }
    }

    /// Fails where a rank has left that others wait for.
    fn refuse_early(&mut self) {
        let early = self.left_early();
        if !early.is_empty() {
            let names = self.names(&early);
            self.fail(&format!("{names} ended before the others"));
        }
    }

    /// A rank has waited too long: `op|barrier N SECONDS WHAT`.
    fn late(&mut self, rank: usize, rest: &str) {
        let mut words = rest.splitn(4, ' ');
        let (Some(kind), Some(number), Some(seconds), Some(what)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return;
        };
        let number = number.parse().unwrap_or(u64::MAX);
        let reached = |peer: &Peer| if kind == "op" { peer.begun } else { peer.arrived };
        let behind: Vec<usize> = (0..self.peers.len())
            .filter(|r| self.peers[*r].as_ref().is_none_or(|peer| reached(peer) < number))
            .collect();
        let reason = match behind.is_empty() {
            false => format!("{} did not come to {what} within {seconds} s", self.names(&behind)),
            true => format!("{}: {what} did not end within {seconds} s", self.name(rank)),
        };
        self.fail(&reason);
    }
}
