//! Lines to a program and back: one process for each exchange, so that nothing it keeps can change
//! the next one's answer.
#![cfg_attr(unix, expect(unsafe_code, reason = "limits are set between fork and exec"))]

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mmx_converters::{Error, Result};
use serde_json::Value;

use super::command::Command;
#[cfg(unix)]
use super::rlimits;

/// What is shown of a program's stderr at most, bytes.
const SHOWN: u64 = 2000;
/// From look to look whether a program has ended.
const PAUSE: Duration = Duration::from_millis(1);
/// What pipes may take to close once all processes are dead.
const CLOSING: Duration = Duration::from_secs(2);

/// Runs a command, confined where the system can do that. An error is one of starting it; what the
/// program did wrong is the inner one.
pub(super) fn exchange(command: &Command, lines: &[String]) -> Result<Result<Vec<Value>>> {
    let name = command.name();
    let fault = |message: String| Error::failed(format!("command {name}: {message}"));
    let own = tempfile::Builder::new()
        .prefix("mmx-command-")
        .tempdir()
        .map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(fault("expected a program, found none".to_owned()));
    };
    let kept = ["PATH", "LANG", "LC_ALL", "SYSTEMROOT"];
    let kept = kept.iter().filter_map(|key| std::env::var_os(key).map(|value| (*key, value)));
    let mut process = std::process::Command::new(program);
    process
        .args(arguments)
        .current_dir(own.path())
        .env_clear()
        .envs(kept)
        .env("HOME", own.path())
        .env("TMPDIR", own.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    confine(&mut process, command, own.path())
        .map_err(|why| fault(format!("cannot be confined: {why}")))?;
    let deadline = Instant::now() + command.limits.time;
    let mut child = process.spawn().map_err(|e| fault(format!("cannot be started: {e}")))?;
    let too_much = Arc::new(AtomicBool::new(false));
    let mut text = lines.join("\n");
    text.push('\n');
    let stdin = child.stdin.take();
    // a program that reads nothing is no fault: it is told by what it writes
    std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(text.as_bytes())));
    let stdout = reader(child.stdout.take(), command.limits.output_bytes, &too_much);
    let stderr = reader(child.stderr.take(), SHOWN, &Arc::default());
    let mut late = false;
    while !has_ended(&mut child) {
        late = Instant::now() >= deadline;
        if late || too_much.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    kill_all(&mut child);
    let status = child.wait().map_err(|e| fault(format!("cannot be waited for: {e}")))?;
    let output = stdout.recv_timeout(CLOSING).unwrap_or_default();
    let said = stderr.recv_timeout(CLOSING).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let found = if late {
        let secs = command.limits.time.as_secs_f64();
        Err(format!("expected an answer within {secs} s, found none"))
    } else if too_much.load(Ordering::Relaxed) {
        let most = command.limits.output_bytes;
        Err(format!("expected at most {most} bytes of output, found more"))
    } else if !status.success() {
        Err(format!("expected exit code 0, found {}", in_words(status)))
    } else {
        values(output, lines.len())
    };
    Ok(found.map_err(|message| match said.is_empty() {
        true => fault(message),
        false => fault(format!("{message}; it said: {said}")),
    }))
}

/// The JSON values of an output, one a line.
fn values(output: Vec<u8>, expected: usize) -> std::result::Result<Vec<Value>, String> {
    let output =
        String::from_utf8(output).map_err(|_| "expected JSON lines, found no UTF-8".to_owned())?;
    let mut values = Vec::with_capacity(expected);
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        let value = serde_json::from_str(line).map_err(|e| {
            let begin: String = line.chars().take(80).collect();
            format!("expected a JSON value a line, found {begin:?} ({e})")
        })?;
        values.push(value);
    }
    match values.len() {
        found if found == expected => Ok(values),
        found => Err(format!("expected {expected} lines, one for each read, found {found}")),
    }
}

/// Reads to the end, or up to a limit; what is beyond it is noted and read no further.
fn reader(
    from: Option<impl Read + Send + 'static>,
    limit: u64,
    too_much: &Arc<AtomicBool>,
) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    let too_much = too_much.clone();
    std::thread::spawn(move || {
        let Some(mut from) = from else { return };
        let mut bytes = Vec::new();
        // a pipe that breaks is at its end
        let _ = from.by_ref().take(limit).read_to_end(&mut bytes);
        let mut one = [0];
        if bytes.len() as u64 == limit && matches!(from.read(&mut one), Ok(1)) {
            too_much.store(true, Ordering::Relaxed);
        }
        // nobody waits any more where this fails
        let _ = send.send(bytes);
        let _ = std::io::copy(&mut from, &mut std::io::sink());
    });
    receive
}

fn in_words(status: std::process::ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.signal() {
            return format!("an end by signal {signal}");
        }
    }
    match status.code() {
        // as the process that waits for a confined one passes it on
        Some(code) if code > 128 => format!("{code} (an end by signal {})", code - 128),
        Some(code) => code.to_string(),
        None => status.to_string(),
    }
}

#[cfg(unix)]
fn confine(
    process: &mut std::process::Command,
    command: &Command,
    own: &std::path::Path,
) -> std::result::Result<(), String> {
    use std::os::unix::process::CommandExt;
    process.process_group(0);
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    if super::linux::check().is_ok() {
        let plan = super::linux::Plan::new(&command.limits, own)?;
        // SAFETY: what is called between fork and exec allocates nothing and takes no lock; see
        // `Plan::enter`.
        unsafe { process.pre_exec(move || plan.enter()) };
        return Ok(());
    }
    let _ = own;
    let limits = rlimits::of(&command.limits);
    // SAFETY: setrlimit alone is called between fork and exec.
    unsafe { process.pre_exec(move || rlimits::set(&limits)) };
    Ok(())
}

#[cfg(not(unix))]
fn confine(
    _process: &mut std::process::Command,
    _command: &Command,
    _own: &std::path::Path,
) -> std::result::Result<(), String> {
    // the deadline and the limit on output are kept; nothing else can be limited here
    Ok(())
}

/// Whether the process has ended. On Unix it is left to be waited for, so that its group's number
/// cannot be another's yet when the group is killed.
#[cfg(unix)]
fn has_ended(child: &mut Child) -> bool {
    // SAFETY: all zeros is a valid siginfo_t, which the call fills.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the struct lives through the call.
    let result = unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut info, options) };
    // SAFETY: waitid has filled the struct, or left it zero where nothing has ended.
    result != 0 || unsafe { info.si_pid() } != 0
}

#[cfg(not(unix))]
fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// Kills the process and all of its group.
#[cfg(unix)]
fn kill_all(child: &mut Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id())
        && group > 1
    {
        // SAFETY: a signal to a group that this process made; its leader is not waited for yet.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(not(unix))]
fn kill_all(child: &mut Child) {
    // one that has ended already cannot be killed, and need not
    let _ = child.kill();
}
