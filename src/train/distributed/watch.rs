//! A rank's connection to the hub: what it says, and what it has heard.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::{Heard, Lines, SILENCE, prepare, send, split};

/// How long a rank that met an error waits for a better reason than its own: of a peer that was
/// killed it sees a connection that has ended, and the hub knows whose.
const GRACE: Duration = Duration::from_secs(3);

/// A rank's view of the others.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    stream: TcpStream,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Operations begun.
    begun: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Why the run has ended, if it has failed.
    reason: Option<String>,
    /// Every rank's host, once all are there.
    hosts: Vec<String>,
    /// Barriers that all have reached.
    passed: u64,
    /// Barriers that this rank has reached.
    arrived: u64,
    /// The hub said goodbye.
    hub_left: bool,
    /// This rank did.
    left: bool,
}

impl Watch {
    /// Connects to the hub and says who this is.
    pub(super) fn connect(
        hub: SocketAddr,
        token: &str,
        (rank, size, host): (usize, usize, &str),
        limit: Duration,
    ) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&hub, limit)?;
        prepare(&stream)?;
        let host = host.replace(char::is_whitespace, "-");
        send(&stream, &format!("hello {token} {rank} {size} {host}"));
        let lines = Lines::new(stream.try_clone()?)?;
        let writer = stream.try_clone()?;
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, changed, begun: AtomicU64::new(0) });
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("mmx-watch".into())
            .spawn(move || of_thread.listen(lines, &writer))?;
        Ok(Self { shared, stream })
    }

    /// Waits until all ranks are there: the hub has its limit, and says who is missing.
    pub(super) fn all_here(&self, limit: Duration) -> Result<(), String> {
        let state = self.wait(limit + GRACE, |state| !state.hosts.is_empty());
        match &state.reason {
            Some(reason) => Err(reason.clone()),
            None if state.hosts.is_empty() => {
                Err(format!("not all processes came within {} s", limit.as_secs()))
            }
            None => Ok(()),
        }
    }

    /// A rank with its host, as sentences name it.
    pub(super) fn name(&self, rank: usize) -> String {
        match self.shared.lock().hosts.get(rank) {
            Some(host) => format!("rank {rank} ({host})"),
            None => format!("rank {rank}"),
        }
    }

    /// Every rank's host.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.shared.lock().hosts.clone()
    }

    /// The reason why the run has ended, if it has failed somewhere.
    pub(super) fn reason(&self) -> Option<String> {
        self.shared.lock().reason.clone()
    }

    /// Counts an operation that begins: its number, from 1.
    pub(super) fn begin(&self) -> u64 {
        self.shared.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Tells all that this rank cannot go on.
    pub(super) fn fail(&self, sentence: &str) {
        self.say_begun();
        send(&self.stream, &format!("fail {sentence}"));
    }

    /// The reason behind an error that this rank met in an operation of all.
    pub(super) fn explain(&self, own: &str) -> String {
        self.say_begun();
        let state = self.wait(GRACE, |_| false);
        if let Some(reason) = &state.reason {
            return reason.clone();
        }
        drop(state);
        self.fail(own);
        self.answered(own)
    }

    /// The reason why an operation did not end in time.
    pub(super) fn late(&self, number: u64, limit: Duration, what: &str) -> String {
        self.say_begun();
        send(&self.stream, &format!("late op {number} {} {what}", limit.as_secs()));
        self.answered(&format!("{what} did not end within {} s", limit.as_secs()))
    }

    /// Waits for all ranks.
    pub(super) fn barrier(&self, what: &str, limit: Duration) -> Result<(), String> {
        let number = {
            let mut state = self.shared.lock();
            state.arrived += 1;
            state.arrived
        };
        send(&self.stream, &format!("arrive {number}"));
        let state = self.wait(limit, |state| state.passed >= number);
        match &state.reason {
            Some(reason) => return Err(reason.clone()),
            None if state.passed >= number => return Ok(()),
            None => {}
        }
        drop(state);
        let limit = limit.as_secs();
        send(&self.stream, &format!("late barrier {number} {limit} {what}"));
        Err(self.answered(&format!("{what}: not all processes came within {limit} s")))
    }

    /// The hub's answer, or else this rank's own sentence.
    fn answered(&self, own: &str) -> String {
        let state = self.wait(GRACE, |_| false);
        state.reason.clone().unwrap_or_else(|| own.to_owned())
    }

    fn say_begun(&self) {
        send(&self.stream, &format!("beat {}", self.shared.begun.load(Ordering::Relaxed)));
    }

    /// Waits until something holds or the run has failed, so long at most.
    fn wait(
        &self,
        limit: Duration,
        mut holds: impl FnMut(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        let waiting = |state: &mut State| state.reason.is_none() && !holds(state);
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, waiting);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().left = true;
        self.say_begun();
        send(&self.stream, "bye");
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to the hub to the connection's end, and answers that this rank is there.
    fn listen(&self, mut lines: Lines, writer: &TcpStream) {
        let mut heard = Instant::now();
        let mut last = heard;
        loop {
            let next = lines.next();
            let now = Instant::now();
            if now.duration_since(last) > SILENCE / 4 {
                heard = now; // this process itself was stopped for a while
            }
            last = now;
            let mut state = self.lock();
            match next {
                Heard::Line(line) => {
                    heard = now;
                    match split(&line) {
                        ("beat", _) => {
                            let begun = self.begun.load(Ordering::Relaxed);
                            send(writer, &format!("beat {begun}"));
                        }
                        ("hosts", hosts) => {
                            state.hosts = hosts.split(' ').map(str::to_owned).collect();
                        }
                        ("pass", number) => state.passed = number.parse().unwrap_or_default(),
                        ("abort", reason) => {
                            state.reason.get_or_insert_with(|| reason.to_owned());
                        }
                        ("bye", _) => state.hub_left = true,
                        _ => {}
                    }
                }
                Heard::Nothing if heard.elapsed() < SILENCE => {}
                Heard::Nothing => {
                    let silence = SILENCE.as_secs();
                    let name = state.hub();
                    state.reason.get_or_insert_with(|| {
                        format!(
                            "{name} has not been heard of for {silence} s: its machine hangs or \
                             the connection is cut"
                        )
                    });
                }
                Heard::End => {
                    if !state.left {
                        let name = state.hub();
                        let how = match state.hub_left {
                            true => "ended before the others",
                            false => "is gone: it was killed or crashed",
                        };
                        state.reason.get_or_insert_with(|| format!("{name} {how}"));
                    }
                    self.changed.notify_all();
                    return;
                }
            }
            self.changed.notify_all();
            if state.reason.is_some() && heard.elapsed() > SILENCE {
                return;
            }
        }
    }
}

impl State {
    /// The rank where the hub is.
    fn hub(&self) -> String {
        match self.hosts.first() {
            Some(host) => format!("rank 0 ({host})"),
            None => "rank 0".to_owned(),
        }
    }
}
