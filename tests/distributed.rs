//! Processes that meet: sums over all of them, and what each says when one fails. The ranks are
//! this test program itself, started anew for each.
#![expect(clippy::print_stdout, reason = "a rank tells the test that started it what came of it")]

#[path = "common/port.rs"]
mod port;

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mmx_training::distributed::{Group, Place, connect};
use mmx_training::error::Error;
use mmx_training::model::device;
use port::free_port;
use tch::{Device, Kind, Tensor};

/// What a rank does, and how long it waits for others.
const DOES: &str = "MMX_TEST_DOES";
const LIMIT: &str = "MMX_TEST_LIMIT";

/// Starts a rank of `size`.
fn start(does: &str, rank: usize, size: usize, port: u16, limit: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "rank", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(DOES, does).env(LIMIT, limit.to_string());
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("a rank starts")
}

/// Runs `size` ranks but those that `missing` names, and waits for their ends.
fn run(does: &str, size: usize, missing: &[usize], limit: u64) -> Vec<(usize, Output)> {
    let port = free_port();
    let there = (0..size).filter(|rank| !missing.contains(rank));
    let started: Vec<(usize, Child)> =
        there.map(|rank| (rank, start(does, rank, size, port, limit))).collect();
    let end = |(rank, child): (usize, Child)| (rank, child.wait_with_output().expect("it ends"));
    started.into_iter().map(end).collect()
}

/// What a rank said after `word: `, one line, and that libtorch added nothing on stderr.
fn said(output: &Output, word: &str) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "", "stderr is empty; stdout {stdout}");
    let word = format!("{word}: ");
    let lines: Vec<&str> = stdout.lines().filter_map(|line| line.strip_prefix(&word)).collect();
    assert_eq!(lines.len(), 1, "one line of {word:?} in {stdout}");
    lines[0].to_owned()
}

fn host() -> String {
    fs_err::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim().to_owned()
}

/// A rank of the tests below; the environment says what it does.
#[test]
#[ignore = "a process of the other tests, which start it"]
fn rank() {
    let does = std::env::var(DOES).expect("what to do");
    let limit = std::env::var(LIMIT).expect("a limit").parse().expect("a number");
    let place = Place::from_environment().expect("variables").expect("many processes");
    let device = match does.as_str() {
        "on devices" => {
            // loads libtorch's CUDA part, whether or not there is a device
            let _ = device::pick(Some(&format!("cuda:{}", place.local_rank)));
            Device::Cuda(place.local_rank)
        }
        _ => Device::Cpu,
    };
    let group = match connect(&place, device, Duration::from_secs(limit)) {
        Ok(group) => group,
        Err(error) => return println!("\nerror: {error}"),
    };
    let done = match does.as_str() {
        "sums" => sums(&group),
        "killed" | "killed master" => until_killed(&group, usize::from(does == "killed")),
        "on devices" => group.all_reduce(&mut Tensor::ones([1000], (Kind::Float, device))),
        "fails" => fails(&group, true),
        "leaves" => fails(&group, false),
        "late for a sum" => late(&group, false),
        "late for a meeting" => late(&group, true),
        other => panic!("{other}: unknown"),
    };
    match done {
        Ok(()) => println!("\ndone: {}", group.rank()),
        Err(error) => println!("\nerror: {error}"),
    }
}

/// Every operation, of every kind, with its right result.
fn sums(group: &Group) -> Result<(), Error> {
    let (rank, size) = (group.rank() as i64, group.size() as i64);
    let all = size * (size + 1) / 2;
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double, Kind::Int64] {
        // rank r gives (r + 1) * [0, 1, .., 99]: small whole numbers, exact in bfloat16 too
        let given = Tensor::arange(100, (Kind::Int64, Device::Cpu)).remainder(10).to_kind(kind);
        let mut sum = &given * (rank + 1);
        group.all_reduce(&mut sum)?;
        assert_eq!(sum, &given * all, "{kind:?}");
        let (first, second) = (&given * (rank + 1), &given * 2);
        let pending = [group.all_reduce_start(&first)?, group.all_reduce_start(&second)?];
        for pending in pending {
            pending.wait()?;
        }
        assert_eq!(first, &given * all, "{kind:?}, two at a time");
        assert_eq!(second, &given * (2 * size), "{kind:?}, two at a time");
        for root in 0..size {
            let mut copy = &given * (rank + 1);
            group.broadcast(&mut copy, root as usize)?;
            assert_eq!(copy, &given * (root + 1), "{kind:?} from {root}");
        }
        let part = &given * (rank + 1);
        let mut whole = Tensor::zeros([100 * size], (kind, Device::Cpu));
        group.all_gather(&mut whole, &part)?;
        for (rank, of_rank) in whole.split(100, 0).iter().enumerate() {
            assert_eq!(*of_rank, &given * (rank as i64 + 1), "{kind:?} of {rank}");
        }
        let parts = whole.copy() * (rank + 1);
        let mut own = Tensor::zeros([100], (kind, Device::Cpu));
        group.reduce_scatter(&mut own, &parts)?;
        assert_eq!(own, &given * ((rank + 1) * all), "{kind:?} of the sum");
    }
    // more elements than one message takes, an odd number of them, and none
    for count in [0, 1_000_003] {
        let mut sum = Tensor::ones([count], (Kind::Float, Device::Cpu));
        group.all_reduce(&mut sum)?;
        assert_eq!(sum.sum(Kind::Double).double_value(&[]), (count * size) as f64);
    }
    let wrong = group.all_gather(&mut Tensor::zeros([7], (Kind::Float, Device::Cpu)), &{
        Tensor::zeros([7], (Kind::Float, Device::Cpu))
    });
    let wrong = wrong.expect_err("seven elements are not those of all ranks").to_string();
    assert_eq!(wrong, format!("expected {size} parts of 7 elements, found 7 elements"));
    group.barrier("the end", Duration::from_secs(60))
}

fn sum_once(group: &Group) -> Result<(), Error> {
    group.all_reduce(&mut Tensor::ones([100_000], (Kind::Float, Device::Cpu)))
}

/// Sums without end; one rank kills itself.
fn until_killed(group: &Group, who: usize) -> Result<(), Error> {
    for step in 0.. {
        if step == 5 && group.rank() == who {
            // SAFETY: a signal to this process itself
            #[expect(unsafe_code, reason = "the way to be killed")]
            unsafe {
                libc::raise(libc::SIGKILL);
            }
        }
        sum_once(group)?;
    }
    Ok(())
}

/// Rank 1 cannot go on, with or without a word.
fn fails(group: &Group, aloud: bool) -> Result<(), Error> {
    sum_once(group)?;
    if group.rank() == 1 {
        let error = Error::failed("data.jsonl: no space left\non the device");
        if aloud {
            group.fail(&error);
        }
        return Err(error);
    }
    sum_once(group)
}

/// Rank 1 is late.
fn late(group: &Group, meeting: bool) -> Result<(), Error> {
    if group.rank() == 1 {
        while group.failed().is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    match meeting {
        true => group.barrier("the tokenized data", Duration::from_secs(1)),
        false => sum_once(group),
    }
}

#[test]
fn sums_copies_and_gatherings_are_right_on_every_rank() {
    for size in [2, 3] {
        for (rank, output) in run("sums", size, &[], 60) {
            assert_eq!(said(&output, "done"), rank.to_string());
        }
    }
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let outputs = run("sums", 3, &[2], 2);
    assert_eq!(outputs.len(), 2);
    for (_, output) in outputs {
        assert_eq!(said(&output, "error"), "rank 2 of 3 processes did not come within 2 s");
    }
}

#[test]
fn a_killed_rank_ends_all_others_with_its_name_and_host() {
    for (does, who) in [("killed", 1), ("killed master", 0)] {
        for (rank, output) in run(does, 3, &[], 60) {
            if rank == who {
                assert!(output.status.code().is_none(), "killed by a signal");
                continue;
            }
            let expected = format!("rank {who} ({}) is gone: it was killed or crashed", host());
            assert_eq!(said(&output, "error"), expected, "of rank {rank}");
        }
    }
}

#[test]
fn the_error_of_a_rank_is_the_error_of_all() {
    let sentence = "data.jsonl: no space left on the device";
    for (does, expected) in [
        ("fails", format!("rank 1 ({}): {sentence}", host())),
        ("leaves", format!("rank 1 ({}) ended before the others", host())),
    ] {
        for (rank, output) in run(does, 3, &[], 60) {
            if rank != 1 {
                assert_eq!(said(&output, "error"), expected, "of rank {rank}, {does}");
            }
        }
    }
}

#[test]
fn a_rank_that_is_late_is_named_with_what_was_waited_for() {
    for (does, what, limit) in [
        ("late for a sum", "a sum over all ranks", 3),
        ("late for a meeting", "the tokenized data", 1),
    ] {
        for (rank, output) in run(does, 3, &[], 3) {
            let expected = format!("rank 1 ({}) did not come to {what} within {limit} s", host());
            assert_eq!(said(&output, "error"), expected, "of rank {rank}, {does}");
        }
    }
}

#[test]
fn a_port_that_is_taken_and_a_master_that_is_not_there_are_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let output = start("sums", 0, 2, port, 5).wait_with_output().expect("it ends");
    let expected = format!(
        "rank 0 of 2 ({}): port {port} of 127.0.0.1: expected to be free for the run, found it taken",
        host()
    );
    assert_eq!(said(&output, "error"), expected);
    let port = free_port();
    let output = start("sums", 1, 2, port, 1).wait_with_output().expect("it ends");
    let expected = format!(
        "rank 1 of 2 ({}): expected rank 0 at 127.0.0.1:{port} within 1 s, found nobody",
        host()
    );
    assert_eq!(said(&output, "error"), expected);
}

#[test]
fn two_processes_of_the_same_rank_are_refused() {
    let port = free_port();
    let started = [0, 1, 1].map(|rank| start("sums", rank, 3, port, 10));
    for child in started {
        let output = child.wait_with_output().expect("it ends");
        let expected = format!("two processes are rank 1: {} and {}", host(), host());
        assert_eq!(said(&output, "error"), expected);
    }
}

/// NCCL's code is in a library of its own: it is loaded, and says that there are no devices.
#[test]
fn processes_on_cuda_devices_use_nccl() {
    let _ = device::pick(Some("cuda")); // loads libtorch's CUDA part
    let devices = tch::Cuda::device_count();
    for (rank, output) in run("on devices", 2, &[], 60) {
        if devices >= 2 {
            assert_eq!(said(&output, "done"), rank.to_string());
            continue;
        }
        let error = said(&output, "error");
        let reasons = [
            "ProcessGroupNCCL is only supported with GPUs, no GPUs found!",
            "libmmx_nccl.so, which CUDA devices need among processes: expected beside mmx-train, found none",
        ];
        // two processes on one device are refused in NCCL's own words
        let named = devices == 1 || reasons.iter().any(|reason| error.ends_with(reason));
        assert!(named && error.starts_with("rank "), "{error}");
    }
}

/// `mmx-train meet` with `--processes`.
fn meet(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx-train"));
    command.args(["meet", "--mb", "1"]).args(more).env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The processes that a launcher has started, in their order, once all are there.
fn started(launcher: &Child, count: usize) -> Vec<String> {
    let id = launcher.id();
    let begun = Instant::now();
    loop {
        let children = fs_err::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let children: Vec<String> = children.split_whitespace().map(str::to_owned).collect();
        if children.len() == count {
            return children;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{count} processes in two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and has not ended: its parent may not have looked yet.
fn is_alive(process: &str) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn kill(signal: &str, process: &str) {
    let sent = Command::new("kill").args([signal, process]).status();
    assert!(sent.expect("kill").success(), "{signal} to {process}");
}

#[test]
fn processes_that_mmx_starts_are_one_command() {
    let output = meet(&["--processes", "3", "--json"]).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.as_ref()), (Some(0), ""));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(report["processes"], 3);
    assert_eq!(report["hosts"], serde_json::json!([host(), host(), host()]));
}

#[test]
fn one_error_line_names_the_process_that_was_killed() {
    for victim in [0, 1] {
        let launcher =
            meet(&["--processes", "3", "--times", "100000000"]).spawn().expect("it starts");
        let processes = started(&launcher, 3);
        std::thread::sleep(Duration::from_secs(2)); // most have met by then, and either is right
        kill("-KILL", &processes[victim]);
        let output = launcher.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(errors.len(), 1, "{stderr}");
        assert!(errors[0].contains(&format!("rank {victim} ")), "{stderr}");
        assert!(!processes.iter().any(|process| is_alive(process)), "no process is left");
    }
}

#[test]
fn a_signal_and_the_end_of_the_launcher_end_all_processes() {
    for signal in ["-TERM", "-KILL"] {
        let mut launcher =
            meet(&["--processes", "2", "--times", "100000000"]).spawn().expect("it starts");
        let processes = started(&launcher, 2);
        kill(signal, &launcher.id().to_string());
        let status = launcher.wait().expect("it ends");
        assert_eq!(status.code(), (signal == "-TERM").then_some(130));
        let begun = Instant::now();
        while processes.iter().any(|process| is_alive(process)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{signal}: no process is left");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn processes_within_a_launcher_are_misuse() {
    let output = meet(&["--processes", "2"])
        .env("RANK", "0")
        .env("WORLD_SIZE", "4")
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let expected =
        "error: --processes: expected without a launcher, found 2 within one that has started 4";
    assert_eq!((output.status.code(), stderr.lines().next()), (Some(2), Some(expected)));
    let output = meet(&[]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "nobody to meet");
    let output = meet(&[]).env("RANK", "x").output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let expected = "error: variable RANK: expected a whole number, found \"x\"";
    assert_eq!((output.status.code(), stderr.lines().next()), (Some(1), Some(expected)));
}
