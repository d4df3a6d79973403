//! The page of answers side by side, with verdicts and the ranking where a judge was asked.
//!
//! What models wrote is hostile text: all of it is escaped, and the page forbids itself scripts,
//! pictures and every request besides.

use std::fmt::Write as _;

use mmx_converters::words::counted;

use super::answers::{Answer, Answers, Contestant};
use super::judging::{Outcome, Pair};
use super::questions::Question;
use super::tally::{Places, Standing, Tally};
use crate::report::{STYLE, figure};
use crate::svg::{Group, Mark, escape, intervals};

const OWN_STYLE: &str = "\
body{max-width:1200px}.answers{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(280px,1fr);gap:1rem;\
overflow-x:auto}.answers>div,.question{border:1px solid #8886;border-radius:6px;padding:.5rem .8rem;margin:.5rem 0}\
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}.best{font-weight:600}small,summary{opacity:.75}";

/// What a judge said.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The judge's name.
    pub judge: &'a str,
    /// Its words.
    pub pairs: &'a [Pair],
    /// What they come to.
    pub tally: &'a Tally,
}

/// The parts of a page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The questions.
    pub questions: &'a [Question],
    /// The models.
    pub contestants: &'a [Contestant],
    /// Their answers, by model.
    pub answers: &'a [Answers],
    /// What a judge said, where one was asked.
    pub judged: Option<Judged<'a>>,
}

/// Makes the page as HTML.
#[must_use]
pub fn html(page: &Page<'_>) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>mmx eval</title><style>{STYLE}{OWN_STYLE}</style></head><body>\n\
         <h1>Answers of {} to {}</h1>\n",
        counted(page.contestants.len(), "model"),
        counted(page.questions.len(), "question"),
    );
    if let Some(judged) = &page.judged {
        ranked(page, judged, &mut out);
    }
    out.push_str("<h2>Answers</h2>\n");
    for (index, question) in page.questions.iter().enumerate() {
        side_by_side(page, index, question, &mut out);
    }
    let _ = write!(out, "<p>mmx {}.</p>\n</body></html>\n", env!("CARGO_PKG_VERSION"));
    out
}

/// The tables and plots of the ranking.
fn ranked(page: &Page<'_>, judged: &Judged<'_>, out: &mut String) {
    let tally = judged.tally;
    let name = |model: usize| escape(&page.contestants[model].name);
    let _ = writeln!(
        out,
        "<h2>Ranking</h2>\n<p>By {}, which compared {} of answers, each in both orders. {}</p>\n\
         <div class=\"wide\"><table><tr><th>model</th><th>score</th><th>95 %</th><th>won</th>\
         <th>tied</th><th>lost</th><th>points</th></tr>",
        escape(judged.judge),
        counted(tally.compared, "pair"),
        left_out(tally),
    );
    for standing in &tally.ranking {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{:.0}</td><td>{:.0} to {:.0}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{:.1} %</td></tr>",
            name(standing.model),
            standing.score.value,
            standing.score.low,
            standing.score.high,
            standing.won,
            standing.tied,
            standing.lost,
            100.0 * standing.share()
        );
    }
    out.push_str("</table></div>\n");
    let groups: Vec<Group> = tally
        .ranking
        .iter()
        .map(|standing| {
            let Standing { model, score, .. } = *standing;
            let mark = Mark { value: score.value, low: score.low, high: score.high, series: model };
            Group { label: page.contestants[model].name.clone(), marks: vec![mark] }
        })
        .collect();
    figure(
        &intervals("scores", &groups, false, Some(super::bradley_terry::ANCHOR)),
        "Bradley-Terry scores on Elo's scale, higher is better; their mean is 1000, and 400 points are odds of ten to \
         one. A tie counts as half a win for each, and each pair of models starts with one. Intervals are the middle \
         95 % over 1000 draws of the questions.",
        out,
    );
    out.push_str("<h2>Points of row against column</h2>\n<div class=\"wide\"><table><tr><th></th>");
    for standing in &tally.ranking {
        let _ = write!(out, "<th>{}</th>", name(standing.model));
    }
    out.push_str("</tr>\n");
    for row in &tally.ranking {
        let _ = write!(out, "<tr><td>{}</td>", name(row.model));
        for column in &tally.ranking {
            let (points, all) = tally.matrix[row.model][column.model];
            let _ = match all {
                0 => write!(out, "<td>–</td>"),
                _ => write!(out, "<td>{points} of {all}</td>"),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    if !tally.categories.is_empty() {
        categories(page, tally, out);
    }
    let _ = writeln!(out, "<h2>The judge</h2>\n<p>{}</p>", in_words(&tally.places));
}

/// Scores by category, the models in the order of the whole ranking.
fn categories(page: &Page<'_>, tally: &Tally, out: &mut String) {
    out.push_str(
        "<h2>By category</h2>\n<div class=\"wide\"><table><tr><th>category</th><th>questions</th>",
    );
    for standing in &tally.ranking {
        let _ = write!(out, "<th>{}</th>", escape(&page.contestants[standing.model].name));
    }
    out.push_str("</tr>\n");
    for (name, questions, standings) in &tally.categories {
        let _ = write!(out, "<tr><td>{}</td><td>{questions}</td>", escape(name));
        for column in &tally.ranking {
            let own = standings.iter().find(|standing| standing.model == column.model);
            let cell = own.map(|s| {
                let score = s.score;
                format!("{:.0} ({:.0} to {:.0})", score.value, score.low, score.high)
            });
            let _ = write!(out, "<td>{}</td>", cell.unwrap_or_default());
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// Which pairs count as ties unasked or do not count, in sentences; empty for none.
#[must_use]
pub fn left_out(tally: &Tally) -> String {
    let mut sentences = Vec::new();
    if tally.same > 0 {
        sentences.push(format!("{} of the same text: ties.", counted(tally.same, "pair")));
    }
    if tally.unparsed > 0 {
        let pairs = counted(tally.unparsed, "pair");
        sentences.push(format!("{pairs} left out: the judge's words hold no verdict."));
    }
    if tally.unasked > 0 {
        let pairs = counted(tally.unasked, "pair");
        sentences.push(format!("{pairs} left out: the judge was not asked in both orders."));
    }
    sentences.join(" ")
}

/// How much a judge went by places, in sentences.
#[must_use]
pub fn in_words(places: &Places) -> String {
    let share = |part: usize, all: usize| 100.0 * part as f64 / all.max(1) as f64;
    let verdicts = places.first + places.second + places.tie;
    if verdicts + places.unparsed == 0 {
        return "No verdict was needed or given.".to_owned();
    }
    format!(
        "{}: {:.1} % for the answer shown first, {:.1} % for the second, {:.1} % ties; {} without a verdict. \
         Both orders agree on {:.1} % of {}; {:.1} % went to the first place in both, {:.1} % to the second.",
        counted(verdicts, "verdict"),
        share(places.first, verdicts),
        share(places.second, verdicts),
        share(places.tie, verdicts),
        counted(places.unparsed, "answer"),
        share(places.consistent, places.pairs),
        counted(places.pairs, "pair"),
        share(places.favours_first, places.pairs),
        share(places.favours_second, places.pairs),
    )
}

/// A question, its answers beside each other, and what the judge said of them.
fn side_by_side(page: &Page<'_>, index: usize, question: &Question, out: &mut String) {
    let category = question.category.as_ref().map(|name| format!(" · {}", escape(name)));
    let _ = writeln!(
        out,
        "<section><h3>{}{}</h3>\n<div class=\"question text\">{}</div>",
        escape(&question.name),
        category.unwrap_or_default(),
        escape(&question.text())
    );
    if let Some(reference) = &question.reference {
        let _ = writeln!(
            out,
            "<details><summary>reference answer</summary><div class=\"text\">{}</div></details>",
            escape(reference)
        );
    }
    out.push_str("<div class=\"answers\">\n");
    for (contestant, answers) in page.contestants.iter().zip(page.answers) {
        let _ = write!(out, "<div><b>{}</b>", escape(&contestant.name));
        match &answers[index] {
            None => out.push_str("<p>no answer</p>"),
            Some(turns) => turns.iter().for_each(|answer| one(answer, out)),
        }
        out.push_str("</div>\n");
    }
    out.push_str("</div>\n");
    if let Some(judged) = &page.judged {
        for pair in judged.pairs.iter().filter(|pair| pair.question == index) {
            verdicts(page, pair, out);
        }
    }
    out.push_str("</section>\n");
}

fn one(answer: &Answer, out: &mut String) {
    let tokens = answer.tokens.map(|n| counted(usize::try_from(n).unwrap_or(usize::MAX), "token"));
    let tokens = tokens.map(|tokens| format!("{tokens}, ")).unwrap_or_default();
    let cut = if answer.finish == "length" { ", cut off" } else { "" };
    if let Some((thought, _)) = answer.text.rsplit_once("</think>") {
        let thought = thought.trim_start().strip_prefix("<think>").unwrap_or(thought);
        let _ = write!(
            out,
            "<details><summary>thoughts</summary><div class=\"text\">{}</div></details>",
            escape(thought.trim())
        );
    }
    let _ = write!(
        out,
        "<div class=\"text\">{}</div><small>{tokens}{:.1} s{cut}</small>",
        escape(answer.spoken()),
        answer.seconds
    );
}

fn verdicts(page: &Page<'_>, pair: &Pair, out: &mut String) {
    let name = |model: usize| escape(&page.contestants[model].name);
    let (i, j) = pair.models;
    let result = match pair.outcome() {
        Outcome::Won(model) => format!("<span class=\"best\">{}</span>", name(model)),
        Outcome::Tie if pair.is_same => "the same text".to_owned(),
        Outcome::Tie => "tie".to_owned(),
        Outcome::Unparsed => "no verdict".to_owned(),
        Outcome::Unasked => "not asked".to_owned(),
    };
    let _ = write!(out, "<details><summary>{} against {}: {result}</summary>", name(i), name(j));
    for ((first, second), said) in [(i, j), (j, i)].into_iter().zip(&pair.said) {
        let Some(said) = said else { continue };
        let _ = write!(
            out,
            "<p>A is {}, B is {}:</p><div class=\"text\">{}</div>",
            name(first),
            name(second),
            escape(&said.words)
        );
    }
    out.push_str("</details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judged::judging::Said;
    use crate::judged::tally::tally;
    use mmx_data::asking::{user, verdict};

    #[test]
    fn shares_of_no_verdicts_are_not_told() {
        assert_eq!(in_words(&Places::default()), "No verdict was needed or given.");
        let places = Places {
            first: 3,
            second: 1,
            pairs: 2,
            favours_first: 1,
            consistent: 1,
            ..Places::default()
        };
        let words = in_words(&places);
        assert!(
            words.starts_with("4 verdicts: 75.0 % for the answer shown first, 25.0 %"),
            "{words}"
        );
        assert!(words.contains("agree on 50.0 % of 2 pairs; 50.0 % went to the first"), "{words}");
    }

    #[test]
    fn hostile_text_stays_text() {
        let evil = "</div><script>alert(1)</script><img src=x onerror='a()'>\"&\u{1b}";
        let question = Question {
            name: evil.into(),
            category: Some(evil.into()),
            reference: Some(evil.into()),
            turns: vec![user(evil)],
            tools: None,
            later: Vec::new(),
        };
        let answer = Answer {
            text: format!("<think>{evil}</think>{evil} 好"),
            prompt_tokens: None,
            tokens: Some(1),
            seconds: 0.25,
            finish: "length".into(),
        };
        let contestant = Contestant { name: evil.into(), identity: evil.into() };
        let words = format!("[[A]] {evil}");
        let said = Said { verdict: verdict(&words), words, tokens: None, seconds: 0.0 };
        let questions = [question];
        let pairs = [Pair {
            question: 0,
            models: (0, 1),
            is_same: false,
            said: [Some(said.clone()), Some(said)],
        }];
        let tally = tally(2, &questions, &pairs);
        let contestants = [contestant.clone(), contestant];
        let answers = vec![vec![Some(vec![answer])]; 2];
        let page = Page {
            questions: &questions,
            contestants: &contestants,
            answers: &answers,
            judged: Some(Judged { judge: evil, pairs: &pairs, tally: &tally }),
        };
        let html = html(&page);
        for tag in ["<script", "<img", "<a ", "src=x onerror='"] {
            assert!(!html.contains(tag), "{tag}: {html}");
        }
        let escaped = "&lt;/div&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=&#39;a()&#39;&gt;\
                       &quot;&amp;\u{fffd}";
        // heading, question, reference, thoughts, answers, names and the judge's words
        assert!(html.matches(escaped).count() >= 10, "{html}");
        assert!(html.contains("default-src 'none'") && html.contains("好"));
        // every tag that is opened is closed: nothing broke out
        for tag in ["div", "details", "section", "table", "p", "small"] {
            let opened = html.matches(&format!("<{tag}>")).count()
                + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
