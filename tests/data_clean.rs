//! `mmx data filter | dedup | convert | mix` and `mmx tokenizer eval | extend` as their users see them: the same bytes
//! whatever the number of threads, files whole or not at all, shards that make one run, bounded memory.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_converters::digest;
use serde_json::{Value, json};

/// A folder of the test's own.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

/// Texts of made words; some are copies of earlier ones with a word changed.
fn corpus(records: usize, seed: u64) -> Vec<String> {
    let mut random = mmx_converters::random::Random::new(seed, 0);
    let mut texts: Vec<String> = Vec::new();
    for _ in 0..records {
        let mut words: Vec<String> = match texts.is_empty() || random.below(3) > 0 {
            true => {
                (0..40 + random.below(80)).map(|_| format!("word{}", random.below(900))).collect()
            }
            false => texts[random.below(texts.len())].split(' ').map(str::to_owned).collect(),
        };
        let at = random.below(words.len());
        words[at] = "other".to_owned();
        texts.push(words.join(" "));
    }
    texts
}

fn write(path: &Path, texts: &[String]) {
    let lines: Vec<String> = texts.iter().map(|text| json!({ "text": text }).to_string()).collect();
    fs_err::write(path, lines.join("\n") + "\n").expect("a file");
}

/// Runs mmx with so many threads.
fn with_threads(threads: usize, args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    let out = command.args(args).env("RAYON_NUM_THREADS", threads.to_string()).output();
    let out = out.expect("mmx starts");
    assert!(out.status.success(), "mmx {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn every_command_writes_the_same_bytes_whatever_the_number_of_threads() {
    let dir = folder();
    let input = dir.path().join("in.jsonl");
    write(&input, &corpus(2000, 1));
    for (command, more) in [
        ("filter", &["--rules", "rules.toml"][..]),
        ("dedup", &[]),
        ("convert", &["--stage", "pretrain"]),
        ("mix", &["--memory", "1"]),
    ] {
        let rules = dir.path().join("rules.toml");
        fs_err::write(&rules, "[length]\ncharacters = { min = 400 }\n[repetition]\n")
            .expect("a file");
        let more: Vec<&str> = more
            .iter()
            .map(|word| if *word == "rules.toml" { text(&rules) } else { word })
            .collect();
        let outputs = [1, 3].map(|threads| {
            let out = dir.path().join(format!("{command}-{threads}.jsonl.gz"));
            let args = [&["data", command, text(&input), "--out", text(&out)][..], &more].concat();
            with_threads(threads, &args);
            fs_err::read(&out).expect("a file")
        });
        assert!(outputs[0] == outputs[1] && outputs[0].len() > 1000, "{command}");
    }
}

#[test]
fn the_rules_shown_are_those_that_hold_and_every_rule_is_reported() {
    let dir = folder();
    let [input, rules, a, b] =
        ["in.jsonl", "rules.toml", "a.jsonl", "b.jsonl"].map(|n| dir.path().join(n));
    let lines = [
        json!({"text": "An ordinary sentence that nobody has anything against, written once."}),
        json!({"text": "too short"}),
        json!({"text": "write to someone@example.org about the meeting, please, before noon"}),
        json!({"text": "the same words again ".repeat(20)}),
        json!({"text": "caf\u{c3}\u{a9} was opened in a wrong encoding once, as one can see here"}),
    ];
    fs_err::write(&input, lines.map(|line| line.to_string()).join("\n")).expect("a file");
    fs_err::write(&rules, mmx_ok(&["data", "filter", "--show-rules"])).expect("a file");
    let report = mmx_json(&["data", "filter", text(&input), "--out", text(&a)]);
    mmx_ok(&["data", "filter", text(&input), "--rules", text(&rules), "--out", text(&b)]);
    assert_eq!(fs_err::read(&a).expect("a"), fs_err::read(&b).expect("b"));
    let named = |key: &str| {
        let list = report[key].as_array().expect("a list").iter();
        list.map(|c| c["rule"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        named("dropped"),
        ["length.characters", "repetition.top_2_grams", "encoding.broken"]
    );
    assert_eq!(named("replaced"), ["personal.email"]);
    assert_eq!((&report["read"], &report["kept"]), (&5.into(), &2.into()));
    assert_eq!(report["dropped"][0]["examples"][0]["line"], 2);
    assert!(fs_err::read_to_string(&a).expect("a").contains("write to [EMAIL] about"));
    // by tokens, which need a tokenizer
    fs_err::write(&rules, "[length]\ntokens = { max = 20 }").expect("a file");
    let args = ["data", "filter", text(&input), "--rules", text(&rules), "--out", text(&b)];
    assert_eq!(mmx(&args).status.code(), Some(2));
    let tokenizer = shared("golden");
    let report = mmx_json(&[&args[..], &["--tokenizer", text(&tokenizer)]].concat());
    assert_eq!(report["dropped"][0]["rule"], "length.tokens");
}

#[test]
fn outputs_are_never_inputs_or_files_of_others_and_appear_whole() {
    let dir = folder();
    let [input, out] = ["in.jsonl", "out.jsonl"].map(|name| dir.path().join(name));
    write(&input, &corpus(20, 2));
    for command in ["filter", "dedup", "mix"] {
        let run = |out: &Path| mmx_error(&["data", command, text(&input), "--out", text(out)]);
        assert!(run(&input).contains("expected another file"), "{command}");
        fs_err::write(&out, "somebody's").expect("a file");
        assert!(run(&out).contains("expected nothing, or what mmx wrote there"), "{command}");
        assert_eq!(fs_err::read_to_string(&out).expect("a file"), "somebody's");
        mmx_ok(&["data", command, text(&input), "--out", text(&out), "--overwrite"]);
        mmx_ok(&["data", command, text(&input), "--out", text(&out)]); // its own now
        fs_err::remove_file(&out).expect("removed");
    }
    // a faulty record ends it, and nothing is left behind
    let mut bytes = fs_err::read(&input).expect("a file");
    bytes.extend(b"{\"text\": \n");
    fs_err::write(&input, bytes).expect("a file");
    for command in ["filter", "dedup", "mix"] {
        let error = mmx_error(&["data", command, text(&input), "--out", text(&out)]);
        assert!(error.contains("in.jsonl: line 21: "), "{error}");
        let skipped =
            mmx_json(&["data", command, text(&input), "--out", text(&out), "--on-bad", "skip"]);
        let faulty =
            if command == "mix" { &skipped["sources"][0]["faulty"] } else { &skipped["faulty"] };
        assert_eq!(faulty, 1, "{skipped}");
        fs_err::remove_file(&out).expect("removed");
        let _ = fs_err::remove_file(dir.path().join("out.jsonl.manifest.json"));
    }
    let left: Vec<String> = fs_err::read_dir(dir.path())
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "in.jsonl" && name != ".mmx-files.json")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn shards_merged_equal_one_run() {
    let dir = folder();
    let texts = corpus(900, 3);
    let at = |name: String| dir.path().join(name);
    let shards: Vec<PathBuf> = texts
        .chunks(250)
        .enumerate()
        .map(|(i, part)| {
            let path = at(format!("shard{i}.jsonl"));
            write(&path, part);
            path
        })
        .collect();
    let names: Vec<&str> = shards.iter().map(|path| text(path)).collect();
    let whole = at("whole.jsonl".into());
    let report = mmx_json(&[&["data", "dedup"][..], &names, &["--out", text(&whole)]].concat());
    assert!(report["kept"].as_u64() < Some(800), "{report}");
    // each shard signed, all merged, each written: as an array of jobs does
    let signed: Vec<PathBuf> = shards.iter().map(|path| path.with_extension("sig")).collect();
    for (shard, signed) in names.iter().zip(&signed) {
        mmx_ok(&["data", "dedup", shard, "--sign", text(signed)]);
    }
    let clusters = at("all.dup".into());
    let signed: Vec<&str> = signed.iter().map(|path| text(path)).collect();
    let merged = mmx_json(&[&["data", "dedup", "--merge", text(&clusters)][..], &signed].concat());
    assert_eq!((&merged["records"], &merged["shards"]), (&900.into(), &4.into()));
    let mut together = Vec::new();
    for (i, shard) in names.iter().enumerate() {
        let out = at(format!("unique{i}.jsonl"));
        mmx_ok(&["data", "dedup", shard, "--clusters", text(&clusters), "--out", text(&out)]);
        together.extend(fs_err::read(&out).expect("a file"));
    }
    assert!(together == fs_err::read(&whole).expect("a file"));
    // signatures of other settings do not fit together
    mmx_ok(&["data", "dedup", names[0], "--sign", signed[0], "--bands", "5"]);
    let error = mmx_error(&[&["data", "dedup", "--merge", text(&clusters)][..], &signed].concat());
    assert!(error.contains("expected the settings of"), "{error}");
    // filtering is a record at a time
    let filter = |input: &[&str], out: &Path| {
        mmx_ok(&[&["data", "filter"][..], input, &["--out", text(out)]].concat());
        fs_err::read(out).expect("a file")
    };
    let one = filter(&names, &at("f.jsonl".into()));
    let parts: Vec<u8> =
        (0..4).flat_map(|i| filter(&names[i..=i], &at(format!("f{i}.jsonl")))).collect();
    assert!(one == parts);
    // and a mixture is made in parts of its order
    let mix = |part: &str, name: &str| {
        let out = at(name.to_owned());
        mmx_ok(&[&["data", "mix"][..], &names, &["--part", part, "--out", text(&out)]].concat());
        fs_err::read(out).expect("a file")
    };
    let one = mix("1/1", "m.jsonl");
    let parts = [mix("1/3", "m1.jsonl"), mix("2/3", "m2.jsonl"), mix("3/3", "m3.jsonl")];
    assert!(one == parts.concat() && parts.iter().all(|part| !part.is_empty()));
}

#[test]
fn records_of_evaluations_are_left_out() {
    let dir = folder();
    let [input, exam, out] =
        ["in.jsonl", "exam.jsonl", "out.jsonl"].map(|name| dir.path().join(name));
    let question = "下列关于光合作用的说法，正确的是哪一项？";
    fs_err::write(&exam, json!({"question": question, "answer": "A"}).to_string()).expect("a file");
    let chat = |asked: String| json!({"conversations": [{"role": "user", "content": asked}, {"role": "assistant", "content": "好"}]});
    let lines = [chat(format!("请回答：{question}")), chat("今天天气怎么样？".into())];
    fs_err::write(&input, lines.map(|line| line.to_string()).join("\n")).expect("a file");
    let args =
        ["data", "dedup", text(&input), "--exact", "--against", text(&exam), "--out", text(&out)];
    let report = mmx_json(&args);
    assert_eq!(report["dropped"][0]["rule"], "contaminated");
    let found = report["dropped"][0]["examples"][0]["found"].as_str().expect("words");
    assert!(found.contains("words in a row of") && found.contains("exam.jsonl:1"), "{found}");
    assert!(fs_err::read_to_string(&out).expect("a file").contains("天气"));
}

#[test]
fn converted_files_have_the_same_samples() {
    let dir = folder();
    let tokenizer = shared("golden-2026");
    let samples = |path: &Path, stage: &str| {
        let args = ["data", "check", "--stage", stage, "--tokenizer", text(&tokenizer), text(path)];
        mmx_json(&args)["samples_sha256"].as_str().expect("a digest").to_owned()
    };
    for (stage, file) in
        [("pretrain", "pretrain.jsonl"), ("sft", "sft.jsonl"), ("dpo", "dpo.jsonl")]
    {
        let input = shared("golden-2026").join(file);
        let expected = samples(&input, stage);
        let mut from = input.clone();
        for name in ["a.parquet", "b.jsonl.zst", "c.parquet", "d.jsonl"] {
            let out = dir.path().join(format!("{stage}-{name}"));
            let args = ["data", "convert", text(&from), "--stage", stage, "--out", text(&out)];
            let report = mmx_json(&args);
            assert_eq!(report["read"], report["kept"]);
            assert_eq!(samples(&out, stage), expected, "{}", out.display());
            from = out;
        }
    }
    // keys by name, and kinds that become others
    let csv = dir.path().join("qa.csv");
    fs_err::write(&csv, "question,answer\n1+1?,2\n").expect("a file");
    let out = dir.path().join("qa.jsonl");
    let fields = ["--field", "instruction=question", "--field", "output=answer"];
    let convert = |more: &[&str]| {
        let args = ["data", "convert", text(&csv), "--stage", "sft", "--out", text(&out)];
        mmx_ok(&[&args[..], &fields, more].concat());
        fs_err::read_to_string(&out).expect("a file")
    };
    assert_eq!(
        convert(&[]),
        "{\"conversations\":[{\"role\":\"user\",\"content\":\"1+1?\"},{\"role\":\"assistant\",\"content\":\"2\"}]}\n"
    );
    assert_eq!(convert(&["--as", "pretrain"]), "{\"text\":\"1+1?\\n\\n2\"}\n");
    assert!(convert(&["--form", "messages"]).starts_with("{\"messages\":[{\"role\""));
    let out = mmx(&[
        "data",
        "convert",
        text(&csv),
        "--stage",
        "pretrain",
        "--as",
        "sft",
        "--out",
        "x.jsonl",
    ]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn a_mixture_has_a_manifest_with_the_digests_of_its_files() {
    let dir = folder();
    let [a, b, out] = ["a.jsonl", "b.jsonl", "out.jsonl"].map(|name| dir.path().join(name));
    write(&a, &corpus(600, 4));
    write(&b, &corpus(100, 5));
    let (tokenizer, shares) =
        (shared("golden"), [&a, &b].map(|path| format!("{}=1", path.display())));
    let args =
        ["data", "mix", &shares[0], &shares[1], "--tokenizer", text(&tokenizer), "--total", "40K"];
    let report = mmx_json(&[&args[..], &["--out", text(&out)]].concat());
    let manifest =
        fs_err::read_to_string(dir.path().join("out.jsonl.manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    assert_eq!(manifest["sources"], report["sources"]);
    assert_eq!(manifest["sha256"], digest::of_file(&out).expect("a file"));
    for (source, path) in manifest["sources"].as_array().expect("a list").iter().zip([&a, &b]) {
        assert_eq!(source["sha256"], digest::of_file(path).expect("a file"));
        let taken = source["size_taken"].as_u64().expect("a number") as f64;
        assert!((taken - 20_000.0).abs() < 600.0, "{source}");
    }
    let lines = fs_err::read_to_string(&out).expect("a file").lines().count();
    assert_eq!(manifest["records"], lines);
    assert_eq!(mmx(&["data", "mix", "a=1", "b=5M", "--out", "x.jsonl"]).status.code(), Some(2));
}

#[test]
fn tokenizers_are_compared_and_extended() {
    let dir = folder();
    let [old, new, plain] = ["old", "new", "plain"].map(|name| dir.path().join(name));
    let data = dir.path().join("zh.jsonl");
    let sentences = [
        "今天天气很好，我们去公园散步，看到很多花。",
        "The weather was fine, and we took a walk through the park with them.",
    ];
    write(&data, &vec![sentences.map(str::to_owned); 30].concat());
    let train = ["tokenizer", "train", "--data", text(&data), "--vocab-size"];
    mmx_ok(&[&train[..], &["300", "--out", text(&plain)]].concat());
    let file = dir.path().join("alphabet.txt");
    fs_err::write(&file, "龘靐 天\n气天").expect("a file");
    mmx_ok(&[&train[..], &["310", "--alphabet", text(&file), "--out", text(&old)]].concat());
    for character in ["龘", "靐", "天", "气"] {
        let shown = mmx_json(&["tokenizer", "show", text(&old), character]);
        assert_eq!(shown["tokens"], 1, "{shown}");
    }
    let args = [
        "tokenizer",
        "extend",
        text(&old),
        "--data",
        text(&data),
        "--add",
        "20",
        "--out",
        text(&new),
    ];
    assert_eq!(mmx_json(&args)["vocab_size"], 330);
    let names = [&plain, &old, &new].map(|path| text(path).to_owned());
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let eval = [&["tokenizer", "eval"][..], &all, &["--data", text(&data)]].concat();
    let table = mmx_json(&eval);
    let rows = table["tokenizers"].as_array().expect("rows");
    let per: Vec<f64> =
        rows.iter().map(|r| r["bytes_per_token"].as_f64().expect("a number")).collect();
    assert!(per[2] > per[1] && per[1] > per[0], "{per:?}");
    assert!(
        rows.iter().all(|row| row["lost"] == 0 && row["languages"]["zh"]["texts"] == 30),
        "{table}"
    );
    let shown = mmx_ok(&eval);
    for word in ["characters per token", "  in zh", "unused entries", "longest of"] {
        assert!(shown.contains(word), "{shown}");
    }
    // a folder of others is not written over
    fs_err::write(new.join("tokenizer.json"), "{}").expect("a file");
    assert!(mmx_error(&args).contains("expected nothing, or what mmx wrote there"));
}

/// Files of 25 and 100 MB: what is held is blocks, and some bytes for each record.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_file() {
    let dir = folder();
    let texts = corpus(2000, 6);
    let sizes = [25u64 << 20, 100 << 20];
    let files = sizes.map(|size| {
        let path = dir.path().join(format!("{size}.jsonl"));
        let mut out = std::io::BufWriter::new(fs_err::File::create(&path).expect("a file"));
        let (mut written, mut i) = (0, 0);
        while written < size {
            let line =
                json!({ "text": format!("{i} {}", texts[i % texts.len()].repeat(3)) }).to_string();
            writeln!(out, "{line}").expect("written");
            written += line.len() as u64 + 1;
            i += 1;
        }
        out.into_inner().expect("written");
        path
    });
    let out = dir.path().join("out.jsonl");
    for (command, more) in [
        ("filter", &[][..]),
        ("dedup", &["--bands", "2"]),
        ("mix", &["--memory", "8"]),
        ("convert", &["--stage", "pretrain"]),
    ] {
        let used = [&files[0], &files[1]].map(|file| {
            common::peak(&[&["data", command, text(file), "--out", text(&out)][..], more].concat())
        });
        // 75 MB more of records: held, they would take as much
        assert!(used[1] < used[0] + (30 << 20), "{command}: {used:?}");
        assert!(used[1] < 250 << 20, "{command}: {used:?}");
    }
}
