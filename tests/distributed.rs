//! Processes that meet: sums over all of them, and what each says when one fails. The ranks are
//! this test program itself, started anew for each.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use mmx_training::distributed::{Group, Place, connect};
use mmx_training::error::Error;
use tch::{Device, Kind, Tensor};

/// What a rank does, and how long it waits for others.
const DOES: &str = "MMX_TEST_DOES";
const LIMIT: &str = "MMX_TEST_LIMIT";

/// A port that nobody uses now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}

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
    let group = match connect(&place, Device::Cpu, Duration::from_secs(limit)) {
        Ok(group) => group,
        Err(error) => return println!("\nerror: {error}"),
    };
    let done = match does.as_str() {
        "sums" => sums(&group),
        "killed" | "killed master" => until_killed(&group, usize::from(does == "killed")),
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
