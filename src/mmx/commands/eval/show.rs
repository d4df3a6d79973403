//! The results of `mmx eval` as JSON and as tables.

use mmx_converters::words::counted;
use serde_json::{Value, json};

use crate::format::{self, line};
use mmx_eval::Row;
use mmx_eval::choice::{Measure, Part, Request};
use mmx_eval::perplexity::Cut;
use mmx_eval::report::{self, Report};

/// The results as scripts read them.
pub(crate) fn to_json(report: &Report<'_>) -> Value {
    let rows = report.rows.iter().enumerate().map(|(i, row)| {
        let mut object = json!({
            "model": row.path, "engine": row.engine.name(), "type": row.ty.name(), "bytes": row.bytes,
        });
        if let Some(p) = &row.perplexity {
            object["perplexity"] = json!({
                "ppl": p.ppl(), "stderr": p.stderr(), "bits_per_byte": p.bits_per_byte(), "nll": p.nll(),
                "tokens": p.tokens(), "bytes": p.bytes,
            });
            if let Some((_, Cut::Positions { window })) = report.text {
                let parts = p.by_position(window, report::PARTS).into_iter();
                let parts = parts.map(|(from, to, ppl)| json!({"from": from, "to": to, "ppl": ppl}));
                object["perplexity"]["by_position"] = parts.collect();
            }
            let first = report.rows[0].perplexity.as_ref().filter(|_| i > 0);
            if let Some((ratio, low, high)) = first.and_then(|first| p.ratio(first)) {
                let against = json!({"ratio": ratio, "interval": [low, high]});
                object["perplexity"]["against_first"] = against;
            }
        }
        if let (Some(scores), Some(request)) = (&row.choice, report.choice) {
            object["choice"] = scores.to_json(request);
            if let Some(first) = report.rows[0].choice.as_ref().filter(|_| i > 0) {
                let same =
                    |m: &Measure| (m.name().to_owned(), scores.same_answers(first, *m).into());
                let measures = request.measures(Part::All);
                let same: serde_json::Map<_, Value> = measures.iter().map(same).collect();
                object["choice"]["same_answers_as_first"] = same.into();
            }
        }
        object
    });
    let mut object = json!({"rows": rows.collect::<Vec<_>>()});
    if let Some((text, cut)) = report.text {
        object["text"] = json!({
            "path": text.path, "documents": text.documents.len(), "bytes": text.bytes(), "cut": cut.name(),
            "window": cut.window(), "stride": cut.stride(),
        });
    }
    if let Some(request) = report.choice {
        let names = |part| request.measures(part).iter().map(|m| m.name()).collect::<Vec<_>>();
        let benchmarks = request.benchmarks().into_iter().map(|benchmark| {
            let part = Part::Benchmark(benchmark);
            let splits = request.splits(benchmark);
            let splits: Vec<_> = splits.iter().map(|split| split.name()).collect();
            json!({
                "benchmark": benchmark.name(), "title": benchmark.title(), "task": benchmark.task(), "splits": splits,
                "measures": names(part), "chance": request.chance(part),
            })
        });
        object["questions"] = json!({
            "subjects": request.subjects.len(), "questions": request.questions(), "shots": request.shots,
            "measures": names(Part::All), "chance": request.chance(Part::All), "benchmarks": benchmarks.collect::<Vec<_>>(),
        });
    }
    object
}

/// The results as people read them.
pub(crate) fn to_text(report: &Report<'_>) -> String {
    let mut out = String::new();
    let width = report.rows.iter().map(|row| columns(&row.name)).max().unwrap_or(0).max(5);
    let model = |row: &Row| {
        let engine = row.engine.name();
        let size = format::bytes(row.bytes);
        format!("{}  {engine:<9}  {:<6}  {size:>9}", padded(&row.name, width), row.ty.name())
    };
    let head = format!("{:width$}  {:<9}  {:<6}  {:>9}", "model", "engine", "type", "size");
    if let Some((text, cut)) = report.text {
        line!(out, "{}: {}", text.path.display(), cut.describe());
        let against = if report.rows.len() > 1 { "  against the first" } else { "" };
        let titles = format!("{:>8}  {:>22}  {:>13}", "tokens", "perplexity", "bits per byte");
        line!(out, "{head}  {titles}{against}");
        let first = report.rows[0].perplexity.as_ref();
        for (i, row) in report.rows.iter().enumerate() {
            let Some(p) = &row.perplexity else { continue };
            let ppl = format!("{:.4} ± {:.4}", p.ppl(), p.stderr());
            let change = first.filter(|_| i > 0).map(|first| report::change(p, first));
            let change = change.map(|text| format!("  {text}")).unwrap_or_default();
            let (tokens, bits) = (p.tokens(), p.bits_per_byte());
            line!(out, "{}  {tokens:>8}  {ppl:>22}  {bits:>13.4}{change}", model(row));
        }
        if let Cut::Positions { window } = cut {
            by_position(report, window, width, &mut out);
        }
    }
    let Some(request) = report.choice else { return out };
    if report.text.is_some() {
        out.push('\n');
    }
    line!(
        out,
        "{} of {}, {} before each; choosing blindly gets {:.1} % right",
        counted(request.questions(), "question"),
        counted(request.subjects.len(), "subject"),
        counted(request.shots, "example"),
        100.0 * request.chance(Part::All)
    );
    let measures = request.measures(Part::All);
    line!(out, "{head}{}", titles(&measures));
    let first = report.rows.iter().find_map(|row| row.choice.as_ref());
    for (i, row) in report.rows.iter().enumerate() {
        let Some(scores) = &row.choice else { continue };
        line!(out, "{}{}", model(row), shares(row, request, &measures, Part::All));
        if let Some(first) = first.filter(|_| i > 0) {
            let same = measures.iter().map(|&m| {
                let same = format!("{} as the first", scores.same_answers(first, m));
                format!("  {same:>24}")
            });
            line!(out, "{}{}", padded("", columns(&head)), same.collect::<String>());
        }
        if scores.cut > 0 {
            line!(
                out,
                "  {} prompts were longer than the context and lost their beginning",
                scores.cut
            );
        }
    }
    for row in report.rows.iter().filter(|_| request.subjects.len() > 1) {
        by_subject(row, request, &mut out);
    }
    out
}

/// The measures' titles as the heads of columns.
fn titles(measures: &[Measure]) -> String {
    measures.iter().map(|m| format!("  {:>24}", m.title())).collect()
}

/// A model's shares of a part, a column for each measure.
fn shares(row: &Row, request: &Request, measures: &[Measure], part: Part) -> String {
    let counts =
        measures.iter().filter_map(|&m| Some(row.choice.as_ref()?.count(request, m, part)));
    counts.map(|count| format!("  {:>24}", report::share(count))).collect()
}

/// A model's shares by benchmark and subject, with the means over a benchmark's subjects.
fn by_subject(row: &Row, request: &Request, out: &mut String) {
    let Some(scores) = &row.choice else { return };
    line!(out, "\n{}", row.name);
    let several = request.benchmarks().len() > 1;
    for benchmark in request.benchmarks() {
        let part = Part::Benchmark(benchmark);
        let measures = request.measures(part);
        let count = request.subjects_of(part).count();
        let questions: usize = request.subjects_of(part).map(|(_, s)| s.questions.len()).sum();
        if several {
            let title = padded(benchmark.title(), 28);
            let chance = 100.0 * request.chance(part);
            line!(out, "  {title}{:>6}{}  (blindly {chance:.1} %)", "", titles(&measures));
        }
        for (i, subject) in request.subjects_of(part) {
            let cells = shares(row, request, &measures, Part::Subject(i));
            line!(out, "  {}{:>6}{cells}", padded(&subject.name, 28), subject.questions.len());
        }
        if count < 2 {
            continue;
        }
        if several {
            let cells = shares(row, request, &measures, part);
            line!(out, "  {}{questions:>6}{cells}", padded("all", 28));
        }
        let means = measures.iter().map(|&m| {
            let mean = scores.mean_of_subjects(request, m, part);
            format!("  {:>24}", report::percent(mean))
        });
        line!(out, "  {}{:>6}{}", padded("mean of subjects", 28), "", means.collect::<String>());
    }
}

/// The perplexity of each part of the window, a line for a model.
fn by_position(report: &Report<'_>, window: usize, width: usize, out: &mut String) {
    let rows = || report.rows.iter().filter_map(|row| Some((row, row.perplexity.as_ref()?)));
    let Some((_, first)) = rows().next() else { return };
    let ends = first.by_position(window, report::PARTS).into_iter();
    let titles: String = ends.map(|(_, to, _)| format!("  {:>7}", format!("<{to}"))).collect();
    line!(out, "\n{}{titles}", padded("perplexity at", width));
    for (row, p) in rows() {
        let cells = p.by_position(window, report::PARTS).into_iter().map(|(_, _, ppl)| match ppl {
            Some(ppl) => format!("  {ppl:>7.2}"),
            None => format!("  {:>7}", "-"),
        });
        line!(out, "{}{}", padded(&row.name, width), cells.collect::<String>());
    }
}

/// The width of a text in a table, columns.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(mmx_eval::columns).sum()
}

/// A text with blanks up to a width.
pub(super) fn padded(text: &str, width: usize) -> String {
    format!("{text}{:1$}", "", width.saturating_sub(columns(text)))
}
