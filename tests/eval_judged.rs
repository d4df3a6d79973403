//! `mmx eval --questions --judge`: answers of several models, kept as they come, and the ranking by a judge, with servers
//! whose models and judges are functions, and with models that mmx opens itself.

mod common;
#[path = "common/hostile.rs"]
mod hostile;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{mmx, mmx_error, mmx_json, mmx_ok, reciting, reciting_ids, shared, text};
use hostile::{Server, TROUBLE, Turn, question};
use mmx_converters::digest;
use serde_json::{Value, json};

/// The strengths of the made models in points of Elo's scale.
const STRENGTHS: [(&str, f64); 3] = [("strong", 1200.0), ("middle", 1000.0), ("weak", 800.0)];

/// A file of questions.
fn questions(dir: &Path, count: usize) -> PathBuf {
    let path = dir.join("q.jsonl");
    let record = |i: usize| {
        let category = if i.is_multiple_of(2) { "写作" } else { "math" };
        json!({ "id": i, "question": format!("question {i}"), "category": category })
    };
    let lines: Vec<String> = (0..count).map(|i| record(i).to_string()).collect();
    fs_err::write(&path, lines.join("\n")).expect("a file");
    path
}

/// A number from 0 to 1 that a text always gives.
fn drawn(text: &str) -> f64 {
    let hex = digest::of_bytes(text.as_bytes());
    u32::from_str_radix(&hex[..8], 16).expect("a number") as f64 / f64::from(u32::MAX)
}

/// The part of a text between two others.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split(from).nth(1).and_then(|rest| rest.split(to).next()).unwrap_or_default()
}

/// What a judge is shown: the answers A and B.
fn shown(prompt: &str) -> (&str, &str) {
    (between(prompt, "[Answer A]\n", "\n\n[Answer B]"), between(prompt, "[Answer B]\n", "\n\nGive"))
}

/// A made model names itself; a made judge prefers models by their strengths, as often as Bradley and Terry say, and
/// whatever the order.
fn said(body: &Value) -> String {
    let asked = question(body);
    if body["model"] != "judge" {
        return format!("{} answers {asked}", body["model"].as_str().expect("a name"));
    }
    let (a, b) = shown(&asked);
    let strength = |answer: &str| {
        STRENGTHS.iter().find(|(name, _)| answer.starts_with(name)).expect("a made answer").1
    };
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    let odds = 10f64.powf((strength(low) - strength(high)) / 400.0);
    let better = if drawn(&format!("{low} {high}")) < odds / (1.0 + odds) { low } else { high };
    format!("I prefer [[{}]]", if better == a { "A" } else { "B" })
}

/// The arguments of a run over made models.
fn arguments(dir: &Path, server: &Server, models: &[&str], input: &Path) -> Vec<String> {
    let mut args = vec!["eval".to_owned()];
    args.extend(models.iter().map(|name| server.model(name)));
    let rest = ["--questions", text(input), "--backoff", "0.01", "--timeout", "1", "--answers"];
    args.extend(rest.map(str::to_owned));
    args.push(text(&dir.join("a.jsonl")).to_owned());
    args
}

fn with<'a>(args: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_judges_ranking_is_the_known_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 150);
    let server = Server::start(&[Turn::Good], Duration::ZERO, said);
    let args = arguments(dir.path(), &server, &["weak", "strong", "middle"], &input);
    let judge = server.model("judge");
    let page = dir.path().join("page.html");
    let args = with(&args, &["--judge", &judge, "--html", text(&page)]);
    let found = mmx_json(&args);

    let ranking = found["ranking"].as_array().expect("a ranking");
    for (row, (name, strength)) in ranking.iter().zip(STRENGTHS) {
        assert_eq!(row["name"], name, "{found}");
        let ends = [0, 1].map(|end| row["interval"][end].as_f64().expect("a number"));
        // three standard errors of 20 points each, which the width of the interval tells
        let score = row["score"].as_f64().expect("a score");
        assert!((score - strength).abs() < 60.0, "{strength}: {row}");
        assert!(ends[0] < score && score < ends[1], "{row}");
        assert!((60.0..110.0).contains(&(ends[1] - ends[0])), "{row}");
    }
    assert_eq!((&found["questions"], &found["pairs"]["compared"]), (&150.into(), &450.into()));
    let judge = &found["judge"];
    assert_eq!((&judge["answers"], &judge["consistent"]), (&900.into(), &450.into()));
    assert_eq!(judge["first"], judge["second"]);
    // strong against weak, in the order of the command line; ties there are none
    let cell = |i: usize, j: usize| found["matrix"][i][j]["points"].as_f64().expect("points");
    assert!(cell(1, 0) > 110.0 && (cell(1, 0) + cell(0, 1) - 150.0).abs() < 1e-9, "{found}");
    for category in ["写作", "math"] {
        let own = &found["categories"][category];
        assert_eq!((&own["questions"], &own["ranking"][0]["name"]), (&75.into(), &"strong".into()));
    }
    for row in found["models"].as_array().expect("models") {
        assert_eq!(
            (&row["answered"], &row["tokens"], &row["cut_off"]),
            (&150.into(), &900.into(), &0.into())
        );
    }

    let answers = lines(&dir.path().join("a.jsonl"));
    assert_eq!(answers.len(), 450);
    assert_eq!((&answers[1]["model"], &answers[1]["question"]), (&"strong".into(), &"0".into()));
    assert_eq!(answers[1]["answer"], "strong answers question 0");
    let verdicts = lines(&dir.path().join("a.verdicts.jsonl"));
    assert_eq!((verdicts.len(), verdicts[0]["words"].is_string()), (900, true));
    let html = fs_err::read_to_string(&page).expect("a page");
    assert!(html.contains("strong answers question 149") && html.contains("I prefer [[A]]"));

    // nothing is asked twice, and the same files come out; another model is asked alone
    let (before, bytes) =
        (server.requests(), fs_err::read(dir.path().join("a.jsonl")).expect("a file"));
    assert_eq!(before, 450 + 900);
    assert_eq!(mmx_json(&args), found);
    assert_eq!((server.requests(), fs_err::read_to_string(&page).expect("a page")), (before, html));
    assert_eq!(fs_err::read(dir.path().join("a.jsonl")).expect("a file"), bytes);
    let text = mmx_ok(&args);
    let places = ["\nstrong ", "\nmiddle ", "\nweak "].map(|name| text.rfind(name).expect(name));
    assert!(places.is_sorted() && text.contains("Both orders agree on 100.0 %"), "{text}");
}

#[test]
fn a_judge_that_prefers_a_place_is_told_and_ranks_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 20);
    let server =
        Server::start(&[Turn::Good], Duration::ZERO, |body| match body["model"].as_str() {
            Some("judge") => "The first one. [[A]]".to_owned(),
            _ => said(body),
        });
    let args = arguments(dir.path(), &server, &["strong", "weak"], &input);
    let found = mmx_json(&with(&args, &["--judge", &server.model("judge")]));
    let judge = &found["judge"];
    assert_eq!(
        (&judge["first"], &judge["second"], &judge["tie"]),
        (&40.into(), &0.into(), &0.into())
    );
    assert_eq!((&judge["favours_first"], &judge["consistent"]), (&20.into(), &0.into()));
    for row in found["ranking"].as_array().expect("a ranking") {
        assert_eq!((&row["tied"], &row["score"]), (&20.into(), &1000.0.into()), "{row}");
    }
    let text = mmx_ok(&with(&args, &["--judge", &server.model("judge")]));
    assert!(text.contains("100.0 % went to the first place in both"), "{text}");
}

#[test]
fn words_without_a_verdict_are_counted_and_are_no_tie() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 30);
    let server = Server::start(&[Turn::Good], Duration::ZERO, |body| {
        let asked = question(body);
        match body["model"].as_str() {
            // of ten questions three have no verdict in one order, and one in neither
            Some("judge") if asked.contains("7\n") => "Both [[A]] and [[B]] are fine.".to_owned(),
            Some("judge") if shown(&asked).0.starts_with("weak") && asked.contains("3\n") => {
                "A is better".to_owned()
            }
            Some("judge") if asked.contains("5\n") => "[[C]]".to_owned(),
            Some("judge") => {
                format!("[[{}]]", if shown(&asked).0.starts_with("weak") { "B" } else { "A" })
            }
            _ if asked.ends_with('9') => "the same".to_owned(),
            _ => said(body),
        }
    });
    let args = arguments(dir.path(), &server, &["strong", "weak"], &input);
    let found = mmx_json(&with(&args, &["--judge", &server.model("judge")]));
    let pairs = &found["pairs"];
    assert_eq!(
        (&pairs["unparsed"], &pairs["same"], &pairs["compared"]),
        (&6.into(), &3.into(), &24.into())
    );
    assert_eq!((&found["judge"]["unparsed"], &found["judge"]["answers"]), (&9.into(), &54.into()));
    let strong = &found["ranking"][0];
    assert_eq!(
        (&strong["name"], &strong["won"], &strong["tied"]),
        (&"strong".into(), &18.into(), &6.into())
    );
    // points 21 of 24, and the one tie beforehand
    let expected = 1000.0 + 200.0 * (21.5f64 / 3.5).log10();
    assert!((strong["score"].as_f64().expect("a score") - expected).abs() < 1e-6, "{strong}");
    let verdicts = lines(&dir.path().join("a.verdicts.jsonl"));
    assert_eq!(verdicts.iter().filter(|line| line["verdict"].is_null()).count(), 9);
}

#[test]
fn a_hostile_server_loses_nothing() {
    const GOOD: &[Turn] = &[Turn::Good];
    let found = [GOOD, TROUBLE].map(|turns| {
        let dir = tempfile::tempdir().expect("a folder");
        let input = questions(dir.path(), 6);
        let server = Server::start(turns, Duration::ZERO, said);
        let args = arguments(dir.path(), &server, &["strong", "weak"], &input);
        let report = mmx_json(&with(&args, &["--judge", &server.model("judge")]));
        assert!(
            server.counts().values().all(|times| *times == turns.len()),
            "{:?}",
            server.counts()
        );
        assert_eq!(server.counts().len(), 12 + 12);
        let left = fs_err::read_dir(dir.path()).expect("a folder").flatten();
        let left: Vec<_> = left.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        assert!(!left.iter().any(|name| name.contains("journal")), "{left:?}");
        let words = |name: &str, key: &str| -> Vec<Value> {
            lines(&dir.path().join(name)).iter().map(|line| line[key].clone()).collect()
        };
        (words("a.jsonl", "answer"), words("a.verdicts.jsonl", "words"), report["ranking"].clone())
    });
    assert_eq!(found[0], found[1]);
}

#[test]
fn requests_refused_for_good_are_told_and_what_was_answered_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 4);
    let dead = Server::start(&[Turn::Broken], Duration::ZERO, said);
    let good = Server::start(&[Turn::Good], Duration::ZERO, said);
    let answers = dir.path().join("a.jsonl");
    let (strong, weak) = (good.model("strong"), dead.model("weak"));
    let args = ["eval", &strong, &weak, "--questions", text(&input), "--answers", text(&answers)];
    let args = [&args[..], &["--answers-only", "--backoff", "0.01", "--retries", "1"]].concat();
    let error = mmx_error(&args);
    assert!(
        error.contains("4 requests were not answered, the first question 0 to weak"),
        "{error}"
    );
    assert!(error.contains("HTTP 500: oops") && !answers.exists(), "{error}");
    let report = mmx_json(&[&args[..], &["--skip-failed"]].concat());
    assert_eq!(
        (&report["models"][0]["answered"], &report["models"][1]["answered"]),
        (&4.into(), &0.into())
    );
    assert_eq!((good.requests(), lines(&answers).len()), (4, 4));
    // pairs without an answer are not compared
    let args = ["eval", &strong, &weak, "--questions", text(&input), "--answers", text(&answers)];
    let judged =
        ["--judge", &good.model("judge"), "--backoff", "0.01", "--retries", "0", "--skip-failed"];
    let report = mmx_json(&[&args[..], &judged].concat());
    assert_eq!(report["pairs"]["compared"], 0);
    // a file that something else wrote stays
    fs_err::write(&answers, "mine\n").expect("a file");
    let error = mmx_error(&[&args[..], &["--answers-only"]].concat());
    assert!(error.contains("a.jsonl:1: expected keys key and answer"), "{error}");
    assert_eq!(fs_err::read_to_string(&answers).expect("a file"), "mine\n");
}

#[test]
fn a_killed_run_goes_on_at_the_request_while_it_answers_and_while_it_judges() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 30);
    let server = Server::start(&[Turn::Good], Duration::from_millis(40), said);
    let args = arguments(dir.path(), &server, &["strong", "weak"], &input);
    let judge = server.model("judge");
    let args = with(&args, &["--judge", &judge]);
    for (name, least) in [("a.jsonl.journal", 20), ("a.verdicts.jsonl.journal", 20)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        let mut child = command
            .args(&args)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("mmx starts");
        let journal = dir.path().join(name);
        let written = || fs_err::read_to_string(&journal).unwrap_or_default().lines().count();
        while written() < least {
            assert!(child.try_wait().expect("waited").is_none(), "it ended before it was killed");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(!dir.path().join(name.trim_end_matches(".journal")).exists(), "half a file");
    }
    let found = mmx_json(&args);
    assert_eq!(
        (&found["pairs"]["compared"], &found["ranking"][0]["name"]),
        (&30.into(), &"strong".into())
    );
    // eight requests were under way at each of the two kills
    let counts = server.counts();
    assert_eq!(counts.len(), 60 + 60);
    let twice = counts.values().filter(|&&times| times > 1).count();
    assert!(twice <= 2 * 8 && counts.values().all(|&times| times <= 2), "{counts:?}");
    let requests = server.requests();
    assert_eq!(mmx_json(&args), found);
    assert_eq!(server.requests(), requests);
}

#[test]
fn turns_categories_references_and_an_edited_prompt_reach_the_judge() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = dir.path().join("bench.jsonl");
    let record = json!({ "question_id": 81, "category": "math", "turns": ["one?", "二？"], "reference": ["1", "2"] });
    fs_err::write(&input, record.to_string()).expect("a file");
    let prompt = dir.path().join("judge.txt");
    mmx_ok(&["eval", "--write-judge-prompt", text(&prompt)]);
    let usual = fs_err::read_to_string(&prompt).expect("a prompt");
    assert!(
        mmx_error(&["eval", "--write-judge-prompt", text(&prompt)])
            .contains("expected no file there")
    );
    fs_err::write(&prompt, format!("Be kind.\n\n{usual}")).expect("a prompt");

    let server =
        Server::start(&[Turn::Good], Duration::ZERO, |body| match body["model"].as_str() {
            Some("judge") => "[[A]]".to_owned(),
            Some(model) => format!(
                "<think>hm {{second}}</think>{model} after {}",
                body["messages"].as_array().map_or(0, Vec::len)
            ),
            None => String::new(),
        });
    let args = arguments(dir.path(), &server, &["x", "y"], &input);
    let more =
        ["--judge", &server.model("judge"), "--judge-prompt", text(&prompt), "--system", "Brief."];
    mmx_json(&with(&args, &more));
    let bodies: Vec<Value> =
        server.counts().keys().map(|body| serde_json::from_str(body).expect("JSON")).collect();
    let judged: Vec<String> =
        bodies.iter().filter(|body| body["model"] == "judge").map(question).collect();
    let expected = "Be kind.\n\nCompare two answers";
    let middle = "[Question]\n[Turn 1]\n[system]\nBrief.\n\n[user]\none?\n\n[Turn 2]\n二？\n\n[Reference answer]\n\
                  [Turn 1]\n1\n\n[Turn 2]\n2\n\n[Answer A]\n[Turn 1]\nx after 2\n\n[Turn 2]\nx after 4\n\n\
                  [Answer B]\n[Turn 1]\ny after 2\n\n[Turn 2]\ny after 4\n\nGive";
    assert_eq!(judged.len(), 2);
    assert!(judged.iter().all(|text| text.starts_with(expected)), "{judged:?}");
    assert!(judged.iter().any(|text| text.contains(middle)), "{judged:?}");
    for body in &bodies {
        assert_eq!(body["temperature"].as_f64(), Some(0.0), "{body}");
    }
}

#[test]
fn what_models_write_stays_text_on_the_page() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 2);
    let server = Server::start(&[Turn::Good], Duration::ZERO, |body| {
        let evil = "</div><script>fetch('http://evil')</script><img src=x onerror=alert(1)>";
        format!("{} 好 {evil} [[A]]", body["model"].as_str().unwrap_or_default())
    });
    let page = dir.path().join("page.html");
    let args = arguments(dir.path(), &server, &["<b>x</b>", "y"], &input);
    mmx_ok(&with(&args, &["--judge", &server.model("judge"), "--html", text(&page)]));
    let html = fs_err::read_to_string(&page).expect("a page");
    for tag in ["<script", "<img", "<b>x", "http://evil'"] {
        assert!(!html.contains(tag), "{tag}");
    }
    assert!(html.contains("&lt;script&gt;fetch(&#39;http://evil&#39;)") && html.contains("好"));
    assert!(html.contains("content=\"default-src 'none'; style-src 'unsafe-inline'\""));
    // everything is on the page itself
    for from in ["src=\"", "href=", "url(", "@import"] {
        assert!(!html.contains(from), "{from}");
    }
}

#[test]
fn model_files_answer_without_any_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let recites = reciting(dir.path(), None, json!(2), 2);
    let golden = dir.path().join("golden");
    common::copy(&shared("golden/minimind3"), &golden);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs_err::copy(shared("golden").join(name), golden.join(name)).expect("a file");
    }
    let input = dir.path().join("q.txt");
    fs_err::write(&input, "你好\nand you?\n").expect("a file");
    let (answers, page) = (dir.path().join("a.jsonl"), dir.path().join("page.html"));
    let args =
        ["eval", text(&recites), text(&golden), "--questions", text(&input), "--answers-only"];
    let args =
        [&args[..], &["--max-tokens", "40", "--answers", text(&answers), "--html", text(&page)]]
            .concat();
    // a proxy that is not there would be asked for everything
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(&args).args(more).arg("--json");
        for name in ["http_proxy", "https_proxy", "ALL_PROXY"] {
            command.env(name, "http://127.0.0.1:9");
        }
        let out = command.output().expect("mmx starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).expect("JSON")
    };
    let found = run(&[]);
    assert!(found.get("ranking").is_none() && found.get("judge").is_none(), "{found}");
    let kept = lines(&answers);
    assert_eq!(kept.len(), 4);
    for line in kept.iter().filter(|line| line["model"] == "reciting-2") {
        assert_eq!(
            (&line["answer"], &line["finish"]),
            (&common::RECITED.into(), &"stop".into()),
            "{line}"
        );
    }
    assert!(fs_err::read_to_string(&page).expect("a page").contains("你好"));
    // the answers hold for the same weights wherever they lie, and for no others
    let bytes = fs_err::read(&answers).expect("a file");
    assert_eq!(run(&[]), found);
    assert_eq!(fs_err::read(&answers).expect("a file"), bytes);
    let warm = run(&["--temperature", "1.5", "--seed", "3"]);
    assert_eq!(warm["models"][1]["answered"], 2);
    assert_eq!(lines(&answers).len(), 8, "the answers of before are kept");
}

#[test]
fn the_running_ollama_answers_beside_other_servers() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 4);
    let server = Server::start(&[Turn::Good], Duration::ZERO, said);
    let (answers, weak) = (dir.path().join("a.jsonl"), server.model("weak"));
    let args =
        ["eval", "ollama:strong", &weak, "--questions", text(&input), "--answers", text(&answers)];
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    command
        .args(args)
        .args(["--judge", "ollama:judge", "--json"])
        .env("OLLAMA_HOST", server.host());
    let out = command.output().expect("mmx starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let found: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(
        (&found["judge"]["model"], &found["pairs"]["compared"]),
        (&"judge".into(), &4.into())
    );
    let names: Vec<Value> = lines(&answers).iter().map(|line| line["model"].clone()).collect();
    assert_eq!(names[..2], ["strong", "weak"]);
}

#[test]
fn a_model_file_judges() {
    let dir = tempfile::tempdir().expect("a folder");
    // a tokenizer with a token for a verdict, and a model that always gives it
    let golden = shared("golden");
    let text_of = |name: &str| fs_err::read_to_string(golden.join(name)).expect("a fixture");
    let mut tokenizer: Value = serde_json::from_str(&text_of("tokenizer.json")).expect("JSON");
    tokenizer["added_tokens"].as_array_mut().expect("tokens").push(json!({
        "id": 510, "content": "[[B]]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": false,
    }));
    let files = ["tokenizer.json", "tokenizer_config.json"].map(|name| dir.path().join(name));
    fs_err::write(&files[0], tokenizer.to_string()).expect("a file");
    fs_err::write(&files[1], text_of("tokenizer_config.json")).expect("a file");
    let newline = mmx_converters::tokenizer::Tokenizer::open(&golden).expect("a tokenizer");
    let newline = newline.encode("\n").expect("ids")[0];
    let judge =
        reciting_ids(dir.path().join("judge"), files, &[newline, 510, 2], (512, 2048), json!(2));

    let input = questions(dir.path(), 3);
    let server = Server::start(&[Turn::Good], Duration::ZERO, said);
    let args = arguments(dir.path(), &server, &["strong", "weak"], &input);
    let found = mmx_json(&with(&args, &["--judge", text(&judge)]));
    let told = &found["judge"];
    assert_eq!(
        (&told["model"], &told["second"], &told["unparsed"]),
        (&"judge".into(), &6.into(), &0.into()),
        "{found}"
    );
    assert_eq!((&told["favours_second"], &found["pairs"]["compared"]), (&3.into(), &3.into()));
    assert_eq!(server.requests(), 6);
    for line in lines(&dir.path().join("a.verdicts.jsonl")) {
        assert_eq!((&line["words"], &line["verdict"]), (&"[[B]]".into(), &"second".into()));
    }
}

#[test]
fn misuse_is_told_before_anything_is_asked() {
    let dir = tempfile::tempdir().expect("a folder");
    let input = questions(dir.path(), 2);
    let server = Server::start(&[Turn::Good], Duration::ZERO, said);
    let args = arguments(dir.path(), &server, &["strong", "weak"], &input);
    let judge = server.model("judge");
    let alone = arguments(dir.path(), &server, &["strong"], &input);
    let twice = arguments(dir.path(), &server, &["strong", "strong"], &input);
    let page = dir.path().join("a.jsonl");
    for (args, more, said) in [
        (&args, vec![], "--judge or --answers-only"),
        (&alone, vec!["--judge", &judge], "at least two models"),
        (&twice, vec!["--answers-only"], "each model once"),
        (&args, vec!["--judge", &judge, "--answers-only"], "cannot be used with"),
        (&args, vec!["--answers-only", "--ppl", text(&input)], "cannot be used with"),
        (&args, vec!["--answers-only", "--html", text(&page)], "a file each"),
        (&args, vec!["--answers-only", "--tools", text(&input)], "--tools: expected --tasks"),
    ] {
        let out = mmx(&with(args, &more));
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && stderr.contains(said), "{said}: {stderr}");
    }
    let bad = dir.path().join("judge.txt");
    fs_err::write(&bad, "Which is better, {first}?").expect("a file");
    let error = mmx_error(&with(&args, &["--judge", &judge, "--judge-prompt", text(&bad)]));
    assert!(error.contains("judge.txt: expected {second}"), "{error}");
    let own = mmx_error(&with(&args, &["--answers-only", "--html", text(&input)]));
    assert!(own.contains("q.jsonl"), "{own}");
    fs_err::write(&input, "{\"text\": \"no question\"}\n").expect("a file");
    let error = mmx_error(&with(&args, &["--answers-only"]));
    assert!(error.contains("q.jsonl:1: expected key question, turns, prompt"), "{error}");
    assert_eq!(server.requests(), 0);
    assert!(!dir.path().join("a.jsonl").exists() && !dir.path().join("a.jsonl.journal").exists());
}
