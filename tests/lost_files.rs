//! What people lose files by: an output that is its own input, folders that are tidied, rotated or replaced, a push
//! of half a model, lines typed ahead, and what a killed command leaves behind.

mod common;
mod hub;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{mmx, mmx_error, mmx_ok, shared, text};
use serde_json::{Value, json};

/// golden/minimind2 with its tokenizer, as a Transformers folder `hf-f32` and GGUFs below the folder returned.
fn exported(dir: &Path, more: &[&str]) -> PathBuf {
    let out = dir.join("exported");
    export(&out, more);
    out
}

fn export(out: &Path, more: &[&str]) {
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let fixed = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m"];
    mmx_ok(&[&fixed[..], &["--out", text(out)], more].concat());
}

/// The same, with what it said on stderr; it must succeed.
fn said(args: &[&str]) -> String {
    let out = mmx(args);
    let stderr = String::from_utf8(out.stderr).expect("UTF-8");
    assert!(out.status.success(), "{args:?}: {stderr}");
    stderr
}

/// Every file below a folder, by its path in it.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs_err::read_dir(folder).expect("a folder").flatten().map(|e| e.path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let bytes = fs_err::read(&path).expect("a file");
                    all.push((path.strip_prefix(dir).expect("inside").to_owned(), bytes));
                }
            }
        }
    }
    all.sort();
    all
}

fn names(dir: &Path) -> Vec<String> {
    let name = |(path, _): (PathBuf, Vec<u8>)| text(&path).to_owned();
    files(dir).into_iter().map(name).collect()
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs_err::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs_err::write(path, bytes).expect("a file");
}

/// Refused with exit code 1 and these words; no file below `dir` is another one afterwards.
fn refused(dir: &Path, args: &[&str], words: &[&str]) {
    let before = files(dir);
    let error = mmx_error(args);
    for word in words {
        assert!(error.contains(word), "{args:?}: expected {word:?} in {error}");
    }
    assert_eq!(names(dir), before.iter().map(|f| text(&f.0)).collect::<Vec<_>>(), "{args:?}");
    assert!(files(dir) == before, "{args:?}: a file changed");
}

/// Case quantize-same-file.
#[cfg(unix)]
#[test]
fn quantize_refuses_its_input_as_its_output_by_every_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = exported(dir.path(), &["--gguf", "f16"]);
    let at = |name: &str| dir.path().join(name);
    fs_err::copy(out.join("m-131K-f16.gguf"), at("a.gguf")).expect("a copy");
    fs_err::hard_link(at("a.gguf"), at("hard.gguf")).expect("a link");
    fs_err::os::unix::fs::symlink("a.gguf", at("soft.gguf")).expect("a link");
    fs_err::create_dir(at("f")).expect("a folder");
    for (input, output) in [
        ("a.gguf", "a.gguf"),
        ("a.gguf", "./a.gguf"),
        ("a.gguf", "f/../a.gguf"),
        ("a.gguf", "hard.gguf"),
        ("a.gguf", "soft.gguf"),
        ("soft.gguf", "a.gguf"),
    ] {
        let (input, output) = (at(input), at(output));
        let words = [text(&input), text(&output), "than the input"];
        refused(dir.path(), &["quantize", text(&input), text(&output), "q4_0"], &words);
    }
    let imatrix = at("i.gguf");
    write(&imatrix, "not read yet");
    let args = ["quantize", text(&at("a.gguf")), text(&imatrix), "q4_0"].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    refused(dir.path(), &[&args[..], &["--imatrix", text(&imatrix)]].concat(), &["i.gguf"]);
    // a link that leads elsewhere is replaced, and what it leads to stays
    fs_err::copy(at("a.gguf"), at("other.gguf")).expect("a copy");
    let link = at("link.gguf");
    fs_err::os::unix::fs::symlink("other.gguf", &link).expect("a link");
    mmx_ok(&["quantize", text(&at("a.gguf")), text(&link), "q4_0"]);
    let bytes = |name: &str| fs_err::read(at(name)).expect("a file");
    assert!(bytes("other.gguf") == bytes("a.gguf") && bytes("link.gguf") != bytes("a.gguf"));
}

#[test]
fn no_command_writes_over_what_it_reads() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = exported(dir.path(), &["--hf", "f32", "--gguf", "f16"]);
    let (hf, gguf) = (out.join("hf-f32"), out.join("m-131K-f16.gguf"));
    let dotted = out.join(".").join("hf-f32");
    let at = |name: &str| dir.path().join(name);
    write(&at("ids.json"), "[1, 2, 3]");
    write(&at("poem.txt"), "a text of some tokens, and some more of them\n".repeat(20));
    write(&at("q.csv"), "id,question,A,B,C,D,answer\n0,x,a,b,c,d,A\n");
    write(&at("run.svg"), "{\"step\": 1, \"loss\": 2.0, \"lr\": 0.1}\n");
    write(&at("tok/tokenizer.json"), "some text to train on\n");
    let (ids, poem, questions) = (at("ids.json"), at("poem.txt"), at("q.csv"));
    let (curve, tokens) = (at("run.svg"), at("tok"));
    let (weights, data) = (hf.join("model.safetensors"), tokens.join("tokenizer.json"));
    let [hf, gguf, dotted, out, weights] =
        [&hf, &gguf, &dotted, &out, &weights].map(|path| text(path).to_owned());
    let [hf, gguf, dotted, out, weights] =
        [&hf, &gguf, &dotted, &out, &weights].map(|s| s.as_str());
    for (args, word) in [
        (&["import", hf, "--out", dotted][..], "hf-f32"),
        (&["export", hf, "--hf", "f32", "--out", out], "hf-f32"),
        (&["export", gguf, "--gguf", "f16", "--out", out, "--name", "m"], "m-131K-f16.gguf"),
        (&["imatrix", gguf, "--data", text(&poem), "--out", text(&poem)], "poem.txt"),
        (&["imatrix", gguf, "--data", text(&poem), "--out", gguf], "m-131K-f16.gguf"),
        (&["imatrix", hf, "--data", text(&poem), "--out", weights], "model.safetensors"),
        (&["plot", text(&curve), "--out", text(&curve)], "run.svg"),
        (&["logits", gguf, "--ids", text(&ids), "--out", text(&ids)], "ids.json"),
        (&["logits", hf, "--ids", text(&ids), "--out", weights], "model.safetensors"),
        (&["eval", gguf, "--ppl", text(&poem), "--html", text(&poem)], "poem.txt"),
        (&["eval", gguf, "--choice", text(&questions), "--answers", text(&questions)], "q.csv"),
        (
            &[
                "tokenizer",
                "train",
                "--data",
                text(&data),
                "--vocab-size",
                "400",
                "--out",
                text(&tokens),
            ],
            "tokenizer.json",
        ),
    ] {
        refused(dir.path(), args, &[word, "than the input"]);
    }
}

#[test]
fn a_tokenizer_is_not_trained_over_a_models() {
    let dir = tempfile::tempdir().expect("a folder");
    let hf = exported(dir.path(), &["--hf", "f32"]).join("hf-f32");
    let data = shared("golden/pretrain.jsonl");
    let args =
        ["tokenizer", "train", "--data", text(&data), "--vocab-size", "400", "--out", text(&hf)];
    refused(dir.path(), &args, &["config.json", "without a model"]);
}

/// Case export-inside-checkpoint: the export is not where it would give way with the checkpoint.
#[test]
fn export_without_a_model_writes_into_the_run_not_into_its_checkpoint() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = dir.path().join("runs/a/checkpoint-000060");
    let golden = shared("golden/minimind2");
    for name in ["config.json", "model.safetensors"] {
        write(&checkpoint.join(name), fs_err::read(golden.join(name)).expect("a fixture"));
    }
    let before = names(&checkpoint);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
    command.args(["export", "--gguf", "q8_0"]).current_dir(dir.path());
    assert!(command.output().expect("mmx starts").status.success());
    assert_eq!(names(&checkpoint), before);
    let found = names(&dir.path().join("runs/a/export"));
    assert_eq!(found, [".mmx-files.json", "README.md", "a-131K-q8_0.gguf"]);
}

/// Case export-over-own-readme.
#[test]
fn an_export_keeps_a_readme_and_a_modelfile_that_are_not_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tokenizer, e) =
        (shared("golden/minimind2"), shared("golden"), dir.path().join("e"));
    let mine = [("README.md", "mine"), ("Modelfile", "FROM mine"), ("hf-bf16/README.md", "mine")];
    mine.iter().for_each(|(name, text)| write(&e.join(name), text));
    let args = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m", "--gguf"];
    let args = [&args[..], &["q8_0", "--hf", "bf16", "--ollama", "--out", text(&e)]].concat();
    let read = |name: &str| fs_err::read_to_string(e.join(name)).expect("a file");
    for _ in 0..2 {
        let stderr = said(&args);
        for (name, text) in mine {
            let path = e.join(name);
            assert!(stderr.contains(&format!("{}: kept", path.display())), "{stderr}");
            assert!(stderr.contains("(--overwrite replaces it)"), "{stderr}");
            assert_eq!(read(name), text);
        }
    }
    let overwrite = [&args[..], &["--overwrite"]].concat();
    assert!(!said(&overwrite).contains("kept"));
    assert!(mine.iter().all(|(name, text)| read(name) != *text));
    // its own are replaced, and are the same again
    let before = files(&e);
    assert!(!said(&args).contains("kept") && files(&e) == before);
    // until they are edited
    let edited = read("README.md") + "more\n";
    write(&e.join("README.md"), &edited);
    assert!(said(&args).contains("README.md: kept") && read("README.md") == edited);
    // what is exported elsewhere is the same, the list of files too
    let other = dir.path().join("other");
    let args: Vec<&str> =
        args.iter().map(|a| if *a == text(&e) { text(&other) } else { a }).collect();
    said(&args);
    said(&overwrite);
    assert!(files(&other) == files(&e));
}

#[test]
fn an_export_replaces_only_weights_and_settings_that_are_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, tokenizer, e) =
        (shared("golden/minimind2"), shared("golden"), dir.path().join("e"));
    let base = ["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m"];
    let base = [&base[..], &["--out", text(&e)]].concat();
    let with = |more: &[&str]| -> Vec<String> {
        base.iter().chain(more).map(|s| (*s).to_owned()).collect()
    };
    for (place, targets) in [
        ("hf-f32/config.json", &["--hf", "f32"][..]),
        ("hf-f32/model.safetensors", &["--hf", "f32", "--shard-size", "200kB"]),
        ("hf-f32/model-00001-of-00009.safetensors", &["--hf", "f32"]),
        ("hf-f32/model.safetensors.index.json", &["--hf", "f32"]),
        ("hf-f32/tokenizer.json", &["--hf", "f32"]),
        ("m-131K-q8_0.gguf", &["--hf", "bf16", "--gguf", "q8_0"]),
        ("m-131K.pth", &["--pth"]),
    ] {
        write(&e.join(place), "{}");
        let args = with(targets);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let path = e.join(place);
        refused(dir.path(), &args, &[text(&path), "mmx did not write"]);
        assert!(String::from_utf8_lossy(&mmx(&args).stderr).contains("--overwrite"));
        let overwrite = [&args[..], &["--overwrite"]].concat();
        said(&overwrite);
        if place.contains("-of-") {
            // a shard of others that no index names stays, and is in the way as long as it is there
            assert_eq!(fs_err::read_to_string(&path).expect("kept"), "{}");
            fs_err::remove_file(&path).expect("removed");
        }
        let own = files(&e);
        said(&args); // its own now
        assert!(files(&e) == own, "{place}");
        if targets.contains(&"f32") {
            let folder = e.join("hf-f32");
            mmx_ok(&["verify", text(&model), text(&folder), "--tokens", "16"]);
            // readers would have taken the weights and the index of others for this model's
            let others = fs_err::read(&path).is_ok_and(|bytes| bytes == b"{}");
            assert!(!others, "{place}");
            assert_eq!(folder.join("model.safetensors").exists(), targets.len() == 2, "{place}");
        }
        fs_err::remove_dir_all(&e).expect("removed");
    }
}

#[test]
fn an_export_in_other_shards_removes_its_own_old_ones_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let e = dir.path().join("e");
    let hf = e.join("hf-f32");
    export(&e, &["--hf", "f32", "--shard-size", "100kB"]);
    let many = names(&hf).len();
    for name in ["notes.txt", "model-notes.safetensors", "extra/model.safetensors"] {
        write(&hf.join(name), "mine");
    }
    export(&e, &["--hf", "f32", "--shard-size", "300kB"]);
    let shards =
        |n: usize| names(&hf).iter().filter(|x| x.contains(&format!("-of-0000{n}"))).count();
    assert!(shards(2) == 2 && names(&hf).len() < many + 3, "{:?}", names(&hf));
    export(&e, &["--hf", "f32"]);
    assert!(!names(&hf).iter().any(|x| x.contains("-of-") || x.contains("index")));
    export(&e, &["--hf", "f32", "--shard-size", "100kB"]);
    assert!(!hf.join("model.safetensors").exists());
    for name in ["notes.txt", "model-notes.safetensors", "extra/model.safetensors"] {
        assert_eq!(fs_err::read_to_string(hf.join(name)).expect("kept"), "mine");
    }
}

#[test]
fn import_refuses_a_folder_that_holds_another_model_or_a_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = exported(dir.path(), &["--gguf", "f32"]);
    let gguf = out.join("m-131K-f32.gguf");
    let golden = shared("golden/minimind3");
    let at = |name: &str| dir.path().join(name);
    for name in ["config.json", "model.safetensors"] {
        write(&at("model").join(name), fs_err::read(golden.join(name)).expect("a fixture"));
    }
    write(&at("run/checkpoint-000010/config.json"), "{}");
    write(&at("log/metrics.jsonl"), "{}\n");
    write(&at("peft/adapter_config.json"), "{}");
    write(&at("checkpoint/training/state.json"), "{}");
    for (place, word) in [
        ("model", "config.json"),
        ("run", "checkpoint-000010"),
        ("log", "metrics.jsonl"),
        ("peft", "adapter_config.json"),
        ("checkpoint", "training"),
    ] {
        let place = at(place);
        refused(dir.path(), &["import", text(&gguf), "--out", text(&place)], &[text(&place), word]);
    }
    // its own it may replace, beside files of the user's, until they are changed
    let (own, notes) = (at("own"), at("own/notes.txt"));
    write(&notes, "mine");
    let args = ["import", text(&gguf), "--out", text(&own)];
    said(&args);
    said(&args);
    assert_eq!(fs_err::read_to_string(&notes).expect("kept"), "mine");
    let config = own.join("config.json");
    // and not with another model, also where its own is unchanged; a copy of the source is no other
    let other = ["import", text(&golden), "--out", text(&own)];
    refused(dir.path(), &other, &[text(&own), "another model"]);
    let copy = at("copy.gguf");
    fs_err::copy(&gguf, &copy).expect("copied");
    said(&["import", text(&copy), "--out", text(&own), "--dtype", "f16"]);
    let changed = fs_err::read_to_string(&config).expect("a file").replace("512", "1024");
    write(&config, changed);
    refused(dir.path(), &args, &[text(&config)]);
}

#[test]
fn push_refuses_an_index_with_a_missing_shard_before_the_network_is_touched() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = exported(dir.path(), &["--hf", "f32", "--shard-size", "200kB"]);
    let hf = out.join("hf-f32");
    let whole =
        fs_err::read(shared("golden/minimind2").join("model.safetensors")).expect("weights");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let push = |folder: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(["push", text(folder), "me/m"]).env("HF_ENDPOINT", &address);
        let out = command.output().expect("mmx starts");
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{stderr}");
        let words = ["model.safetensors.index.json", "model-00002-of-00003.safetensors"];
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
        assert!(listener.accept().is_err(), "the network was touched");
    };
    fs_err::remove_file(hf.join("model-00002-of-00003.safetensors")).expect("removed");
    push(&hf);
    // a whole file beside the index, which is what opens
    write(&hf.join("model.safetensors"), whole);
    push(&hf);
    // and in a folder below
    write(&out.join("config.json"), fs_err::read(hf.join("config.json")).expect("a file"));
    fs_err::rename(hf.join("model.safetensors"), out.join("model.safetensors")).expect("moved");
    push(&out);
}

#[test]
fn pull_keeps_a_file_that_it_did_not_write() {
    let dir = tempfile::tempdir().expect("a folder");
    let hub = hub::Server::start(0);
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(args).env("HF_ENDPOINT", &hub.address).env_remove("HF_TOKEN");
        let out = command.output().expect("mmx starts");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let e = exported(dir.path(), &["--gguf", "q8_0"]);
    let push = ["push", text(&e), "me/m"].map(str::to_owned);
    let push: Vec<&str> = push.iter().map(String::as_str).collect();
    assert_eq!(run(&push), (Some(0), String::new()));
    assert!(!hub.state().paths("me/m", "main").iter().any(|path| path.contains("mmx-files")));
    let project = dir.path().join("project");
    write(&project.join("README.md"), "my project");
    let before = files(&project);
    let pull = ["pull", "me/m", "--out", text(&project)];
    let (code, stderr) = run(&pull);
    assert!(code == Some(1) && stderr.contains("README.md"), "{stderr}");
    assert!(files(&project) == before, "nothing is fetched either");
    fs_err::remove_file(project.join("README.md")).expect("removed");
    assert_eq!(run(&pull).0, Some(0));
    // what it pulled follows the repository
    let card = e.join("README.md");
    write(&card, fs_err::read_to_string(&card).expect("a card") + "news\n");
    assert_eq!(run(&push).0, Some(0));
    assert_eq!(run(&pull).0, Some(0));
    let read = || fs_err::read_to_string(project.join("README.md")).expect("a file");
    assert!(read().ends_with("news\n"));
    // until it is edited
    write(&project.join("README.md"), "my project");
    write(&card, fs_err::read_to_string(&card).expect("a card") + "more\n");
    assert_eq!(run(&push).0, Some(0));
    assert_eq!((run(&pull).0, read()), (Some(1), "my project".to_owned()));
}

#[test]
fn what_a_killed_export_left_is_removed_by_the_next_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let e = dir.path().join("e");
    // as a killed one leaves them, and one that is being written by a process that lives
    write(&e.join(".mmx-kill3d.part"), "half a GGUF");
    write(&e.join(".mmx-KILLED.part/config.json"), "{}");
    let living = e.join(".mmx-l1v1ng.part");
    write(&living, "half a GGUF");
    let lock = fs_err::File::open(&living).expect("a file");
    lock.file().lock().expect("a lock");
    export(&e, &["--hf", "f32", "--gguf", "q8_0"]);
    let parts = || names(&e).into_iter().filter(|name| name.contains(".part")).collect::<Vec<_>>();
    assert_eq!(parts(), [".mmx-l1v1ng.part"]);
    drop(lock);
    export(&e, &["--gguf", "q8_0"]);
    assert!(parts().is_empty(), "{:?}", parts());

    // two at once do not take each other's
    let (model, tokenizer) = (shared("golden/minimind2"), shared("golden"));
    let start = |ty: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(["export", text(&model), "--tokenizer", text(&tokenizer), "--name", "m"]);
        command.args(["--gguf", ty, "--hf", ty, "--out", text(&e), "--overwrite"]);
        command.stdout(std::process::Stdio::null()).spawn().expect("mmx starts")
    };
    for _ in 0..4 {
        let both = ["f16", "bf16"].map(start);
        for mut child in both {
            assert!(child.wait().expect("it ends").success());
        }
    }
    assert!(parts().is_empty(), "{:?}", parts());
}

/// Case typed-ahead, on a terminal of its own: whatever is typed or pasted at whatever time is a message.
#[cfg(unix)]
#[test]
fn lines_typed_or_pasted_while_an_answer_is_written_are_the_next_messages() {
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    let dir = tempfile::tempdir().expect("a folder");
    let gguf = exported(dir.path(), &["--gguf", "f32"]).join("m-131K-f32.gguf");
    let case =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cases/turn2/typed-ahead/lines.txt");
    let case = fs_err::read_to_string(case).expect("a fixture");
    let lines: Vec<&str> = case.lines().collect();
    let typed = case.replace('\n', "\r");
    let long: Vec<String> =
        (0..40).map(|i| format!("line {i} of a long paste\twith a tab")).collect();
    let long_lines: Vec<&str> = long.iter().map(String::as_str).collect();
    // in one go, line by line into the answers, as a paste that the terminal brackets, and longer than one read
    let pieces: Vec<(Vec<String>, &[&str])> = vec![
        (vec![typed.clone()], &lines),
        (case.lines().map(|line| format!("{line}\r")).collect(), &lines),
        (typed.bytes().map(|b| char::from(b).to_string()).collect(), &lines),
        (vec![format!("\x1b[200~{}\x1b[201~\r", case.trim_end())], &lines),
        (vec![long.iter().map(|line| format!("{line}\r")).collect()], &long_lines),
    ];
    for (i, (pieces, expected)) in pieces.into_iter().enumerate() {
        let history = dir.path().join(format!("{i}.json"));
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmx"));
        command.args(["chat", text(&gguf), "--greedy", "-n", "8", "--history", text(&history)]);
        let end = |fd: &std::os::fd::OwnedFd| fd.try_clone().expect("a handle");
        command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(pty.slave);
        let mut child = command.env("TERM", "xterm").spawn().expect("mmx starts");
        drop(command); // its ends of the terminal
        let mut screen = fs_err::File::from_parts(end(&pty.master).into(), "terminal");
        let mut keys = fs_err::File::from_parts(pty.master.into(), "terminal");
        let (shown, sent) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                let _ = shown.send(buffer[..read].to_vec());
            }
        });
        let mut seen = String::new();
        while !seen.contains("> ") {
            let more = sent.recv_timeout(Duration::from_secs(60)).expect("a prompt");
            seen.push_str(&String::from_utf8_lossy(&more));
        }
        for piece in pieces {
            keys.write_all(piece.as_bytes()).expect("typed");
            std::thread::sleep(Duration::from_millis(3));
        }
        let users = || -> Vec<String> {
            let Ok(text) = fs_err::read_to_string(&history) else { return Vec::new() };
            let all: Vec<Value> = serde_json::from_str(&text).expect("a history");
            let users = all.iter().filter(|m| m["role"] == "user");
            users.map(|m| m["content"].as_str().expect("a text").to_owned()).collect()
        };
        let begin = Instant::now();
        while users().len() < expected.len() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(users(), expected, "way {i}");
        std::thread::sleep(Duration::from_millis(300)); // until the next prompt
        keys.write_all(b"\x04").expect("typed");
        assert!(child.wait().expect("it ends").success());
        drop(keys);
        reader.join().expect("read");
        assert_eq!(users(), expected, "way {i}");
    }
    assert_eq!(json!(lines), json!(["first question", "second question", "third question"]));
}

#[test]
fn a_tokenizer_that_is_not_its_own_is_kept_until_one_says_overwrite() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (shared("golden/pretrain.jsonl"), dir.path().join("tok"));
    let tokenizer = out.join("tokenizer.json");
    fs_err::create_dir_all(&out).expect("a folder");
    fs_err::write(&tokenizer, "{\"mine\": 1}").expect("a file");
    let train =
        ["tokenizer", "train", "--data", text(&data), "--vocab-size", "400", "--out", text(&out)];
    let error = mmx_error(&train);
    assert!(error.contains("tokenizer.json") && error.contains("not its own"), "{error}");
    assert_eq!(fs_err::read_to_string(&tokenizer).expect("kept"), "{\"mine\": 1}");

    mmx_ok(&[&train[..], &["--overwrite"]].concat());
    let first = fs_err::read(&tokenizer).expect("written");
    mmx_ok(&train); // its own, unchanged
    assert_eq!(fs_err::read(&tokenizer).expect("written"), first);
    let settings = out.join("tokenizer_config.json");
    fs_err::write(&settings, "{}").expect("edited");
    assert!(mmx_error(&train).contains("tokenizer_config.json"));
    assert_eq!(fs_err::read_to_string(&settings).expect("kept"), "{}");
}

#[test]
fn an_export_in_other_splits_removes_only_the_parts_it_wrote() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = shared("golden/minimind2");
    let golden = shared("golden");
    let out = dir.path().join("e");
    let export = |more: &[&str]| {
        let base = ["export", text(&model), "--tokenizer", text(&golden), "--name", "m"];
        mmx_ok(&[&base[..], &["--gguf", "f32", "--out", text(&out)], more].concat());
        let mut names: Vec<String> = fs_err::read_dir(&out)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .filter(|name| name.ends_with(".gguf"))
            .collect();
        names.sort();
        names
    };
    let many = export(&["--split-size", "200kB"]);
    assert!(many.len() > 2, "{many:?}");
    let mine = out.join(many[0].replace("-00001-of-", "-00001-of-9").replace("m-", "other-"));
    fs_err::write(&mine, "mine").expect("a file");
    let fewer = export(&["--split-size", "300kB"]);
    assert!(fewer.len() < many.len() + 1, "{fewer:?}");
    let whole = export(&[]);
    assert_eq!(whole.len(), 2, "{whole:?}"); // one GGUF, and the file of somebody else
    assert_eq!(fs_err::read_to_string(&mine).expect("kept"), "mine");
}

#[test]
fn the_parts_that_an_export_reads_stay_beside_the_whole_file_it_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, golden) = (shared("golden/minimind2"), shared("golden"));
    let out = dir.path().join("e");
    let to = ["--name", "m", "--gguf", "f32", "--out", text(&out)];
    let from = ["export", text(&model), "--tokenizer", text(&golden), "--split-size", "200kB"];
    mmx_ok(&[&from[..], &to].concat());
    let parts: Vec<PathBuf> = fs_err::read_dir(&out)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    assert!(parts.len() > 2, "{parts:?}");
    mmx_ok(&[&["export", text(&parts[0])][..], &to].concat());
    assert!(parts.iter().all(|part| part.exists()), "{parts:?}");
}
