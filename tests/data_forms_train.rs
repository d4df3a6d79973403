//! What a training says about the forms in which people have their data, through the binary.

mod common;

use std::path::PathBuf;

use common::{chat, mmx, shared, text};
use serde_json::{Value, json};

fn case(name: &str) -> PathBuf {
    shared("cases/turn2").join(name)
}

fn run(args: &[&str]) -> (Value, String) {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let out = mmx(&args);
    let said = String::from_utf8(out.stderr).expect("UTF-8");
    assert!(out.status.success(), "{args:?}: {said}");
    (serde_json::from_slice(&out.stdout).expect("JSON"), said)
}

#[test]
fn resume_finished() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, data, tokenizer) =
        (dir.path().join("r"), shared("golden/pretrain.jsonl"), shared("golden"));
    let commands = fs_err::read_to_string(case("resume-finished/commands.txt")).expect("a case");
    let commands: Vec<Vec<String>> = commands
        .lines()
        .map(|line| {
            let word = |word: &str| match word {
                "golden" => text(&tokenizer).to_owned(),
                "golden/pretrain.jsonl" => text(&data).to_owned(),
                "r" => text(&out).to_owned(),
                other => other.to_owned(),
            };
            line.split_whitespace()
                .skip(1)
                .map(word)
                .chain(["--threads".into(), "1".into()])
                .collect()
        })
        .collect();
    let go = |args: &[String]| run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let (first, said) = go(&commands[0]);
    // an epoch of so little data is one step
    assert_eq!((&first["steps"], &first["total_steps"]), (&json!(1), &json!(1)));
    let loss = first["loss"].as_f64().expect("a loss");
    assert!(said.contains("run: 1 optimizer step in 1 micro-step of 32 rows, 1 epoch,"), "{said}");

    // what the user put into the checkpoint stays
    let checkpoint = PathBuf::from(first["checkpoint"].as_str().expect("a path"));
    fs_err::write(checkpoint.join("notes.txt"), "mine").expect("a file");
    let before = fs_err::metadata(checkpoint.join("model.safetensors")).expect("weights");
    let (again, said) = go(&commands[1]);
    let last = format!("nothing is left to do: 1 of 1 step, last loss {loss:.4}");
    assert!(said.lines().any(|line| line == last), "{last}: {said}");
    assert!(!said.contains("NaN") && !said.contains("steps in 0.0 s"), "{said}");
    assert_eq!((&again["steps"], &again["total_steps"]), (&json!(0), &json!(1)));
    assert_eq!((&again["loss"], &again["interrupted"]), (&Value::Null, &json!(false)));
    assert_eq!(again["checkpoint"], first["checkpoint"]);
    assert!(checkpoint.join("notes.txt").exists());
    let after = fs_err::metadata(checkpoint.join("model.safetensors")).expect("weights");
    assert_eq!(before.modified().expect("a time"), after.modified().expect("a time"));
}

/// Also where records are left out: none comes from the middle of the array.
#[test]
fn arrays_train_as_their_records_and_counts_are_singular_for_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let (tokenizer, model) = (shared("golden"), shared("golden/minimind2"));
    let middle = case("json-array-file").join("middle.json");
    let alpaca = case("json-array-file").join("alpaca.json");
    let mut steps = Vec::new();
    for (stage, data, samples) in
        [("pretrain", &middle, "data: 2 samples,"), ("sft", &alpaca, "data: 1 sample,")]
    {
        let out = dir.path().join(stage);
        let args = ["train", stage, "--from", text(&model), "--tokenizer", text(&tokenizer)];
        let rest = ["--data", text(data), "--out", text(&out), "--on-bad", "skip", "--accum", "1"];
        let more = ["--batch-size", "1", "--epochs", "1", "--max-seq-len", "64", "--device", "cpu"];
        let all = args.iter().chain(&rest).chain(&more).chain(&["--threads", "1"]);
        let (end, said) = run(&all.copied().collect::<Vec<_>>());
        assert!(said.contains(samples) && !said.contains("left out"), "{said}");
        assert!(
            said.contains("run: 1 optimizer step in 1 micro-step of 1 row, 1 epoch,"),
            "{said}"
        );
        assert!(said.lines().any(|line| line.starts_with("1 step in ")), "{said}");
        steps.push(end["steps"].clone());
    }
    assert_eq!(steps, [1, 1]);
}

#[test]
fn a_run_says_how_many_samples_have_empty_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let (tokenizer, model) = (shared("golden"), shared("golden/minimind2"));
    let data = dir.path().join("empty.json");
    fs_err::write(&data, format!("[{},\n{}]", chat("a", ""), chat("b", ""))).expect("a file");
    let out = dir.path().join("run");
    let args = ["train", "sft", "--from", text(&model), "--tokenizer", text(&tokenizer)];
    let rest = ["--data", text(&data), "--out", text(&out), "--max-steps", "1", "--threads", "1"];
    let (_, said) =
        run(&args.iter().chain(&rest).chain(&["--device", "cpu"]).copied().collect::<Vec<_>>());
    let expected = "warning: 2 samples, which is all there are, have an empty answer, of which only the end is \
                    learned: records 1, 2";
    assert!(said.contains(expected), "{said}");
}

/// The configuration that is saved, and so what a resumed run is held to.
#[test]
fn a_runs_system_ratio_follows_the_stage() {
    use mmx_data::Recipe;
    use mmx_training::config::TrainConfig;
    for (stage, ratio) in [
        ("pretrain", 0.2),
        ("sft", 0.2),
        ("lora", 0.2),
        ("distill", 0.2),
        ("reason", 0.2),
        ("dpo", 0.0),
    ] {
        let stage = mmx_training::stage::by_name(stage).expect("a stage");
        let config = TrainConfig::new(stage.as_ref(), Recipe::R2026);
        assert_eq!(config.system_ratio, ratio, "{}", stage.name());
        // the fixtures of all stages hold rendered chats without empty thoughts: DPO takes them out too
        assert_eq!(config.empty_think_ratio, 0.2, "{}", stage.name());
    }
}

/// The form of a file changes nothing: batches and weights are those of the same records as JSON Lines, and so are they
/// where the run ended early and went on.
#[test]
fn tables_train_to_the_weights_of_their_records_as_lines_also_when_resumed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (tokenizer, model) = (shared("golden-2026"), shared("golden-2026/minimind3"));
    for (stage, lines, tables) in [
        ("pretrain", "texts.jsonl", &["texts-snappy.parquet", "texts-v2.parquet"][..]),
        ("sft", "chats.jsonl", &["chats.parquet", "chats-sharegpt.parquet"]),
        ("dpo", "preferences.jsonl", &["preferences.parquet", "preferences-prompt.parquet"]),
    ] {
        fs_err::create_dir(dir.path().join(stage)).expect("a folder");
        let train = |data: &str, resume: bool| -> (Vec<u8>, Vec<u8>) {
            let data = shared("tables").join(data);
            let out = dir.path().join(stage).join(data.file_name().expect("a name"));
            let batches = out.with_extension("batches");
            let mut args =
                vec!["train", stage, "--from", text(&model), "--tokenizer", text(&tokenizer)];
            args.extend([
                "--data",
                text(&data),
                "--out",
                text(&out),
                "--batch-size",
                "2",
                "--accum",
                "1",
            ]);
            args.extend([
                "--epochs",
                "2",
                "--max-seq-len",
                "64",
                "--pack",
                "off",
                "--lr",
                "1e-3",
                "--dtype",
                "f32",
            ]);
            args.extend(["--device", "cpu", "--threads", "1", "--save-every", "1", "--keep", "99"]);
            if resume {
                args.push("--resume");
            } else {
                args.extend(["--dump-batches", text(&batches)]);
            }
            let (end, said) = run(&args);
            let checkpoint = PathBuf::from(end["checkpoint"].as_str().expect("a path"));
            if !resume {
                assert!(end["steps"].as_u64().is_some_and(|steps| steps >= 4), "{said}");
            }
            let read = |path: PathBuf| fs_err::read(path).expect("a file");
            (read(checkpoint.join("model.safetensors")), read(batches))
        };
        let (weights, batches) = train(lines, false);
        for table in tables {
            let found = train(table, false);
            assert!(found.1 == batches, "{table}: other batches");
            assert!(found.0 == weights, "{table}: other weights");
            // what came after the first step is lost
            let out = dir.path().join(stage).join(table);
            for entry in fs_err::read_dir(&out).expect("a run").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("checkpoint-") && name != "checkpoint-000001" {
                    fs_err::remove_dir_all(entry.path()).expect("removed");
                }
            }
            assert!(train(table, true).0 == weights, "{table}: other weights after going on");
        }
    }
}

/// A name that is mapped may stand in the recipe file, and a run goes on with the same mapping alone.
#[test]
fn mapped_names_may_stand_in_a_recipe_file_and_are_part_of_the_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let (tokenizer, model) = (shared("golden-2026"), shared("golden-2026/minimind3"));
    let recipe = dir.path().join("recipe.toml");
    fs_err::write(&recipe, "field = [\"text=page.body\"]\nmax-seq-len = 64\n").expect("a file");
    let (data, out) = (shared("tables/body.parquet"), dir.path().join("run"));
    let args = ["train", "pretrain", "--from", text(&model), "--tokenizer", text(&tokenizer)];
    let rest = ["--data", text(&data), "--out", text(&out), "--device", "cpu", "--threads", "1"];
    let more = ["--accum", "1", "--epochs", "1", "--recipe-file", text(&recipe)];
    let all: Vec<&str> = args.into_iter().chain(rest).chain(more).collect();
    let (_, said) = run(&all);
    assert!(said.contains("data: 12 samples,"), "{said}");
    fs_err::write(&recipe, "field = [\"text=title\"]\nmax-seq-len = 64\n").expect("a file");
    let out = mmx(&[&all[..], &["--resume"]].concat());
    let said = String::from_utf8(out.stderr).expect("UTF-8");
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("fields: was [\"text=page.body\"], now [\"text=title\"]"), "{said}");
}
