//! Tokenizers, configurations and chat templates as other programs write them, through the binary: post-processors,
//! special ids, keys that stand in two places, several templates, tools.

mod common;
#[allow(dead_code, reason = "a part of it is used here")]
#[path = "common/server.rs"]
mod server;

use std::path::{Path, PathBuf};

use common::{GOLDEN, mmx, mmx_error, mmx_json, mmx_ok, shared, text};
use mmx_converters::gguf::{Gguf, Value as GgufValue};
use serde_json::{Value, json};
use server::Server;

fn read_json(path: &Path) -> Value {
    let text = fs_err::read_to_string(path).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

fn write_json(path: &Path, value: &Value) {
    fs_err::write(path, value.to_string()).expect("a file");
}

fn case(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases/turn2");
    let path = dir.join(name);
    assert!(path.exists(), "{}: expected the fixture", path.display());
    path
}

/// A golden model with its tokenizer in a folder of its own; each JSON file may be changed.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(model: &str) -> Self {
        let scene = Self { dir: tempfile::tempdir().expect("a folder") };
        fs_err::create_dir(scene.model()).expect("a folder");
        let set = model.split('/').next().expect("a set");
        for from in [
            format!("{model}/config.json"),
            format!("{model}/model.safetensors"),
            format!("{set}/tokenizer.json"),
            format!("{set}/tokenizer_config.json"),
        ] {
            let from = shared(&from);
            let to = scene.model().join(from.file_name().expect("a name"));
            fs_err::write(to, fs_err::read(from).expect("a fixture")).expect("a file");
        }
        scene
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes a JSON file of the model, or makes it.
    fn change(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.model().join(file);
        let mut value = if path.exists() { read_json(&path) } else { json!({}) };
        change(&mut value);
        write_json(&path, &value);
    }

    /// Exports the model with these formats into a new folder; what was said on stderr, and the folder.
    fn export(&self, out: &str, formats: &[&str]) -> (String, PathBuf) {
        let (model, to) = (self.model(), self.at(out));
        let mut args = vec!["export", text(&model), "--name", "m", "--out", text(&to)];
        args.extend(formats);
        let done = mmx(&args);
        let said = String::from_utf8(done.stderr).expect("UTF-8");
        assert!(done.status.success(), "{said}");
        (said, to)
    }
}

fn ids_of(model: &Path, input: &str) -> Value {
    mmx_json(&["tokenizer", "show", text(model), input])["ids"].clone()
}

fn file_in(dir: &Path, end: &str) -> PathBuf {
    let found =
        fs_err::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path());
    found.into_iter().find(|path| text(path).ends_with(end)).expect("a file of that kind")
}

#[test]
fn post_processors_are_what_they_do_in_folder_gguf_and_runner() {
    let processors = read_json(&case("post-processors/post_processors.json"));
    let expect = read_json(&case("post-processors/expect.json"));
    let adds = |name: &str| match name {
        "bos" | "sequence-bos" => Some((true, false)),
        "eos" => Some((false, true)),
        "bos-eos" => Some((true, true)),
        "twice" => None,
        _ => Some((false, false)),
    };
    assert_eq!(processors.as_object().expect("an object").len(), 9);
    for (name, processor) in processors.as_object().expect("an object") {
        let scene = Scene::new("golden/minimind2");
        scene.change("tokenizer.json", |t| t["post_processor"] = processor.clone());
        let model = scene.model();
        let check = |model: &Path| {
            for (i, text) in expect["texts"].as_array().expect("texts").iter().enumerate() {
                let input = text.as_str().expect("a text");
                assert_eq!(ids_of(model, input), expect["ids"][name][i], "{name}: {input:?}");
            }
        };
        check(&model);
        // what is trained on: the 2025 reference takes a text as the tokenizer gives it
        let data = scene.at("texts.jsonl");
        let record = json!({"text": expect["texts"][0]});
        fs_err::write(&data, format!("{record}\n")).expect("a file");
        let args = [
            "data",
            "show",
            "--stage",
            "pretrain",
            "--recipe",
            "2025",
            "--tokenizer",
            text(&model),
            text(&data),
        ];
        assert_eq!(mmx_json(&args)["samples"][0]["ids"], expect["ids"][name][0], "{name}");
        // the folder itself is carried on whatever its tokenizer adds
        let (_, out) = scene.export("folder", &["--hf", "f32"]);
        let hf = out.join("hf-f32");
        check(&hf);
        let settings = read_json(&hf.join("tokenizer_config.json"));
        let Some((bos, eos)) = adds(name) else {
            let error = mmx_error(&[
                "export",
                text(&model),
                "--gguf",
                "f32",
                "--out",
                text(&scene.at("g")),
            ]);
            let expected = "post_processor adds <|im_start|> <|im_start|> before each text and nothing after it";
            assert!(error.contains(expected), "{error}");
            let error = mmx_error(&["run", text(&model), "-p", "hi", "-n", "1"]);
            assert!(error.contains("post_processor adds"), "{error}");
            continue;
        };
        assert_eq!(
            (&settings["add_bos_token"], &settings["add_eos_token"]),
            (&bos.into(), &eos.into())
        );
        let (_, out) = scene.export("gguf", &["--gguf", "f32"]);
        let gguf = file_in(&out, ".gguf");
        check(&gguf);
        let metadata = Gguf::open(&gguf).expect("a GGUF");
        let flag = |key: &str| metadata.metadata().get(key).and_then(GgufValue::as_bool);
        assert_eq!(flag("tokenizer.ggml.add_bos_token"), Some(bos), "{name}");
        assert_eq!(flag("tokenizer.ggml.add_eos_token"), Some(eos), "{name}");
        // all engines of this build on both, with the ids of a text among what is compared
        let report = mmx_json(&["verify", text(&model), text(&gguf), text(&hf)]);
        assert_eq!(report["ok"], true, "{name}: {report}");
        let rows = report["rows"].as_array().expect("rows");
        assert!(rows.iter().any(|row| row["engine"] == "llama.cpp"), "{report}");
        assert!(rows.iter().all(|row| row["tokens_equal"] == true), "{name}: {report}");
        // out of the GGUF and back
        let back = scene.at("back");
        mmx_ok(&["import", text(&gguf), "--out", text(&back)]);
        check(&back);
        mmx_ok(&["run", text(&model), "--raw", "-p", "Ada has", "-n", "2"]);
    }
}

#[test]
fn a_chat_gets_no_token_from_the_post_processor() {
    let scene = Scene::new("golden-2026/minimind3");
    let chat = scene.at("chat.json");
    write_json(&chat, &json!([{"role": "user", "content": "hi"}]));
    let ids = || {
        mmx_json(&["tokenizer", "show", text(&scene.model()), "--chat", text(&chat)])["ids"].clone()
    };
    let before = ids();
    let bos = read_json(&case("post-processors/post_processors.json"))["bos-eos"].clone();
    scene.change("tokenizer.json", |t| t["post_processor"] = bos);
    assert_eq!(ids(), before);
    assert_eq!(ids_of(&scene.model(), "<|im_end|>"), json!([1, 2, 2]));
}

#[test]
fn truncation_and_padding_in_tokenizer_json_do_not_matter() {
    let long = "apples and pears ".repeat(20);
    let scene = Scene::new("golden/minimind2");
    let plain = ids_of(&scene.model(), &long);
    scene.change("tokenizer.json", |t| {
        t["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        t["padding"] = json!({"strategy": {"Fixed": 999}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    });
    assert_eq!(ids_of(&scene.model(), &long), plain);
    let (_, out) = scene.export("out", &["--gguf", "f32"]);
    assert_eq!(ids_of(&file_in(&out, ".gguf"), &long), plain);
}

#[test]
fn logits_of_ids_need_no_tokenizer() {
    let scene = Scene::new("golden/minimind2");
    let ids = scene.at("ids.json");
    write_json(&ids, &json!([1, 5, 9]));
    let logits = |name: &str| {
        let out = scene.at(name);
        let model = scene.model();
        let args =
            ["logits", text(&model), "--ids", text(&ids), "--out", text(&out), "--engine", "ggml"];
        mmx_ok(&args);
        fs_err::read(out).expect("logits")
    };
    let expected = logits("own");
    let twice = read_json(&case("post-processors/post_processors.json"))["twice"].clone();
    scene.change("tokenizer.json", |t| t["post_processor"] = twice);
    assert!(logits("refused by GGUF") == expected);
    fs_err::write(scene.model().join("tokenizer.json"), "no JSON").expect("a file");
    assert!(logits("no tokenizer") == expected);
    fs_err::remove_file(scene.model().join("tokenizer.json")).expect("a file");
    fs_err::remove_file(scene.model().join("tokenizer_config.json")).expect("a file");
    assert!(logits("none") == expected);
}

#[test]
fn exports_carry_what_the_readers_own_writers_write() {
    for golden in GOLDEN {
        let scene = Scene::new(golden);
        let (_, out) = scene.export("out", &["--hf", "f32"]);
        let config = read_json(&out.join("hf-f32/config.json"));
        let settings = read_json(&out.join("hf-f32/tokenizer_config.json"));
        assert_eq!(
            settings["model_input_names"],
            json!(["input_ids", "attention_mask"]),
            "{golden}"
        );
        assert_eq!(config["use_cache"], true, "{golden}");
        assert_eq!(config["initializer_range"], 0.02, "{golden}");
        let qwen = config["model_type"].as_str().expect("a type").starts_with("qwen3");
        // mistral.rs refuses a Qwen3 without it
        let layers = if qwen { config["num_hidden_layers"].clone() } else { Value::Null };
        assert_eq!(config["max_window_layers"], layers, "{golden}");
        assert_eq!(config.get("sliding_window"), qwen.then_some(&Value::Null), "{golden}");
        let dense = config["model_type"] == "qwen3";
        let kinds =
            dense.then(|| vec!["full_attention"; layers.as_u64().expect("a number") as usize]);
        assert_eq!(config.get("layer_types"), kinds.map(|kinds| json!(kinds)).as_ref(), "{golden}");
        // TRL asks every mixture of experts for it
        let experts = config.get("num_local_experts").or(config.get("num_experts"));
        assert_eq!(config.get("num_experts"), experts, "{golden}");
        assert_eq!(settings["padding_side"], "left", "{golden}");
        let generation = read_json(&out.join("hf-f32/generation_config.json"));
        assert_eq!(generation["eos_token_id"], config["eos_token_id"], "{golden}");
    }
}

#[test]
fn a_padding_side_of_the_source_is_kept() {
    let scene = Scene::new("golden/minimind2");
    scene.change("tokenizer_config.json", |config| config["padding_side"] = "right".into());
    let (_, out) = scene.export("out", &["--hf", "f32"]);
    let settings = read_json(&out.join("hf-f32/tokenizer_config.json"));
    assert_eq!(settings["padding_side"], "right");
}

#[test]
fn theta_in_two_places_is_the_one_transformers_5_takes_and_is_said() {
    let scene = Scene::new("golden/minimind2");
    let (_, out) = scene.export("own", &["--hf", "f32"]);
    let hf = out.join("hf-f32");
    let path = hf.join("config.json");
    let mut config = read_json(&path);
    config["rope_theta"] = 1e6.into();
    config["rope_parameters"]["rope_theta"] = 1e4.into();
    write_json(&path, &config);
    let to = scene.at("again");
    let done = mmx(&[
        "export",
        text(&hf),
        "--hf",
        "f32",
        "--gguf",
        "f32",
        "--name",
        "m",
        "--out",
        text(&to),
    ]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    let expected =
        "rope_theta is 1000000 and rope_parameters.rope_theta is 10000: the latter counts";
    assert!(said.contains(expected), "{said}");
    let written = read_json(&to.join("hf-f32/config.json"));
    assert_eq!(
        (&written["rope_theta"], &written["rope_parameters"]["rope_theta"]),
        (&json!(1e4), &json!(1e4))
    );
    let gguf = Gguf::open(file_in(&to, ".gguf")).expect("a GGUF");
    let base = gguf.metadata().get("llama.rope.freq_base").and_then(GgufValue::as_f64);
    assert_eq!(base, Some(1e4));
    // the runner says it too
    let run = mmx(&["run", text(&hf), "--raw", "-p", "Ada", "-n", "1"]);
    assert!(String::from_utf8_lossy(&run.stderr).contains(expected));
}

#[test]
fn special_ids_beyond_the_vocabulary_are_left_out_and_said() {
    let scene = Scene::new("golden/minimind2");
    scene.change("config.json", |c| {
        c["eos_token_id"] = json!([2, 9999]);
        c["bos_token_id"] = 7777.into();
        c["pad_token_id"] = 6666.into();
    });
    scene.change("generation_config.json", |g| g["eos_token_id"] = json!([2, 8888]));
    scene.change("tokenizer_config.json", |t| {
        t["additional_special_tokens"] = json!(["<|im_start|>", "<|unheard|>"]);
        t["image_token"] = "<|also_unheard|>".into();
    });
    let (said, out) = scene.export("out", &["--hf", "f32", "--gguf", "f32"]);
    for expected in ["9999", "8888", "7777", "6666", "<|unheard|>", "<|also_unheard|>"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let hf = out.join("hf-f32");
    for file in ["config.json", "generation_config.json"] {
        let written = read_json(&hf.join(file));
        let eos = &written["eos_token_id"];
        assert!(*eos == json!(2) || *eos == json!([2]), "{file}: {eos}");
        assert_eq!(
            (&written["bos_token_id"], &written["pad_token_id"]),
            (&json!(1), &json!(0)),
            "{file}"
        );
    }
    let settings = read_json(&hf.join("tokenizer_config.json"));
    assert_eq!(settings["additional_special_tokens"], json!(["<|im_start|>"]));
    assert_eq!(settings.get("image_token"), None);
    // what was written is what mmx reads
    for model in [hf, file_in(&out, ".gguf")] {
        let run = mmx(&["run", text(&model), "-p", "hi", "-n", "2"]);
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success() && !said.contains("warning"), "{said}");
    }
}

#[test]
fn ends_that_contradict_each_other_all_end_an_answer_and_it_is_said() {
    let scene = Scene::new("golden/minimind2");
    scene.change("config.json", |c| c["eos_token_id"] = 0.into());
    scene.change("generation_config.json", |g| g["eos_token_id"] = json!([5]));
    let (said, out) = scene.export("out", &["--hf", "f32", "--gguf", "f32"]);
    assert!(said.contains("the ends of an answer contradict each other"), "{said}");
    for file in ["config.json", "generation_config.json"] {
        let eos = read_json(&out.join("hf-f32").join(file))["eos_token_id"].clone();
        // the tokenizer's first: it is the main one
        assert_eq!(eos, json!([2, 5, 0]), "{file}");
    }
    // one list that has them all is no contradiction: Llama 3 is like this
    scene.change("generation_config.json", |g| g["eos_token_id"] = json!([0, 2, 5]));
    let (said, _) = scene.export("agreed", &["--gguf", "f32"]);
    assert!(!said.contains("contradict"), "{said}");
}

const DEFAULT: &str = "{% for m in messages %}D:{{ m.content }}{% endfor %}";
const TOOL_USE: &str = "T:{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}";

fn chat_with_tools() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function",
        "function": {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}}]})
}

#[test]
fn named_templates_are_chosen_as_transformers_chooses_in_every_form() {
    let named = [
        json!([{"name": "tool_use", "template": TOOL_USE}, {"name": "default", "template": DEFAULT},
            {"name": "rag", "template": "R"}]),
        json!({"default": DEFAULT, "tool_use": TOOL_USE, "rag": "R"}),
        Value::Null, // files
    ];
    for templates in named {
        let scene = Scene::new("golden-2026/minimind3");
        let files = templates.is_null();
        scene.change("tokenizer_config.json", |t| {
            t["chat_template"] = if files { "hidden by the files".into() } else { templates };
        });
        if files {
            let folder = scene.model().join("additional_chat_templates");
            fs_err::create_dir(&folder).expect("a folder");
            fs_err::write(scene.model().join("chat_template.jinja"), DEFAULT).expect("a file");
            fs_err::write(folder.join("tool_use.jinja"), TOOL_USE).expect("a file");
            fs_err::write(folder.join("rag.jinja"), "R").expect("a file");
        }
        let chat = scene.at("chat.json");
        let shown = |model: &Path, value: &Value| {
            write_json(&chat, value);
            mmx_json(&["tokenizer", "show", text(model), "--chat", text(&chat)])["text"].clone()
        };
        let (_, out) = scene.export("out", &["--hf", "f32", "--gguf", "f32"]);
        let (hf, gguf) = (out.join("hf-f32"), file_in(&out, ".gguf"));
        for model in [&scene.model(), &hf, &gguf] {
            assert_eq!(shown(model, &chat_with_tools()["messages"]), "D:hi");
            let with = shown(model, &chat_with_tools());
            let with = with.as_str().expect("a text");
            assert!(
                with.starts_with("T:[{\"type\": \"function\"") && with.ends_with("hi"),
                "{with}"
            );
        }
        let metadata = Gguf::open(&gguf).expect("a GGUF");
        let string = |key: &str| metadata.metadata().string(key);
        assert_eq!(string("tokenizer.chat_template"), Some(DEFAULT));
        assert_eq!(string("tokenizer.chat_template.tool_use"), Some(TOOL_USE));
        assert_eq!(string("tokenizer.chat_template.rag"), Some("R"));
        let Some(GgufValue::Strings(names)) = metadata.metadata().get("tokenizer.chat_templates")
        else {
            panic!("no tokenizer.chat_templates");
        };
        let mut names = names.clone();
        names.sort();
        assert_eq!(names, ["rag", "tool_use"]);
    }
}

#[test]
fn templates_without_a_default_are_named_in_the_error() {
    let scene = Scene::new("golden-2026/minimind3");
    scene.change("tokenizer_config.json", |t| {
        t["chat_template"] =
            json!([{"name": "rag", "template": "R"}, {"name": "a/../b", "template": "X"}]);
    });
    let chat = scene.at("chat.json");
    write_json(&chat, &chat_with_tools()["messages"]);
    let error = mmx_error(&["tokenizer", "show", text(&scene.model()), "--chat", text(&chat)]);
    assert!(error.contains("expected one named default, found only rag"), "{error}");
    let (said, _) = scene.export("out", &["--hf", "f32"]);
    assert!(said.contains("the chat template \"a/../b\" is left out"), "{said}");
}

#[test]
fn tools_that_a_template_does_not_render_are_refused_and_never_dropped() {
    let scene = Scene::new("golden-2026/minimind3");
    // the word is there, the tools are not
    scene.change("tokenizer_config.json", |t| {
        t["chat_template"] = format!("{{# no tools here #}}{DEFAULT}").into();
    });
    let model = scene.model();
    let server = Server::start(&[text(&model), "--name", "m"]);
    let mut request = chat_with_tools();
    request["max_tokens"] = 1.into();
    let answer = server.post("/v1/chat/completions", &request);
    let said: Value = serde_json::from_slice(&answer.chunks.concat()).expect("JSON");
    assert_eq!(answer.status, 400, "{said}");
    assert_eq!(said["error"]["param"], "tools", "{said}");
    let message = said["error"]["message"].as_str().expect("a message");
    assert!(message.contains("has no place for tools"), "{message}");
    let plain = json!({"messages": request["messages"], "max_tokens": 1});
    assert_eq!(server.post("/v1/chat/completions", &plain).status, 200);
    let chat = scene.at("chat.json");
    write_json(&chat, &chat_with_tools());
    let shown = mmx(&["tokenizer", "show", text(&model), "--chat", text(&chat)]);
    let said = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(said.contains("the chat template renders nothing of the tools"), "{said}");
}

#[test]
fn special_strings_in_the_text_are_not_learned() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, out) = (dir.path().join("text.jsonl"), dir.path().join("tok"));
    let line = json!({"text": "<|im_start|>user\nlow lower<|im_end|>\n<think>lowest</think>"});
    fs_err::write(&data, format!("{line}\n").repeat(60)).expect("a file");
    let args =
        ["tokenizer", "train", "--data", text(&data), "--vocab-size", "310", "--out", text(&out)];
    mmx_ok(&args);
    let vocab = read_json(&out.join("tokenizer.json"))["model"]["vocab"].clone();
    let learned: Vec<&String> = vocab.as_object().expect("a vocabulary").keys().collect();
    assert!(learned.iter().any(|token| *token == "user"), "{learned:?}");
    for piece in ["im", "_end", "|>", "<|", "think"] {
        assert!(!learned.iter().any(|token| *token == piece), "{piece}: {learned:?}");
    }
}
