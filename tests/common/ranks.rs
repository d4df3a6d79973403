//! Ranks that are the test program itself, started anew for each, where its ignored test `rank` is what
//! each does.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mmx_training::distributed::{Place, connect};
use mmx_training::ranks::Ranks;
use tch::Device;

use crate::port::free_port;

/// What a rank does.
const DOES: &str = "MMX_TEST_DOES";

/// Starts `size` ranks that do the same, and waits until all have done it.
pub(crate) fn run(does: &str, size: usize) {
    let port = free_port();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "rank", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(DOES, does).env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("a rank starts")
    };
    let started: Vec<Child> = (0..size).map(start).collect();
    for (rank, child) in started.into_iter().enumerate() {
        let out = child.wait_with_output().expect("it ends");
        let (stdout, stderr) = (out.stdout, out.stderr);
        let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(out.status.success(), "{does}, rank {rank} of {size}: {}", said.join("\n"));
    }
}

/// What this rank does, and all of them.
pub(crate) fn this() -> (String, Ranks) {
    let does = std::env::var(DOES).expect("what to do");
    let place = Place::from_environment().expect("variables").expect("many processes");
    tch::set_num_threads(1);
    let group = connect(&place, Device::Cpu, Duration::from_secs(60)).expect("a group");
    (does, Ranks::new(group, Device::Cpu))
}
