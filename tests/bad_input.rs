//! Bad input through the binary: every command ends in one clear sentence and exit code 1, and what was there
//! before is there afterwards, byte for byte.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{TRAINS, mmx_error, mmx_json, shared, text};
use serde_json::{Value, json};

/// A folder to spoil things in, and an output that must survive.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of these bytes.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs_err::write(&path, bytes).expect("a file");
        path
    }

    /// A model folder: a golden model whose configuration or weights are spoiled.
    fn model(&self, name: &str, spoil: impl FnOnce(&mut Value, &mut Vec<u8>)) -> PathBuf {
        let mut config = read_json(&shared("golden/minimind2/config.json"));
        let mut weights =
            fs_err::read(shared("golden/minimind2/model.safetensors")).expect("weights");
        spoil(&mut config, &mut weights);
        self.file(&format!("{name}/config.json"), config.to_string());
        self.file(&format!("{name}/model.safetensors"), weights);
        self.path(name)
    }
}

fn read_json(path: &Path) -> Value {
    let text = fs_err::read_to_string(path).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

/// Every file below a folder.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.clone(), fs_err::read(&path).expect("a file"))),
            }
        }
    }
    found
}

/// The header of a safetensors file, changed; the data stays.
fn with_header(
    weights: &[u8],
    change: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> Vec<u8> {
    let (length, rest) = weights.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header = serde_json::from_slice(header).expect("a header");
    change(&mut header);
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Runs each command, which must fail naming these words and leave the whole folder as it was.
fn refused(scene: &Scene, commands: &[Vec<&str>], words: &[&str]) {
    let before = contents(scene.dir.path());
    for command in commands {
        let line = mmx_error(command);
        for word in words {
            assert!(line.contains(word), "mmx {command:?}: expected {word:?} in: {line}");
        }
        assert!(contents(scene.dir.path()) == before, "mmx {command:?}: files changed");
    }
}

/// What opens a model, with outputs that are there already: every command in the build without libtorch; where it is
/// loaded at each start, which takes much longer, two by turns.
fn openers<'a>(model: &'a str, out: &'a str, ids: &'a str) -> Vec<Vec<&'a str>> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let mut all = vec![
        vec!["run", model, "-p", "x", "--raw"],
        vec!["bench", model, "-p", "1", "-n", "1", "--repeats", "1"],
        vec!["verify", model, model],
        vec!["logits", model, "--ids", ids, "--out", ids],
        vec!["export", model, "--hf", "f32", "--gguf", "f16", "--out", out, "--name", "m"],
        vec!["import", model, "--out", out],
        vec!["inspect", model],
    ];
    if TRAINS {
        let (tokenizer, data) = (text(&GOLDEN_TEXT.0), text(&GOLDEN_TEXT.1));
        let training = ["train", "sft", "--from", model, "--tokenizer", tokenizer];
        all.push([&training[..], &["--data", data, "--out", out]].concat());
        let turn = TURN.fetch_add(2, Ordering::Relaxed) % all.len();
        all.rotate_left(turn);
        all.truncate(2);
    }
    all
}

/// A tokenizer and chats with nothing wrong in them.
static GOLDEN_TEXT: std::sync::LazyLock<(PathBuf, PathBuf)> =
    std::sync::LazyLock::new(|| (shared("golden"), shared("golden/sft.jsonl")));

/// An export of a good model, which no refused one may touch, and ids to read and not overwrite.
fn outputs(scene: &Scene) -> (String, String) {
    let out = scene.path("out");
    let model = shared("golden/minimind2");
    let args = ["export", text(&model), "--hf", "f32", "--gguf", "f16", "--name", "m", "--out"];
    mmx_json(&[&args[..], &[text(&out)]].concat());
    let ids = scene.file("ids.json", "[1, 2, 3]");
    (text(&out).to_owned(), text(&ids).to_owned())
}

#[test]
fn damaged_safetensors_are_refused_by_every_command() {
    let scene = Scene::new();
    let (out, ids) = outputs(&scene);
    let norm = "model.norm.weight";
    let file = |name: &str| fs_err::read(shared("cases/files").join(name)).expect("a case");
    type Spoil<'a> = Box<dyn FnOnce(&mut Value, &mut Vec<u8>) + 'a>;
    let header = |change: fn(&mut serde_json::Map<String, Value>)| -> Spoil<'_> {
        Box::new(move |_, weights| *weights = with_header(weights, change))
    };
    let case = |name: &'static str| -> Spoil<'_> {
        Box::new(move |_, weights| *weights = file(&format!("{name}.safetensors")))
    };
    let cases: Vec<(&str, Spoil<'_>, Vec<&str>)> = vec![
        ("cut", Box::new(|_, w| w.truncate(w.len() - 5)), vec!["data_offsets"]),
        ("header-only", Box::new(|_, w| w.truncate(100)), vec!["header of 1 to 92 bytes"]),
        ("empty", Box::new(|_, w| w.clear()), vec!["found a file of 0 bytes"]),
        ("longer", Box::new(|_, w| w.extend([0; 64])), vec!["525568 bytes", "525632"]),
        ("declared-max", case("st-header-length/max"), vec!["18446744073709551615"]),
        ("declared-beyond", case("st-header-length/beyond"), vec!["1099511627776"]),
        ("declared-zero", case("st-header-length/zero"), vec!["header"]),
        ("not-json", case("st-header-length/notjson"), vec!["JSON header"]),
        ("short", case("st-header-length/short"), vec!["found a file of 5 bytes"]),
        ("small-range", case("st-shape-vs-offsets/small-range"), vec!["4000000 bytes"]),
        ("overflow", case("st-shape-vs-offsets/overflow"), vec!["2^64"]),
        ("reversed", case("st-shape-vs-offsets/reversed"), vec!["[16, 8]"]),
        ("dtype", case("st-shape-vs-offsets/dtype"), vec!["F99"]),
        (
            "overlap",
            header(|h| {
                let begin = h["model.layers.0.input_layernorm.weight"]["data_offsets"].clone();
                h["model.norm.weight"]["data_offsets"] = begin;
            }),
            vec![norm, "begin at"],
        ),
        ("missing", header(|h| drop(h.remove("model.norm.weight"))), vec!["model.safetensors"]),
        ("negative", header(|h| h["model.norm.weight"]["shape"] = json!([-64])), vec![norm]),
        ("lfs", case("st-lfs-pointer/model"), vec!["Git LFS pointer", "52193280"]),
    ];
    for (name, spoil, words) in cases {
        let model = scene.model(name, spoil);
        let words: Vec<&str> = words.into_iter().chain([name, "model.safetensors"]).collect();
        refused(&scene, &openers(text(&model), &out, &ids), &words);
    }
    // the same name twice, which JSON itself would let pass
    let model = scene.model("twice", |_, weights| {
        let twice =
            with_header(weights, |h| drop(h.insert("model.norm.weighT".into(), h[norm].clone())));
        let at = twice.windows(17).position(|w| w == b"model.norm.weighT").expect("the name");
        *weights = twice;
        weights[at..at + 17].copy_from_slice(norm.as_bytes());
    });
    refused(&scene, &openers(text(&model), &out, &ids), &["twice", norm]);
}

#[test]
fn models_that_are_not_what_their_config_says_are_refused_by_every_command() {
    let scene = Scene::new();
    let (out, ids) = outputs(&scene);
    let without = |name: &str| {
        let from = shared("golden/minimind2");
        let source = mmx_converters::Model::open(&from).expect("a golden model");
        let weights: Vec<_> = source.weights().iter().filter(|w| w.name != name).collect();
        let specs: Vec<_> = weights
            .iter()
            .map(|w| mmx_converters::safetensors::TensorSpec {
                name: w.name.clone(),
                dtype: mmx_converters::tensor::Dtype::F32,
                shape: w.shape.clone(),
            })
            .collect();
        let path = scene.path("missing.safetensors");
        mmx_converters::safetensors::write(&path, &specs, &BTreeMap::new(), |i| {
            source.weight(weights[i]).map(|(_, bytes)| bytes)
        })
        .expect("written");
        fs_err::read(path).expect("written")
    };
    let missing = "model.layers.1.mlp.up_proj.weight";
    let model = scene.model("missing", |_, weights| *weights = without(missing));
    refused(&scene, &openers(text(&model), &out, &ids), &["missing", missing]);

    let set = |key: &'static str, value: Value| {
        move |config: &mut Value, _: &mut Vec<u8>| config[key] = value
    };
    let model = scene.model("shape", set("intermediate_size", 128.into()));
    let words = ["mlp.gate_proj.weight", "expected shape [128, 64]", "found [192, 64]"];
    refused(&scene, &openers(text(&model), &out, &ids), &words);
    let model = scene.model("layers", set("num_hidden_layers", 1.into()));
    refused(&scene, &openers(text(&model), &out, &ids), &["expected 1 layers", "found 2"]);
    let model = scene.model("huge", set("vocab_size", (1u64 << 60).into()));
    refused(&scene, &openers(text(&model), &out, &ids), &["huge", "1152921504606846976"]);
    let model = scene.model("negative", set("hidden_size", (-64).into()));
    refused(&scene, &openers(text(&model), &out, &ids), &["config.json", "hidden_size"]);
    let model = scene.model("heads", set("num_attention_heads", 0.into()));
    refused(&scene, &openers(text(&model), &out, &ids), &["config.json", "num_attention_heads"]);

    let model = scene.model("unknown", |config, _| *config = json!({"model_type": "bert"}));
    refused(&scene, &openers(text(&model), &out, &ids), &["config.json", "found bert"]);
    let model = scene.model("cut-config", |_, _| ());
    scene.file("cut-config/config.json", r#"{"model_type": "minimind","#);
    refused(&scene, &openers(text(&model), &out, &ids), &["config.json", "JSON object"]);
    fs_err::remove_file(model.join("config.json")).expect("removed");
    refused(&scene, &openers(text(&model), &out, &ids), &["config.json"]);
    let shards = shared("cases/files/st-index-missing-shard");
    let words = ["model-00002-of-00002.safetensors"];
    refused(&scene, &openers(text(&shards), &out, &ids), &words);
}

#[test]
fn damaged_ggufs_are_refused_by_every_command() {
    let scene = Scene::new();
    let (out, ids) = outputs(&scene);
    let good = PathBuf::from(&out).join("m-131K-f16.gguf");
    let good = fs_err::read(good).expect("a GGUF");
    let cut = scene.file("cut.gguf", &good[..good.len() - 1000]);
    refused(&scene, &openers(text(&cut), &out, &ids), &["cut.gguf", "tensor"]);
    let cut = scene.file("keys.gguf", &good[..300]);
    refused(&scene, &openers(text(&cut), &out, &ids), &["keys.gguf"]);
    let mut arch = good;
    let at = arch.windows(5).position(|w| w == b"llama").expect("the architecture");
    arch[at..at + 5].copy_from_slice(b"mamba");
    let arch = scene.file("arch.gguf", arch);
    // `inspect` shows such a file with a warning: what it holds is all that is asked
    let mut commands = openers(text(&arch), &out, &ids);
    commands.retain(|command| command[0] != "inspect");
    refused(&scene, &commands, &["arch.gguf", "mamba"]);
    for (case, word) in [
        ("gguf-counts/tensors", "1152921504606846976"),
        ("gguf-counts/keys", "2305843009213693952"),
        ("gguf-counts/array", "4611686018427387904"),
        ("gguf-counts/dims", "200"),
        ("gguf-counts/version", "found 9"),
        ("gguf-size-wraps/wrap", "output_norm.weight"),
        ("gguf-alignment/zero", "general.alignment"),
        ("gguf-alignment/odd", "general.alignment"),
        ("gguf-alignment/type", "general.alignment"),
        ("gguf-alignment/huge", "general.alignment"),
        ("gguf-strings/length", "18446744073709551615"),
        ("gguf-strings/value", "1099511627776"),
        ("gguf-strings/utf8", "UTF-8"),
        ("gguf-strings/empty", "empty"),
        ("st-lfs-pointer/model", "Git LFS pointer"),
    ] {
        let path = shared(&format!("cases/files/{case}.gguf"));
        refused(&scene, &openers(text(&path), &out, &ids), &[".gguf", word]);
    }
}

#[test]
fn unreadable_paths_are_refused_by_every_command() {
    let scene = Scene::new();
    let (out, ids) = outputs(&scene);
    let none = scene.path("none");
    let none = text(&none);
    refused(&scene, &openers(none, &out, &ids), &["none: No such file or directory"]);
    let model = shared("golden/minimind2");
    let (model, golden) = (text(&model), shared("golden"));
    let golden = text(&golden);
    let mut commands = vec![
        vec!["logits", model, "--ids", none, "--out", &ids],
        vec!["verify", model, model, "--ids", none],
        vec!["verify", model, model, "--text", none],
        vec!["export", model, "--tokenizer", none, "--gguf", "f32", "--out", &out],
        vec!["tokenizer", "train", "--data", none, "--vocab-size", "300", "--out", &out],
        vec!["tokenizer", "show", none, "x"],
        vec!["tokenizer", "show", golden, "--chat", none],
        vec!["data", "check", "--stage", "sft", none],
        vec!["data", "show", "--stage", "sft", "--tokenizer", golden, none],
        vec!["eval", model, "--exact", none],
    ];
    let train = ["train", "pretrain", "--preset", "tiny", "--out", &out];
    if cfg!(feature = "train") {
        commands.push([&train[..], &["--tokenizer", golden, "--data", none]].concat());
        commands.push([&train[..], &["--tokenizer", none, "--data", &ids]].concat());
    }
    refused(&scene, &commands, &["none: No such file or directory"]);
    let folder = scene.path("out");
    let commands = [
        vec!["data", "check", "--stage", "sft", text(&folder)],
        vec!["tokenizer", "train", "--data", text(&folder), "--vocab-size", "300", "--out", none],
    ];
    refused(&scene, &commands, &[text(&folder)]);
}

/// Where a file stands, no folder can be written.
#[test]
fn outputs_that_cannot_be_written_leave_what_is_there() {
    let scene = Scene::new();
    let taken = scene.file("taken", "mine");
    let (model, data) = (shared("golden/minimind2"), shared("golden/pretrain.jsonl"));
    let (taken, model, data) = (text(&taken), text(&model), text(&data));
    let below = scene.path("taken/below");
    let ids = scene.file("ids.json", "[1, 2, 3]");
    let mut commands = vec![
        vec!["export", model, "--gguf", "f32", "--hf", "f32", "--out", taken],
        vec!["import", model, "--out", taken],
        vec!["tokenizer", "train", "--data", data, "--vocab-size", "300", "--out", taken],
        vec!["logits", model, "--ids", text(&ids), "--out", text(&below)],
    ];
    refused(&scene, &commands, &["taken"]);
    if TRAINS {
        commands.push(vec!["train", "sft", "--from", model, "--data", data, "--out", taken]);
    }
    refused(&scene, &commands, &[]);
}

#[test]
fn data_without_a_record_is_refused_by_every_command() {
    let scene = Scene::new();
    let tokenizer = shared("golden");
    let tokenizer = text(&tokenizer);
    let out = scene.path("out");
    scene.file("out/tokenizer.json", "an older one");
    let model = shared("golden/minimind2");
    let (out, model) = (text(&out), text(&model));
    for (name, bytes) in [("empty.jsonl", ""), ("blank.jsonl", "\u{feff}\r\n \n\t\n")] {
        let path = scene.file(name, bytes);
        let path = text(&path);
        let mut commands = vec![
            vec![
                "tokenizer",
                "train",
                "--data",
                path,
                "--vocab-size",
                "300",
                "--out",
                out,
                "--overwrite",
            ],
            vec!["data", "check", "--stage", "pretrain", path],
            vec!["data", "check", "--stage", "sft", "--tokenizer", tokenizer, path],
            vec!["data", "show", "--stage", "sft", "--tokenizer", tokenizer, path],
            vec!["eval", model, "--exact", path],
        ];
        if TRAINS {
            let training = ["train", "pretrain", "--preset", "tiny", "--tokenizer", tokenizer];
            commands.push([&training[..], &["--data", path, "--out", out]].concat());
        }
        refused(&scene, &commands, &[name]);
    }
}

#[test]
fn faulty_lines_are_named_by_every_command() {
    let scene = Scene::new();
    let tokenizer = shared("golden");
    let tokenizer = text(&tokenizer);
    let out = scene.path("out");
    scene.file("out/tokenizer.json", "an older one");
    let model = shared("golden/minimind2");
    let (out, model) = (text(&out), text(&model));
    let good = r#"{"text": "好"}"#;
    let deep = format!("{}1{}", r#"{"text":["#.repeat(50_000), "]}".repeat(50_000));
    for (name, line, word) in [
        ("cut", br#"{"text": "a"#.to_vec(), "EOF"),
        ("type", br#"{"text": 5}"#.to_vec(), "text"),
        ("list", b"[1, 2]".to_vec(), "object"),
        ("bytes", b"{\"text\": \"\xff\"}".to_vec(), "UTF-8"),
        ("deep", deep.into_bytes(), "recursion"),
    ] {
        let bytes = [good.as_bytes(), b"\n", &line, b"\n"].concat();
        let path = scene.file(&format!("{name}.jsonl"), bytes);
        let file = path.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
        let path = text(&path);
        let mut commands = vec![vec![
            "tokenizer",
            "train",
            "--data",
            path,
            "--vocab-size",
            "300",
            "--out",
            out,
            "--overwrite",
        ]];
        if cfg!(feature = "train") {
            let train = ["train", "pretrain", "--preset", "tiny", "--tokenizer", tokenizer];
            commands.push([&train[..], &["--data", path, "--out", out]].concat());
        }
        refused(&scene, &commands, &[&file, "line 2", word]);
        // the list of faults is data: it goes to stdout, and one sentence sums it up
        let checked = ["data", "check", "--stage", "pretrain", path];
        let found = common::mmx(&checked);
        let stdout = String::from_utf8(found.stdout).expect("UTF-8");
        assert!(stdout.contains(&format!("{file}:2: ")) && stdout.contains(word), "{stdout}");
        refused(&scene, &[checked.to_vec()], &["1 faulty line"]);
        // chats are asked for: the first line is none
        refused(&scene, &[vec!["eval", model, "--exact", path]], &[&file, "conversations"]);
        let shown = ["data", "show", "--stage", "sft", "--tokenizer", tokenizer, path];
        refused(&scene, &[shown.to_vec()], &[&file, "line 1", "conversations"]);
    }
}

#[test]
fn ids_that_are_none_are_refused_with_their_file() {
    let scene = Scene::new();
    let model = shared("golden/minimind2");
    let model = text(&model);
    let out = scene.file("logits.safetensors", "older logits");
    for (name, ids, word) in [
        ("negative", "[1, -2]", "-2"),
        ("cut", "[1, 2", "EOF"),
        ("beyond", "[1, 2, 512]", "512"),
        ("empty", "[]", "none"),
        ("ragged", "[[1, 2], [3]]", "length"),
        ("words", r#"["a"]"#, "\"a\""),
        ("nothing", "", "nothing"),
    ] {
        let path = scene.file(name, ids);
        let command = vec!["logits", model, "--ids", text(&path), "--out", text(&out)];
        refused(&scene, &[command], &[name, word]);
    }
}

/// A pickle is a program: none is run, and its file is named.
#[test]
fn hostile_pths_are_refused_by_every_command() {
    let scene = Scene::new();
    let (out, ids) = outputs(&scene);
    let hostile = shared("cases/files/pth-hostile-global/model.pth");
    refused(&scene, &openers(text(&hostile), &out, &ids), &["model.pth", "posix.system"]);
    let pointer = shared("cases/files/st-lfs-pointer/model.pth");
    refused(&scene, &openers(text(&pointer), &out, &ids), &["model.pth", "Git LFS pointer"]);
    let good = fs_err::read(shared("cases/files/pth-strides/model.pth")).expect("a case");
    let config = fs_err::read(shared("cases/files/pth-strides/config.json")).expect("a case");
    scene.file("cut/config.json", config);
    let cut = scene.file("cut/model.pth", &good[..good.len() / 2]);
    refused(&scene, &openers(text(&cut), &out, &ids), &["model.pth"]);
}
