//! The page of all measurements: tables and plots, no request to anywhere, the same bytes for the
//! same numbers.
//!
//! In: the rows and what was asked. Out: HTML with inline SVG, light or dark as the reader's system
//! is.

use std::fmt::Write as _;
use std::path::Path;

use mmx_converters::file;
use mmx_converters::words::counted;

use super::choice::{Measure, Part, Request};
use super::perplexity::{Cut, Perplexity, Text};
use super::questions::Subject;
use super::row::Row;
use super::stats::{Z95, interval};
use super::svg::{Group, Mark, Point, escape, intervals, scatter};
use mmx_converters::Result;

/// Parts of a window whose perplexities are told apart.
pub const PARTS: usize = 16;

/// How pages look.
pub(crate) const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1d2430;--dim:#667;--bg:#fff;--line:#d8dce3;--c0:#1f77b4;--c1:#d95f02;--c2:#2a9d3a;\
--c3:#c62828;--c4:#7b52ab;--c5:#7a5548}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ef;--dim:#9aa3b2;--bg:#14171c;--line:#333a45;--c0:#64b5f6;--c1:#ffb066;\
--c2:#7bd88f;--c3:#ff8a80;--c4:#c5a3ff;--c5:#c9a89c}}\
body{font:15px/1.5 system-ui,\"Noto Sans CJK SC\",\"Microsoft YaHei\",\"PingFang SC\",sans-serif;color:var(--fg);\
background:var(--bg);max-width:900px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}p,li,figcaption{color:var(--dim)}figure{margin:1rem 0}\
.wide,figure{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}svg{width:100%;min-width:640px;height:auto;font-size:12px}svg text{fill:var(--fg)}\
svg .tick,svg .value{fill:var(--dim)}.grid{stroke:var(--line)}.chance{stroke:var(--dim);stroke-dasharray:4 3}\
.name{display:inline-block;margin-left:1em}.key{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.35em}\
.s0{stroke:var(--c0);fill:var(--c0)}.s1{stroke:var(--c1);fill:var(--c1)}.s2{stroke:var(--c2);fill:var(--c2)}\
.s3{stroke:var(--c3);fill:var(--c3)}.s4{stroke:var(--c4);fill:var(--c4)}.s5{stroke:var(--c5);fill:var(--c5)}\
.k0{background:var(--c0)}.k1{background:var(--c1)}.k2{background:var(--c2)}.k3{background:var(--c3)}\
.k4{background:var(--c4)}.k5{background:var(--c5)}svg g line{stroke-width:2}";

/// The parts of a page.
pub struct Report<'a> {
    /// The models, the one that others are compared with first.
    pub rows: &'a [Row],
    /// The text and how it was cut.
    pub text: Option<(&'a Text, Cut)>,
    /// The questions.
    pub choice: Option<&'a Request>,
}

/// Writes the page.
///
/// # Errors
/// A file that cannot be written.
pub fn write(report: &Report<'_>, path: &Path) -> Result<()> {
    file::write_bytes(path, html(report).as_bytes())
}

/// Makes the page as HTML.
pub fn html(report: &Report<'_>) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>mmx eval</title><style>{STYLE}</style></head><body>\n<h1>Evaluation of {}</h1>\n",
        match report.rows {
            [row] => escape(&row.name),
            rows => counted(rows.len(), "model"),
        }
    );
    if let Some((text, cut)) = report.text {
        perplexity(report.rows, text, cut, &mut out);
    }
    if let Some(request) = report.choice {
        choice(report.rows, request, &mut out);
    }
    let _ = write!(
        out,
        "<p>mmx {}. Intervals are 95 %: Wilson's for shares, 1.96 standard errors for perplexity; against the \
         first: of the tokens' differences.</p>\n</body></html>\n",
        env!("CARGO_PKG_VERSION")
    );
    out
}

/// The legend: names of the models in their colours.
fn key(rows: &[Row]) -> String {
    let keys = rows.iter().enumerate().map(|(i, row)| {
        let name = escape(&row.name);
        format!(" <span class=\"name\"><span class=\"key k{}\"></span>{name}</span>", i % 6)
    });
    keys.collect()
}

/// The cells of a table that name the model.
fn model_cells(row: &Row) -> String {
    format!(
        "<td>{}</td><td>{}</td><td>{}</td><td>{:.2} MB</td>",
        escape(&row.name),
        row.engine.name(),
        row.ty.name(),
        row.bytes as f64 / 1e6
    )
}

/// Adds a plot with what is said below it.
pub(crate) fn figure(svg: &str, caption: &str, out: &mut String) {
    let _ = writeln!(out, "<figure>{svg}<figcaption>{caption}</figcaption></figure>");
}

fn perplexity(rows: &[Row], text: &Text, cut: Cut, out: &mut String) {
    let _ = writeln!(
        out,
        "<h2>Perplexity</h2>\n<p>{}: {}, {}; {}.</p>\n<div class=\"wide\"><table><tr><th>model</th>\
         <th>engine</th><th>type</th><th>size</th><th>tokens</th><th>perplexity</th><th>against the first</th>\
         <th>bits per byte</th></tr>",
        escape(&text.path.display().to_string()),
        counted(text.documents.len(), "document"),
        counted(text.bytes(), "byte"),
        cut.describe()
    );
    let first = rows.iter().find_map(|row| row.perplexity.as_ref());
    for (i, row) in rows.iter().enumerate() {
        let Some(p) = &row.perplexity else { continue };
        let change = first.filter(|_| i > 0).map(|first| change(p, first)).unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr>{}<td>{}</td><td>{:.4} ± {:.4}</td><td>{change}</td><td>{:.4}</td></tr>",
            model_cells(row),
            p.tokens(),
            p.ppl(),
            p.stderr(),
            p.bits_per_byte()
        );
    }
    out.push_str("</table></div>\n");
    let measured =
        || rows.iter().enumerate().filter_map(|(i, r)| Some((i, r, r.perplexity.as_ref()?)));
    let groups: Vec<Group> = measured()
        .map(|(series, row, p)| {
            let (value, room) = (p.ppl(), Z95 * p.stderr());
            let marks = vec![Mark { value, low: value - room, high: value + room, series }];
            Group { label: row.name.clone(), marks }
        })
        .collect();
    let caption = "Perplexity, lower is better. The models read the same text: a difference between two is surer than \
                   these intervals say, see the table.";
    figure(&intervals("perplexity", &groups, false, None), caption, out);
    if let Cut::Positions { window } = cut {
        let points: Vec<Point> = measured()
            .flat_map(|(series, row, p)| {
                let parts = p.by_position(window, PARTS);
                let last = parts.len() - 1;
                let point = move |(i, (from, to, ppl)): (usize, (usize, usize, Option<f64>))| {
                    let label = if i == last { row.name.clone() } else { String::new() };
                    Some(Point { label, x: (from + to) as f64 / 2.0, y: ppl?, series })
                };
                parts.into_iter().enumerate().filter_map(point)
            })
            .collect();
        let svg = scatter("perplexity by position", "position, tokens", "perplexity", &points);
        figure(
            &svg,
            "Perplexity by position: where it rises, what came before no longer helps.",
            out,
        );
    }
    if rows.len() > 1 {
        let points: Vec<Point> = measured()
            .map(|(series, row, p)| Point {
                label: row.name.clone(),
                x: row.bytes as f64 / 1e6,
                y: p.bits_per_byte(),
                series,
            })
            .collect();
        let svg = scatter("bits per byte by size", "size, MB", "bits per byte", &points);
        figure(&svg, "What a smaller file costs: bits per byte, lower is better.", out);
    }
}

fn choice(rows: &[Row], request: &Request, out: &mut String) {
    let _ = write!(
        out,
        "<h2>Multiple choice</h2>\n<p>{} of {}, {} before each; choosing blindly gets {:.1} % right.</p>\n<ul>",
        counted(request.questions(), "question"),
        counted(request.subjects.len(), "subject"),
        counted(request.shots, "example"),
        100.0 * request.chance(Part::All)
    );
    let benchmarks = request.benchmarks();
    for benchmark in &benchmarks {
        let _ = write!(out, "<li>{}</li>", escape(&request.describe(*benchmark)));
    }
    out.push_str("</ul>\n");
    shares(rows, request, Part::All, out);
    let measures = request.measures(Part::All);
    let all: Vec<Group> = measures
        .iter()
        .map(|&m| Group { label: m.title().to_owned(), marks: marks(rows, request, m, Part::All) })
        .collect();
    let caption =
        format!("Share of right answers over all questions, by what decides.{}", key(rows));
    let chance = request.chance(Part::All);
    figure(&intervals("accuracy", &all, true, Some(chance)), &caption, out);
    if request.subjects.len() < 2 {
        return;
    }
    for benchmark in benchmarks.iter().copied().filter(|_| benchmarks.len() > 1) {
        let _ = writeln!(out, "<h3>{}</h3>", escape(benchmark.title()));
        shares(rows, request, Part::Benchmark(benchmark), out);
    }
    // of the three ways to weigh whole answers the plot shows the usual one
    let plotted = [Measure::Letter, Measure::AnswerPerCharacter];
    for measure in plotted.into_iter().filter(|m| measures.contains(m)) {
        let asked =
            |(i, _): &(usize, &Subject)| request.measures(Part::Subject(*i)).contains(&measure);
        let groups: Vec<Group> = request
            .subjects_of(Part::All)
            .filter(asked)
            .map(|(i, s)| Group {
                label: s.name.clone(),
                marks: marks(rows, request, measure, Part::Subject(i)),
            })
            .collect();
        let caption = format!("By subject, decided by {}.{}", measure.title(), key(rows));
        let title = format!("accuracy by subject, {}", measure.title());
        figure(&intervals(&title, &groups, true, Some(chance)), &caption, out);
    }
    by_subject(rows, request, &measures, out);
}

/// A mark for each model that was asked a part by a measure.
fn marks(rows: &[Row], request: &Request, measure: Measure, part: Part) -> Vec<Mark> {
    let mark = |(series, row): (usize, &Row)| {
        let (right, all) = row.choice.as_ref()?.count(request, measure, part);
        let (low, high) = interval(right, all);
        Some(Mark { value: right as f64 / all.max(1) as f64, low, high, series })
    };
    rows.iter().enumerate().filter_map(mark).collect()
}

/// The shares of a part, a line for each model; of a benchmark with the means of its subjects.
fn shares(rows: &[Row], request: &Request, part: Part, out: &mut String) {
    let measures = request.measures(part);
    let has_means = part != Part::All && request.subjects_of(part).count() > 1;
    out.push_str(
        "<div class=\"wide\"><table><tr><th>model</th><th>engine</th><th>type</th><th>size</th>",
    );
    for measure in &measures {
        let _ = write!(out, "<th>{}</th>", measure.title());
    }
    out.push_str("</tr>\n");
    let first = rows.iter().find_map(|row| row.choice.as_ref()).filter(|_| part == Part::All);
    for (i, row) in rows.iter().enumerate() {
        let Some(scores) = &row.choice else { continue };
        let _ = write!(out, "<tr>{}", model_cells(row));
        for &measure in &measures {
            let count = scores.count(request, measure, part);
            let same = first.filter(|_| i > 0).map(|first| scores.same_answers(first, measure));
            let same = same.map(|n| format!("<br><small>{n} of {} as the first</small>", count.1));
            let mean = has_means.then(|| scores.mean_of_subjects(request, measure, part));
            let mean =
                mean.map(|mean| format!("<br><small>mean of subjects {}</small>", percent(mean)));
            let (same, mean) = (same.unwrap_or_default(), mean.unwrap_or_default());
            let _ = write!(out, "<td>{}{same}{mean}</td>", share(count));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// A line for each subject.
fn by_subject(rows: &[Row], request: &Request, measures: &[Measure], out: &mut String) {
    out.push_str("<div class=\"wide\"><table><tr><th>subject</th><th>questions</th>");
    for row in rows {
        for measure in measures {
            let _ = write!(out, "<th>{}<br>{}</th>", escape(&row.name), measure.title());
        }
    }
    out.push_str("</tr>\n");
    for (i, subject) in request.subjects.iter().enumerate() {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td>",
            escape(&subject.name),
            subject.questions.len()
        );
        for scores in rows.iter().filter_map(|row| row.choice.as_ref()) {
            for &measure in measures {
                let count = scores.count(request, measure, Part::Subject(i));
                let _ = write!(out, "<td>{}</td>", share(count));
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// `+0.84 % (+0.31 to +1.37)`: a perplexity against another of the same tokens.
pub fn change(p: &Perplexity, first: &Perplexity) -> String {
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    p.ratio(first).map_or_else(
        || "other tokens".to_owned(),
        |(ratio, low, high)| {
            format!("{:+.2} % ({:+.2} to {:+.2})", percent(ratio), percent(low), percent(high))
        },
    )
}

/// `62.5 % (45.3 to 77.1)`; a dash where nothing was asked.
pub fn share((right, all): (usize, usize)) -> String {
    if all == 0 {
        return "-".to_owned();
    }
    percent((right as f64 / all as f64, interval(right, all)))
}

/// A share and its interval: `62.5 % (45.3 to 77.1)`.
pub fn percent((share, (low, high)): (f64, (f64, f64))) -> String {
    format!("{:.1} % ({:.1} to {:.1})", 100.0 * share, 100.0 * low, 100.0 * high)
}
