//! `/metrics`: counters in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use crate::app::App;
use crate::engine::{BOUNDS, Stats};

/// Renders all counters.
pub(crate) fn render(app: &App) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<(String, String)>| {
        let _ = writeln!(out, "# HELP mmx_{name} {help}\n# TYPE mmx_{name} {kind}");
        for (suffix, value) in lines {
            let _ = writeln!(out, "mmx_{name}{suffix} {value}");
        }
    };
    if let Ok(counts) = app.requests.0.lock() {
        let lines = counts.iter().map(|((path, status), n)| {
            (format!("{{path=\"{}\",status=\"{status}\"}}", escaped(path)), n.to_string())
        });
        family(
            "requests_total",
            "counter",
            "Requests answered, by route and status.",
            lines.collect(),
        );
    }
    let label = |id: &str| format!("{{model=\"{}\"}}", escaped(id));
    type Read = fn(&Stats) -> u64;
    let values: [(&str, &str, &str, Read); 12] = [
        ("waiting", "gauge", "Texts in the queue.", |s| s.waiting.load(Ordering::Relaxed) as u64),
        ("active", "gauge", "Texts being computed.", |s| s.active.load(Ordering::Relaxed) as u64),
        ("prompt_cache_bytes", "gauge", "Memory of texts that lost their slot.", |s| {
            s.prompt_cache_bytes.load(Ordering::Relaxed) as u64
        }),
        ("prompt_tokens_total", "counter", "Tokens of prompts computed.", |s| {
            s.prompt_tokens.load(Ordering::Relaxed)
        }),
        ("cached_tokens_total", "counter", "Tokens of prompts taken over from other texts.", |s| {
            s.cached_tokens.load(Ordering::Relaxed)
        }),
        ("completion_tokens_total", "counter", "Tokens written.", |s| {
            s.completion_tokens.load(Ordering::Relaxed)
        }),
        ("guessed_tokens_total", "counter", "Tokens drafted ahead and computed.", |s| {
            s.drafted_tokens.load(Ordering::Relaxed)
        }),
        ("accepted_tokens_total", "counter", "Draft tokens that came true.", |s| {
            s.accepted_tokens.load(Ordering::Relaxed)
        }),
        ("steps_total", "counter", "Computations of the runner.", |s| {
            s.steps.load(Ordering::Relaxed)
        }),
        ("texts_done_total", "counter", "Texts that were finished.", |s| {
            s.done.load(Ordering::Relaxed)
        }),
        (
            "texts_cancelled_total",
            "counter",
            "Texts given up: the client left, or its time was over.",
            |s| s.cancelled.load(Ordering::Relaxed),
        ),
        ("texts_failed_total", "counter", "Texts that could not be computed.", |s| {
            s.failed.load(Ordering::Relaxed)
        }),
    ];
    for (name, kind, help, read) in values {
        let lines = app.allowed().map(|m| (label(&m.id), read(m.engine.stats()).to_string()));
        family(name, kind, help, lines.collect());
    }
    let mut lines = Vec::new();
    for model in app.allowed() {
        let (histogram, id) = (&model.engine.stats().first_token, escaped(&model.id));
        let total = histogram.total.load(Ordering::Relaxed);
        for (bound, count) in BOUNDS.iter().zip(&histogram.counts) {
            let suffix = format!("_bucket{{model=\"{id}\",le=\"{bound}\"}}");
            lines.push((suffix, count.load(Ordering::Relaxed).to_string()));
        }
        lines.push((format!("_bucket{{model=\"{id}\",le=\"+Inf\"}}"), total.to_string()));
        let sum = histogram.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        lines.push((format!("_sum{}", label(&model.id)), sum.to_string()));
        lines.push((format!("_count{}", label(&model.id)), total.to_string()));
    }
    let help = "From a request to its first token.";
    family("first_token_seconds", "histogram", help, lines);
    let uptime = app.started.elapsed().as_secs_f64().to_string();
    family("uptime_seconds", "gauge", "Since the server started.", vec![(String::new(), uptime)]);
    if let Some(bytes) = resident_bytes() {
        let value = vec![(String::new(), bytes.to_string())];
        family("resident_memory_bytes", "gauge", "Memory of the process.", value);
    }
    out
}

/// Escapes a label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The resident memory of this process in bytes, where the system tells it (Linux).
fn resident_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
