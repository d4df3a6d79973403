//! `mmx-train meet`: lets the processes of a launcher meet and add up, before a long run depends on
//! it.

use std::time::{Duration, Instant};

use clap::Args;
use mmx_training::distributed::{Place, connect};
use mmx_training::error::TorchError as _;
use mmx_training::model::device;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::launch;

/// Let the processes of a launcher meet, and measure sums over all of them
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  torchrun --no-python --nproc-per-node 4 mmx-train meet
  mmx-train meet --processes 2")]
pub(crate) struct MeetArgs {
    /// Start so many processes on this machine
    #[arg(long, value_name = "N", value_parser = crate::values::at_least_one)]
    processes: Option<usize>,
    /// Size of the tensor that is added up, in MB of float32
    #[arg(long, value_name = "N", default_value_t = 100)]
    mb: usize,
    /// How often it is added up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = crate::values::at_least_one)]
    times: usize,
    /// Where to compute: auto, cpu, cuda, cuda:N or mps
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Seconds that the processes wait for each other
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    limit: u64,
    /// Put exactly one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Meets, adds up, and says from rank 0 who was there and how long it took.
///
/// # Errors
/// Processes that do not come, end, or give a wrong sum.
pub(crate) fn run(args: &MeetArgs) -> Result<()> {
    if launch::wanted(args.processes)? {
        return launch::run(args.processes.unwrap_or(1));
    }
    let Some(place) = Place::from_environment()? else {
        return Err(Error::usage(
            "meet: expected --processes or the variables of a launcher (RANK, WORLD_SIZE), found none",
        ));
    };
    // without it 1 MB takes 120 ms instead of 6 (2 processes on 2 cores): libtorch's threads of both
    // spin for the same cores
    tch::set_num_threads(i32::try_from(place.default_threads()).unwrap_or(1));
    let device = match args.device.as_str() {
        "cuda" => device::pick(Some(&format!("cuda:{}", place.local_rank)))?,
        other => device::pick(Some(other))?,
    };
    let group = connect(&place, device, Duration::from_secs(args.limit))?;
    let size = group.size() as f64;
    let torch = |e| mmx_training::Error::torch("adding up", &e);
    let count = (args.mb.max(1) * 250_000) as i64;
    let mut millis = Vec::new();
    for _ in 0..args.times {
        let mut tensor = Tensor::f_ones([count], (Kind::Float, device)).map_err(torch)?;
        let begun = Instant::now();
        group.all_reduce(&mut tensor)?;
        let sum = tensor.f_mean(Kind::Double).and_then(|t| t.f_double_value(&[])).map_err(torch)?;
        millis.push(begun.elapsed().as_secs_f64() * 1e3);
        if sum != size {
            return Err(Error::failed(format!("adding up ones: expected {size}, found {sum}")));
        }
    }
    group.barrier("the end", Duration::from_secs(args.limit))?;
    if group.rank() > 0 {
        return Ok(());
    }
    millis.sort_by(f64::total_cmp);
    let median = millis[millis.len() / 2];
    let hosts = group.hosts();
    if args.json {
        println!(
            "{}",
            json!({"processes": group.size(), "hosts": hosts, "mb": args.mb, "median_ms": median})
        );
    } else {
        println!("{} processes: {}", group.size(), hosts.join(", "));
        println!("a sum of {} MB takes {median:.0} ms (median of {})", args.mb, args.times);
    }
    Ok(())
}
