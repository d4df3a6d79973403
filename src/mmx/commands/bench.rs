//! `mmx bench`: how fast the runner reads and writes, beside llama.cpp if asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mmx_converters::arch::presets;
use mmx_converters::words::counted;
use mmx_ggml::judge::{LlamaModel, Speed};
use mmx_ggml::run::random_model::write_random_gguf;
use mmx_ggml::run::{bench, bench_streams};
use mmx_ggml::{Clock, FileType, kernel_sets};
use serde_json::{Value, json};

use crate::args::device::DeviceArgs;
use crate::args::values;
use crate::error::{Error, Result};
use crate::format;
use mmx_models::open::Form;

/// Measure how fast a model reads a prompt and writes text
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Prefill reads N made-up tokens at once; decode writes N tokens one by one from an empty context,
without sampling, with a float16 cache, as llama-bench does. Every figure is the median of --repeats.
--llama runs llama.cpp on the same file and threads, in turns with mmx, with flash attention on and
off, and gives the ratio to the better of the two. --streams measures several texts that are written
together, as `mmx serve` does: the tokens per second of all of them.

MMX_CPU=NAME in the environment has mmx's own kernels use a lesser instruction set: avx512-vnni,
avx512, avx2-vnni, avx2, neon-i8mm, neon-dotprod, neon or portable. ggml's stay what they were
compiled for.

Examples:
  mmx bench model.gguf -p 512 -n 128 -t 2
  mmx bench model.gguf --llama --json
  mmx bench model.gguf --streams 1,4,16
  mmx bench --preset minimind2-small --type q4_0 --llama -t 1")]
pub(crate) struct BenchArgs {
    /// A checkpoint, a Transformers folder or a GGUF
    #[arg(required_unless_present = "preset")]
    model: Option<PathBuf>,
    /// Random weights of this preset instead of a model
    #[arg(long, value_name = "NAME", conflicts_with = "model", value_parser = presets::NAMES)]
    preset: Option<String>,
    /// The type of the random weights' file
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_0", requires = "preset")]
    file_type: FileType,
    /// Tokens of the prompt
    #[arg(short = 'p', value_name = "N", default_value_t = 512)]
    n_prompt: usize,
    /// Tokens to write
    #[arg(short = 'n', value_name = "N", default_value_t = 128)]
    n_gen: usize,
    /// Threads
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = values::at_least_one, allow_negative_numbers = true)]
    threads: usize,
    /// Repetitions, of which the median is taken
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = values::at_least_one, allow_negative_numbers = true)]
    repeats: usize,
    /// Measure so many texts written together, too
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = values::at_least_one, allow_negative_numbers = true)]
    streams: Vec<usize>,
    /// Measure llama.cpp too
    #[arg(long)]
    llama: bool,
    /// Leave weights in the file's order
    #[arg(long)]
    no_repack: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs it.
///
/// # Errors
/// A model that cannot be opened, no memory.
pub(crate) fn run(args: BenchArgs, as_json: bool) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
    let path = match (&args.model, &args.preset) {
        (Some(path), _) => path.clone(),
        (None, preset) => {
            let name = preset.as_deref().unwrap_or_default();
            let config = presets::preset(name)
                .ok_or_else(|| Error::usage(format!("no preset is called {name}")))?;
            let path = folder.path().join(format!("{name}-{}.gguf", args.file_type));
            write_random_gguf(&path, &config, args.file_type, 1)?;
            path
        }
    };
    let start = Instant::now();
    let form = Form::open(&path)?;
    let model = args.device.load_with(&form, !args.no_repack)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let peak_rss = peak_rss_bytes();

    let repeats = args.repeats;
    let mut ours = Vec::new();
    let mut theirs = [Vec::new(), Vec::new()]; // without and with flash attention
    let judge = match args.llama {
        true => Some(open_judge(form.path())?),
        false => None,
    };
    let mut together = vec![Vec::new(); args.streams.len()];
    for _ in 0..repeats {
        for (&n, rates) in args.streams.iter().zip(&mut together) {
            rates.push(bench_streams(&model, n, 0, args.n_gen, args.threads, Clock::Wall)?);
        }
        ours.push(bench(&model, args.n_prompt, args.n_gen, args.threads, Clock::Wall)?);
        if let Some((judge, _)) = &judge {
            for (flash, speeds) in [false, true].into_iter().zip(&mut theirs) {
                speeds.push(judge.bench(
                    args.n_prompt,
                    args.n_gen,
                    args.threads,
                    flash,
                    Clock::Wall,
                )?);
            }
        }
    }
    let ours = median(&ours);
    let mut result = json!({
        "model": form.path().file_name().map(|n| n.to_string_lossy()),
        "load_ms": load_ms,
        "prefill_tokens_per_s": ours.prefill,
        "decode_tokens_per_s": ours.decode,
        "peak_rss_bytes": peak_rss,
        "bytes_per_token": model.bytes_per_token(),
        "threads": args.threads,
        "n_prompt": args.n_prompt,
        "n_gen": args.n_gen,
        "repeats": repeats,
        "cpu": model.cpu().name(),
        "kernels": kernel_sets(model.cpu()).into_iter().collect::<BTreeMap<_, _>>(),
    });
    if !together.is_empty() {
        let rows = args.streams.iter().zip(together).map(|(n, mut rates)| {
            rates.sort_by(f64::total_cmp);
            json!({"streams": n, "decode_tokens_per_s": rates[rates.len() / 2]})
        });
        result["streams"] = rows.collect();
    }
    if let Some((_, judge_load_ms)) = judge {
        let [plain, flash] = theirs.map(|speeds| median(&speeds));
        let best = Speed {
            prefill: plain.prefill.max(flash.prefill),
            decode: plain.decode.max(flash.decode),
        };
        result["llama"] = json!({
            "load_ms": judge_load_ms,
            "prefill_tokens_per_s": plain.prefill,
            "decode_tokens_per_s": plain.decode,
            "flash_prefill_tokens_per_s": flash.prefill,
            "flash_decode_tokens_per_s": flash.decode,
            "prefill_ratio": ours.prefill / best.prefill,
            "decode_ratio": ours.decode / best.decode,
        });
    }
    if as_json { format::print_json(&result) } else { format::print(&table(&result)) }
}

/// llama.cpp's model and the time to open it, milliseconds.
fn open_judge(path: &Path) -> Result<(LlamaModel, f64)> {
    if path.is_dir() {
        let path = path.display();
        return Err(Error::usage(format!(
            "--llama: expected a GGUF, which llama.cpp opens, found the folder {path}"
        )));
    }
    let start = Instant::now();
    let judge = LlamaModel::open(path)?;
    Ok((judge, start.elapsed().as_secs_f64() * 1e3))
}

/// The middle of each figure on its own.
fn median(speeds: &[Speed]) -> Speed {
    let middle = |figure: fn(&Speed) -> f64| {
        let mut all: Vec<f64> = speeds.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(0.0)
    };
    Speed { prefill: middle(|s| s.prefill), decode: middle(|s| s.decode) }
}

/// The most memory this process has held, where the system tells (Linux).
fn peak_rss_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The results as people read them.
fn table(result: &Value) -> String {
    let figure = |v: &Value| v.as_f64().map_or("-".to_owned(), |x| format!("{x:.0}"));
    let number = |name: &str| result[name].as_u64().map_or(0, |n| n as usize);
    let mut text = format!(
        "{}: {}, prefill {}, decode {}, median of {}\n\n{:<24}{:>12}{:>12}{:>10}\n",
        result["model"].as_str().unwrap_or_default(),
        counted(number("threads"), "thread"),
        number("n_prompt"),
        counted(number("n_gen"), "token"),
        result["repeats"],
        "",
        "prefill/s",
        "decode/s",
        "load ms"
    );
    let mut row = |name: &str, values: [String; 3]| {
        text.push_str(&format!("{name:<24}{:>12}{:>12}{:>10}\n", values[0], values[1], values[2]));
    };
    row(
        "mmx",
        [&result["prefill_tokens_per_s"], &result["decode_tokens_per_s"], &result["load_ms"]]
            .map(figure),
    );
    for together in result["streams"].as_array().into_iter().flatten() {
        let rate = figure(&together["decode_tokens_per_s"]);
        let name = format!("mmx, {} together", together["streams"]);
        row(&name, [String::new(), rate, String::new()]);
    }
    if let Some(llama) = result.get("llama") {
        row(
            "llama.cpp",
            [&llama["prefill_tokens_per_s"], &llama["decode_tokens_per_s"], &llama["load_ms"]]
                .map(figure),
        );
        let [prefill, decode] =
            [&llama["flash_prefill_tokens_per_s"], &llama["flash_decode_tokens_per_s"]].map(figure);
        row("llama.cpp, flash", [prefill, decode, String::new()]);
        let [prefill, decode] = [&llama["prefill_ratio"], &llama["decode_ratio"]]
            .map(|v| v.as_f64().map_or("-".to_owned(), |x| format!("{x:.2}x")));
        row("mmx / llama.cpp's best", [prefill, decode, String::new()]);
    }
    text.push_str(&format!("\nmmx's kernels ({}):", result["cpu"].as_str().unwrap_or_default()));
    let sets = result["kernels"].as_object().into_iter().flatten();
    let sets = sets.map(|(kind, set)| format!(" {kind} {}", set.as_str().unwrap_or_default()));
    text.push_str(&sets.collect::<Vec<_>>().join(","));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_taken_of_each_figure() {
        let speed = |prefill, decode| Speed { prefill, decode };
        let all = [speed(1.0, 9.0), speed(5.0, 2.0), speed(3.0, 4.0)];
        assert_eq!(median(&all), speed(3.0, 4.0));
        assert_eq!(median(&[]), speed(0.0, 0.0));
    }
}
