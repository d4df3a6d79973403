//! `--processes N`: starts this program N times on this machine, and is to the user what one of
//! them would be.
//!
//! In: the number, and this program's own arguments. Out: rank 0's stdout, stderr and exit code. A
//! signal goes to all of them; when one dies the others are ended.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mmx_training::distributed::Place;

use crate::error::{Error, Result};

/// Set for the processes that are started: their `--processes` is done.
const STARTED: &str = "MMX_STARTED_BY_PROCESSES";
/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// After a failure the others end by themselves, rank 0 perhaps with a last checkpoint. Who has not
/// done so by then is asked to, and then killed.
const ASKED_AFTER: Duration = Duration::from_secs(5);
const KILLED_AFTER: Duration = Duration::from_secs(20);
/// A process may print so much before it fails; only the end is looked at.
const KEPT: usize = 64 << 10;

/// Signals that have come.
static SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// A process that has been started.
struct Rank {
    child: Child,
    /// Closed when this program ends, however it ends.
    _alive: Option<ChildStdin>,
    stderr: Option<JoinHandle<String>>,
    ended: Option<ExitStatus>,
    /// It ended because it was told to.
    told: bool,
}

/// Whether this program is to start `count` processes; one that [`run`] has started is not, and
/// ends when the program that started it is gone.
///
/// # Errors
/// A launcher has started this one among others already.
pub(crate) fn wanted(count: Option<usize>) -> Result<bool> {
    if std::env::var_os(STARTED).is_some() {
        std::thread::spawn(|| {
            let mut buffer = [0; 64];
            while std::io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
            // as a signal would: with a checkpoint if training is under way
            stop(std::process::id());
        });
        return Ok(false);
    }
    let Some(count) = count else { return Ok(false) };
    match Place::from_environment()? {
        None => Ok(count > 1),
        Some(place) => Err(Error::usage(format!(
            "--processes: expected without a launcher, found {count} within one that has started {}",
            place.size
        ))),
    }
}

/// Runs `count` processes to their end; returns if all did what they were to.
///
/// # Errors
/// A process that cannot be started. Where one fails this program ends with its exit code.
pub(crate) fn run(count: usize) -> Result<()> {
    let failed = |error: std::io::Error| Error::failed(format!("starting processes: {error}"));
    // free now; who takes it before rank 0 does makes rank 0 say so
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    let port = port.map_err(failed)?.port();
    let caught = ctrlc::set_handler(|| {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    });
    caught.map_err(|error| Error::failed(format!("starting processes: {error}")))?;
    let mut ranks = Vec::new();
    for rank in 0..count {
        match start(rank, count, port) {
            Ok(started) => ranks.push(started),
            Err(error) => {
                ranks.iter_mut().for_each(Rank::kill);
                return Err(failed(error));
            }
        }
    }
    match watch(&mut ranks).map_err(failed)? {
        None => Ok(()),
        Some(first) => std::process::exit(explain(&mut ranks, first)),
    }
}

fn start(rank: usize, count: usize, port: u16) -> std::io::Result<Rank> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    command.env(STARTED, "1").env("RANK", rank.to_string()).env("WORLD_SIZE", count.to_string());
    command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", count.to_string());
    command.env("MASTER_ADDR", Ipv4Addr::LOCALHOST.to_string());
    command.env("MASTER_PORT", port.to_string());
    for name in ["TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"] {
        command.env_remove(name); // of a torchrun around a single process
    }
    command.stdin(Stdio::piped());
    if rank > 0 {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    #[cfg(unix)]
    {
        // a terminal's Ctrl-C reaches this program alone, which passes it on once
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
    }
    let mut child = command.spawn()?;
    let stderr = child.stderr.take().map(|stderr| std::thread::spawn(move || end_of(stderr)));
    Ok(Rank { _alive: child.stdin.take(), child, stderr, ended: None, told: false })
}

/// Reads to the end and keeps the last of it.
fn end_of(mut from: impl Read) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Waits for the ends of all: the first of those that failed, if one did.
fn watch(ranks: &mut [Rank]) -> std::io::Result<Option<usize>> {
    let mut first: Option<(usize, Instant)> = None;
    let mut passed_on = 0;
    loop {
        for (number, rank) in ranks.iter_mut().enumerate() {
            if rank.ended.is_none() {
                rank.ended = rank.child.try_wait()?;
                if rank.ended.is_some_and(|status| !status.success()) && first.is_none() {
                    first = Some((number, Instant::now()));
                }
            }
        }
        if ranks.iter().all(|rank| rank.ended.is_some()) {
            return Ok(first.map(|(number, _)| number));
        }
        let signals = SIGNALS.load(Ordering::Relaxed);
        while passed_on < signals {
            passed_on += 1;
            ranks.iter_mut().filter(|rank| rank.ended.is_none()).for_each(|r| stop(r.child.id()));
        }
        if let Some((_, since)) = first {
            let there = ranks.iter_mut().filter(|rank| rank.ended.is_none());
            if since.elapsed() > KILLED_AFTER {
                there.for_each(Rank::kill);
            } else if since.elapsed() > ASKED_AFTER {
                there.filter(|rank| !rank.told).for_each(Rank::ask);
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Says what rank 0 has not said, and gives the exit code: rank 0's own, or else that of the rank
/// that failed first.
fn explain(ranks: &mut [Rank], first: usize) -> i32 {
    let (status, told) = match ranks.first() {
        Some(rank) => (rank.ended, rank.told),
        None => return 1,
    };
    let of_first = ranks[first].ended;
    if SIGNALS.load(Ordering::Relaxed) > 0 && of_first.and_then(signal_of) == Some(15) {
        return 130; // 128 + SIGINT: stopped before there was anything to save
    }
    let how = of_first.and_then(signal_of).map(|signal| {
        let why = if signal == 9 { ": killed, perhaps for want of memory" } else { "" };
        format!("rank {first} was ended by signal {signal}{why}")
    });
    let own_code = status.and_then(|status| status.code()).filter(|code| *code != 0 && !told);
    match (own_code, how) {
        // it has said why
        (Some(code), None) => return code,
        (Some(code), Some(how)) => {
            eprintln!("{how}");
            return code;
        }
        (None, Some(how)) => {
            eprintln!("error: {how}");
            return 1;
        }
        (None, None) => {}
    }
    let said = ranks[first].stderr.take().and_then(|thread| thread.join().ok());
    let said = said.unwrap_or_default();
    let lines = || said.lines().filter(|line| !line.trim().is_empty());
    let line = lines().find_map(|line| line.strip_prefix("error: ")).or(lines().next_back());
    let sentence = line.unwrap_or("it said nothing before its end");
    eprintln!("error: rank {first}: {sentence}");
    of_first.and_then(|status| status.code()).filter(|code| *code != 0).unwrap_or(1)
}

/// The signal that ended a process, if one did.
fn signal_of(status: ExitStatus) -> Option<i32> {
    #[cfg(unix)]
    {
        std::os::unix::process::ExitStatusExt::signal(&status)
    }
    #[cfg(not(unix))]
    {
        let _ = status;
        None
    }
}

impl Rank {
    fn ask(&mut self) {
        self.told = true;
        stop(self.child.id());
    }

    fn kill(&mut self) {
        self.told = true;
        let _ = self.child.kill(); // it may have ended by now
    }
}

/// Asks a process to stop.
fn stop(process: u32) {
    #[cfg(unix)]
    if let Ok(process) = i32::try_from(process) {
        use nix::sys::signal::{Signal, kill};
        let _ = kill(nix::unistd::Pid::from_raw(process), Signal::SIGTERM); // it may have ended
    }
    #[cfg(not(unix))]
    let _ = process;
}
