//! Judged answers as JSON and as tables.

use std::path::{Path, PathBuf};

use mmx_converters::words::counted;
use mmx_eval::judged::{self, Answer, Judged, Page, Standing};
use serde_json::{Map, Value, json};

use super::show::{columns, padded};
use crate::format::line;

/// The results as scripts read them.
pub(super) fn to_json(
    page: &Page<'_>,
    models: &[PathBuf],
    answers: &Path,
    verdicts: Option<&Path>,
) -> Value {
    let rows = page.contestants.iter().zip(models).zip(page.answers).map(|((c, path), answers)| {
        let all = || answers.iter().flatten().flatten();
        json!({
            "model": path.to_string_lossy(), "name": c.name, "answered": answers.iter().flatten().count(),
            "tokens": all().filter_map(|a| a.tokens).sum::<u64>(),
            "seconds": (all().map(|a| a.seconds).sum::<f64>() * 1e3).round() / 1e3,
            "cut_off": all().filter(|a| is_cut(a)).count(),
        })
    });
    let mut object = json!({
        "questions": page.questions.len(), "answers": answers.to_string_lossy(),
        "models": rows.collect::<Vec<_>>(),
    });
    let Some(Judged { judge, pairs, tally }) = &page.judged else { return object };
    let ranking = |standings: &[Standing]| -> Value {
        standings.iter().map(|standing| of_standing(page, standing)).collect()
    };
    let categories: Map<String, Value> = tally
        .categories
        .iter()
        .map(|(name, questions, standings)| {
            (name.clone(), json!({ "questions": questions, "ranking": ranking(standings) }))
        })
        .collect();
    let cell = |&(points, all): &(f64, usize)| json!({ "points": points, "of": all });
    let matrix = tally.matrix.iter().map(|row| row.iter().map(cell).collect::<Value>());
    let said = || pairs.iter().flat_map(|pair| pair.said.iter().flatten());
    let places = &tally.places;
    object["verdicts"] = json!(verdicts.map(Path::to_string_lossy));
    object["judge"] = json!({
        "model": judge, "answers": said().count(), "tokens": said().filter_map(|s| s.tokens).sum::<u64>(),
        "first": places.first, "second": places.second, "tie": places.tie, "unparsed": places.unparsed,
        "pairs_in_both_orders": places.pairs, "consistent": places.consistent,
        "favours_first": places.favours_first, "favours_second": places.favours_second,
    });
    object["pairs"] = json!({
        "compared": tally.compared, "same": tally.same, "unparsed": tally.unparsed, "unasked": tally.unasked,
    });
    object["ranking"] = ranking(&tally.ranking);
    object["matrix"] = matrix.collect();
    object["categories"] = categories.into();
    object
}

fn of_standing(page: &Page<'_>, standing: &Standing) -> Value {
    let score = standing.score;
    json!({
        "name": page.contestants[standing.model].name, "score": score.value, "interval": [score.low, score.high],
        "won": standing.won, "tied": standing.tied, "lost": standing.lost, "share": standing.share(),
    })
}

fn is_cut(answer: &Answer) -> bool {
    answer.finish == "length"
}

/// The results as people read them.
pub(super) fn to_text(page: &Page<'_>) -> String {
    let mut out = String::new();
    let names = page.contestants.iter().map(|c| columns(&c.name));
    let width = names.max().unwrap_or(0).max(5);
    line!(
        out,
        "{}, {}",
        counted(page.questions.len(), "question"),
        counted(page.contestants.len(), "model")
    );
    line!(
        out,
        "{:width$}  {:>8}  {:>8}  {:>8}  {:>7}",
        "model",
        "answered",
        "tokens",
        "seconds",
        "cut off"
    );
    for (contestant, answers) in page.contestants.iter().zip(page.answers) {
        let all = || answers.iter().flatten().flatten();
        line!(
            out,
            "{}  {:>8}  {:>8}  {:>8.1}  {:>7}",
            padded(&contestant.name, width),
            answers.iter().flatten().count(),
            all().filter_map(|a| a.tokens).sum::<u64>(),
            all().map(|a| a.seconds).sum::<f64>(),
            all().filter(|a| is_cut(a)).count()
        );
    }
    let Some(Judged { judge, tally, .. }) = &page.judged else { return out };
    line!(out, "\nby {judge}: {} compared in both orders", counted(tally.compared, "pair"));
    let left_out = judged::left_out(tally);
    if !left_out.is_empty() {
        line!(out, "{left_out}");
    }
    table(page, &tally.ranking, width, &mut out);
    for (name, questions, standings) in &tally.categories {
        line!(out, "\n{name}, {}", counted(*questions, "question"));
        table(page, standings, width, &mut out);
    }
    line!(out, "\n{}", judged::in_words(&tally.places));
    out
}

/// Models with their scores, the best first.
fn table(page: &Page<'_>, standings: &[Standing], width: usize, out: &mut String) {
    let head = format!(
        "{:>6}  {:>14}  {:>5}  {:>5}  {:>5}  {:>7}",
        "score", "95 %", "won", "tied", "lost", "points"
    );
    line!(out, "{:width$}  {head}", "model");
    for standing in standings {
        let score = standing.score;
        line!(
            out,
            "{}  {:>6.0}  {:>14}  {:>5}  {:>5}  {:>5}  {:>5.1} %",
            padded(&page.contestants[standing.model].name, width),
            score.value,
            format!("{:.0} to {:.0}", score.low, score.high),
            standing.won,
            standing.tied,
            standing.lost,
            100.0 * standing.share()
        );
    }
}
