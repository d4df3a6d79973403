//! The measurements of `scripts/bench-run`: our runner and llama.cpp (the linked library) on the
//! same file.
//!
//!   bench_run make PRESET TYPE TOKENIZER OUT      a GGUF with random weights (TOKENIZER may be -: none)
//!   bench_run first mmx|llama|flash FILE THREADS  a fresh process from the file to its first token
//!   bench_run speed FILE THREADS REPEATS wall|cpu prefill (512) and decode (128), in turns
//!   bench_run batches FILE THREADS REPEATS wall|cpu SIZE..   steps of so many tokens, in turns
//!   bench_run decode mmx|llama|flash FILE THREADS decode (128) of one engine
//!   bench_run steps mmx|llama|flash FILE SIZE N   N steps of so many tokens, one thread, twice: for counting instructions
//!   bench_run policy PRESET TYPE THREADS ROWS PROMPT NEW   weights in memory overwritten (ms, the least of 20), then so
//!       many rows in groups of 8 written after made-up prompts: ids per second, wall and CPU
//!
//! Each prints one line of JSON. Memory is the process's largest, so `first` measures one engine
//! each.
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use mmx_converters::arch::{Config, Role, presets, weights};
use mmx_converters::gguf::Gguf;
use mmx_converters::random::Random;
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::judge::LlamaModel;
use mmx_ggml::run::random_model::random_gguf;
use mmx_ggml::run::{
    KvType, LoadOptions, Model, Policy, PolicyOptions, Prompt, Sampling, Session, SessionOptions,
    Values, bench, bench_steps,
};
use mmx_ggml::{Clock, FileType};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Tokens of the prompt before the first token, and cells of the cache it is read into.
const FIRST_PROMPT: usize = 32;
const FIRST_N_CTX: usize = 2048;
/// As llama-bench's usual tests: pp512 and tg128.
const PREFILL: usize = 512;
const DECODE: usize = 128;
/// Tokens read in steps of a few.
const STEPS_TOKENS: usize = 128;

fn main() -> Result<()> {
    let start = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["make", preset, file, tokenizer, out] => {
            let config = presets::preset(preset).ok_or("no such preset")?;
            let tokenizer = match tokenizer {
                "-" => None,
                folder => Some(Tokenizer::open(folder)?),
            };
            fs_err::write(out, random_gguf(&config, tokenizer.as_ref(), file.parse()?, 1)?)?;
            json!({"file": out})
        }
        ["first", engine, file, threads] => first(engine, file.as_ref(), threads.parse()?, start)?,
        ["speed", file, threads, repeats, clock] => {
            let clock = if clock == "cpu" { Clock::Cpu } else { Clock::Wall };
            speed(file.as_ref(), threads.parse()?, repeats.parse()?, clock)?
        }
        ["batches", file, threads, repeats, clock, ref sizes @ ..] => {
            let clock = if clock == "cpu" { Clock::Cpu } else { Clock::Wall };
            batches(file.as_ref(), threads.parse()?, repeats.parse()?, clock, sizes)?
        }
        ["decode", engine, file, threads] => decode(engine, file.as_ref(), threads.parse()?)?,
        ["policy", preset, file, threads, rows, prompt, new] => {
            let config = presets::preset(preset).ok_or("no such preset")?;
            let sizes = [rows.parse()?, prompt.parse()?, new.parse()?];
            policy(&config, file.parse()?, threads.parse()?, sizes)?
        }
        ["steps", engine, file, size, n] => {
            steps(engine, file.as_ref(), size.parse()?, n.parse()?)?
        }
        _ => return Err("usage: see the head of ggml/examples/bench_run.rs".into()),
    };
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}

fn first(engine: &str, file: &Path, threads: usize, start: Instant) -> Result<Value> {
    let ids: Vec<u32> = (0..FIRST_PROMPT as u32).map(|i| 10 + i * 7).collect();
    let ms = || start.elapsed().as_secs_f64() * 1e3;
    let clock = Clock::Cpu;
    let (load_ms, first_ms, first_cpu_ms);
    let mut parts = vec![clock.now() * 1e3]; // the process's start
    if engine == "mmx" {
        let model = Model::load(file, LoadOptions::default())?;
        parts.push(clock.now() * 1e3); // weights
        model.tokenizer()?;
        parts.push(clock.now() * 1e3);
        load_ms = ms();
        let options =
            SessionOptions { n_ctx: Some(FIRST_N_CTX), kv: KvType::F16, threads: Some(threads) };
        let mut session = Session::new(&model, options)?;
        session.prefill(&ids)?;
        // before anything is dropped: what is still being packed is waited for there
        (first_ms, first_cpu_ms) = (ms(), clock.now() * 1e3);
    } else {
        let model = LlamaModel::open(file)?;
        load_ms = ms();
        let then = |_| (ms(), clock.now() * 1e3);
        (first_ms, first_cpu_ms) =
            model.first_token(&ids, FIRST_N_CTX, threads, engine == "flash", then)?;
    }
    Ok(json!({
        "load_ms": load_ms,
        "first_token_ms": first_ms,
        "cpu_ms_before": parts,
        "first_token_cpu_ms": first_cpu_ms, // of the process, since it began
        "peak_rss_bytes": peak_rss_bytes(),
    }))
}

fn speed(file: &Path, threads: usize, repeats: usize, clock: Clock) -> Result<Value> {
    let model = Model::load(file, LoadOptions::default())?;
    let judge = LlamaModel::open(file)?;
    let bytes = model.bytes_per_token();
    let mut engines = vec![(Vec::new(), Vec::new()); 3];
    let mut bandwidth = Vec::new();
    for _ in 0..repeats {
        let speeds = [
            bench(&model, PREFILL, DECODE, threads, clock)?,
            judge.bench(PREFILL, DECODE, threads, false, clock)?,
            judge.bench(PREFILL, DECODE, threads, true, clock)?,
        ];
        for ((prefill, decode), speed) in engines.iter_mut().zip(speeds) {
            prefill.push(speed.prefill);
            decode.push(speed.decode);
        }
        bandwidth.push(read_rate(bytes, threads, clock));
    }
    let engine = |i: usize| json!({"prefill": engines[i].0, "decode": engines[i].1});
    Ok(json!({
        "mmx": engine(0), "llama": engine(1), "flash": engine(2),
        "bytes_per_token": bytes,
        "bytes_per_s": bandwidth,
    }))
}

/// Tokens per second in steps of each of `sizes` tokens, by size, a list of all repeats.
fn batches(
    file: &Path,
    threads: usize,
    repeats: usize,
    clock: Clock,
    sizes: &[&str],
) -> Result<Value> {
    let model = Model::load(file, LoadOptions::default())?;
    let judge = LlamaModel::open(file)?;
    let mut engines = vec![BTreeMap::<&str, Vec<f64>>::new(); 3];
    for _ in 0..repeats {
        for &name in sizes {
            let size: usize = name.parse()?;
            let steps = (STEPS_TOKENS / size.max(1)).max(1);
            let rates = [
                bench_steps(&model, size, steps, threads, clock)?,
                judge.bench_steps(size, steps, threads, false, clock)?,
                judge.bench_steps(size, steps, threads, true, clock)?,
            ];
            for (found, rate) in engines.iter_mut().zip(rates) {
                found.entry(name).or_default().push(rate);
            }
        }
    }
    Ok(json!({"mmx": engines[0], "llama": engines[1], "flash": engines[2]}))
}

fn decode(engine: &str, file: &Path, threads: usize) -> Result<Value> {
    let speed = if engine == "mmx" {
        let model = Model::load(file, LoadOptions::default())?;
        bench(&model, 0, 4 * DECODE, threads, Clock::Wall)?
    } else {
        let flash = engine == "flash";
        LlamaModel::open(file)?.bench(0, DECODE, threads, flash, Clock::Wall)?
    };
    Ok(json!({"decode": speed.decode}))
}

/// Weights handed over, and rows written, by a model that is trained meanwhile.
fn policy(
    config: &Config,
    file: FileType,
    threads: usize,
    [rows, length, max_new]: [usize; 3],
) -> Result<Value> {
    let mut random = Random::new(1, 0);
    let table = weights(config);
    let values: Vec<Vec<f32>> = table
        .iter()
        .map(|w| {
            let middle = f32::from(w.role == Role::Norm);
            (0..w.elements()).map(|_| middle + 0.07 * (random.unit() as f32 - 0.5)).collect()
        })
        .collect();
    let options = PolicyOptions { file, threads: Some(threads), ..PolicyOptions::default() };
    let mut policy = Policy::new(config, options)?;
    let mut least = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        let given = table.iter().zip(&values);
        policy.take(&mut given.map(|(weight, values)| Values {
            name: &weight.name,
            shape: &weight.shape,
            values,
        }))?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    let prompt = |row: usize| Prompt {
        ids: (0..length).map(|i| ((row / 8 + 7 * i) % config.vocab_size) as u32).collect(),
        max_new,
        seed: row as u64,
    };
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let mut rates = Vec::new();
    for clock in [Clock::Wall, Clock::Cpu, Clock::Wall] {
        let start = clock.now();
        let prompts = (0..rows).map(prompt).collect();
        policy.write(prompts, &sampling, &[], &mut |_, _| Ok(None))?;
        rates.push((rows * max_new) as f64 / (clock.now() - start));
    }
    Ok(json!({"take_ms": least * 1e3, "ids_per_s": rates[2].max(rates[0]),
        "ids_per_cpu_s": rates[1], "slots": policy.slots().n_slots(), "peak_bytes": peak_rss_bytes()}))
}

/// What scripts/count-instructions counts; the weights that a token meets.
fn steps(engine: &str, file: &Path, size: usize, n: usize) -> Result<Value> {
    if engine == "mmx" {
        let model = Model::load(file, LoadOptions::default())?;
        // what is read from the file at first is packed by a thread after the first step
        bench_steps(&model, size, 1, 1, Clock::Wall)?;
        let mut quiet = 0; // looks in a row: a thread has its name only once it runs
        while quiet < 20 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            quiet = if is_running("packing") { 0 } else { quiet + 1 };
        }
        bench_steps(&model, size, n, 1, Clock::Wall)?;
    } else {
        let judge = LlamaModel::open(file)?;
        judge.bench_steps(size, 1, 1, engine == "flash", Clock::Wall)?;
        judge.bench_steps(size, n, 1, engine == "flash", Clock::Wall)?;
    }
    let gguf = Gguf::open(file)?;
    let matrices = gguf.tensors().iter().filter(|tensor| tensor.shape.len() == 2);
    let weights: usize = matrices.map(|matrix| matrix.shape.iter().product::<usize>()).sum();
    Ok(json!({"weights": weights}))
}

/// True while this process has a thread of that name (Linux).
fn is_running(name: &str) -> bool {
    let Ok(threads) = fs_err::read_dir("/proc/self/task") else { return false };
    let comm = |thread: std::io::Result<fs_err::DirEntry>| {
        fs_err::read_to_string(thread.ok()?.path().join("comm")).ok()
    };
    threads.filter_map(comm).any(|comm| comm.trim() == name)
}

/// Bytes per second that `threads` threads read together, each its part of `bytes` again and again,
/// as decoding reads the weights: from a cache where they fit, else from memory.
fn read_rate(bytes: usize, threads: usize, clock: Clock) -> f64 {
    /// A fortieth of a second at the usual rate.
    const TOTAL: usize = 1 << 30;
    let words = bytes / 8 / threads;
    let parts: Vec<Vec<u64>> = (0..threads).map(|i| vec![i as u64 + 1; words]).collect();
    let rounds = (TOTAL / bytes.max(1)).max(2);
    let read = |part: &[u64]| {
        let mut sums = [0u64; 64]; // eight registers
        for chunk in part.as_chunks::<64>().0 {
            for (sum, word) in sums.iter_mut().zip(chunk) {
                *sum ^= word;
            }
        }
        std::hint::black_box(sums);
    };
    parts.iter().for_each(|part| read(part));
    let start = clock.now();
    std::thread::scope(|scope| {
        let rounds = |part: &[u64]| (0..rounds).for_each(|_| read(part));
        for part in &parts[1..] {
            scope.spawn(move || rounds(part));
        }
        rounds(&parts[0]);
    });
    (words * 8 * threads * rounds) as f64 / (clock.now() - start)
}

/// The most memory this process has held, where the system tells (Linux).
fn peak_rss_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
