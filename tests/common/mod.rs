//! What the tests that run the binary share. In: arguments. Out: exit code, stdout, stderr.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mmx_converters::safetensors::{TensorSpec, write};
use mmx_converters::tensor::{Dtype, encode_f32};
use mmx_converters::tokenizer::Tokenizer;
use serde_json::{Value, json};

include!("../fixtures/models.rs");

/// Whether `mmx-train` is built beside `mmx`.
pub const TRAINS: bool = cfg!(feature = "train");

/// A file of tests/fixtures; a missing one fails the test.
pub fn shared(path: &str) -> PathBuf {
    let full = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(path);
    assert!(full.exists(), "{}: expected a fixture", full.display());
    full
}

/// A chat of one question as a line.
pub fn chat(question: &str, answer: &str) -> String {
    let turns = [
        json!({"role": "user", "content": question}),
        json!({"role": "assistant", "content": answer}),
    ];
    json!({ "conversations": turns }).to_string()
}

/// Runs mmx with colours and progress off.
pub fn mmx(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmx")).args(args).output().expect("mmx starts")
}

/// Runs mmx, which must succeed; its stdout.
pub fn mmx_ok(args: &[&str]) -> String {
    let out = mmx(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "mmx {args:?} failed:\n{stderr}");
    String::from_utf8(out.stdout).expect("stdout is UTF-8")
}

/// Runs mmx with `--json`, which must succeed; the one object on stdout.
pub fn mmx_json(args: &[&str]) -> serde_json::Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let out = mmx_ok(&args);
    serde_json::from_str(&out)
        .unwrap_or_else(|e| panic!("mmx {args:?}: not one JSON object ({e}): {out}"))
}

/// Runs mmx, which must fail with exit code 1 and exactly one `error:` line on stderr; that line.
pub fn mmx_error(args: &[&str]) -> String {
    let out = mmx(args);
    let stderr = String::from_utf8(out.stderr).expect("stderr is UTF-8");
    assert_eq!(out.status.code(), Some(1), "mmx {args:?}: {stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "mmx {args:?}: expected one error line, found: {stderr}");
    assert!(!stderr.contains("panicked"), "mmx {args:?}: {stderr}");
    errors[0].to_owned()
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Copies a folder with all in it.
pub fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).expect("a folder");
    for entry in fs_err::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            fs_err::copy(source, target).expect("a copy");
        }
    }
}

/// Peak resident memory of a run of mmx, bytes, as the system tells it while it runs. (What it
/// tells afterwards counts this test's own memory, of which the child is forked.)
#[cfg(target_os = "linux")]
pub fn peak(args: &[&str]) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmx"))
        .args(args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("mmx starts");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let end = loop {
        // one that has ended has no memory any more
        let said = fs_err::read_to_string(&status).unwrap_or_default();
        let line = said.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0) * 1024);
        if let Some(end) = child.try_wait().expect("it is waited for") {
            break end;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    assert!(end.success() && most > 0, "{args:?}: {end}");
    most
}

/// Every character of several bytes ends in a token of its own, and no token comes twice.
pub const RECITED: &str = "好😀中谢验,OK";

/// A folder whose model recites [`RECITED`], and then emits `end`, after a newline.
pub fn reciting(dir: &Path, tokenizer_config: Option<&Path>, eos: Value, end: u32) -> PathBuf {
    let folder = dir.join(format!("reciting-{end}"));
    let golden = shared("golden");
    let settings = golden.join("tokenizer_config.json");
    let files = [golden.join("tokenizer.json"), tokenizer_config.unwrap_or(&settings).to_owned()];
    let tokenizer = Tokenizer::open(&golden).expect("a tokenizer");
    let ids = tokenizer.encode(RECITED).expect("ids");
    // before the text: the end of a prompt in the chat template
    let newline = tokenizer.encode("\n").expect("ids");
    assert_eq!(newline.len(), 1);
    reciting_ids(folder, files, &[&newline[..], &ids, &[end]].concat(), (512, 512), eos)
}

/// A folder whose model says of each id of `order` the next one: one-hot embeddings, nothing added to them by the
/// layer, and a head that holds each token's successor. `files`: tokenizer.json and tokenizer_config.json; ids of the
/// vocabulary and of the context.
pub fn reciting_ids(
    folder: PathBuf,
    files: [PathBuf; 2],
    order: &[u32],
    (vocab, context): (usize, usize),
    eos: Value,
) -> PathBuf {
    fs_err::create_dir_all(&folder).expect("a folder");
    for (from, name) in files.iter().zip(["tokenizer.json", "tokenizer_config.json"]) {
        fs_err::write(folder.join(name), fs_err::read(from).expect("a fixture")).expect("a file");
    }
    let mut chain = order.to_vec();
    chain.sort_unstable();
    chain.dedup();
    assert_eq!(chain.len(), order.len(), "a token that comes twice has no one successor");

    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": vocab,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 32, "vocab_size": vocab, "max_position_embeddings": context,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": eos,
        "pad_token_id": 0, "torch_dtype": "float32",
    });
    fs_err::write(folder.join("config.json"), config.to_string()).expect("a file");
    let square = |ones: &mut dyn Iterator<Item = (u32, u32)>| {
        let mut values = vec![0.0; vocab * vocab];
        ones.for_each(|(row, column)| values[row as usize * vocab + column as usize] = 1.0);
        values
    };
    let tensors: Vec<(&str, Vec<usize>, Vec<f32>)> = vec![
        ("lm_head.weight", vec![vocab, vocab], square(&mut order.windows(2).map(|w| (w[1], w[0])))),
        (
            "model.embed_tokens.weight",
            vec![vocab, vocab],
            square(&mut (0..vocab as u32).map(|i| (i, i))),
        ),
        ("model.layers.0.input_layernorm.weight", vec![vocab], vec![1.0; vocab]),
        ("model.layers.0.mlp.down_proj.weight", vec![vocab, 32], vec![0.0; vocab * 32]),
        ("model.layers.0.mlp.gate_proj.weight", vec![32, vocab], vec![0.0; 32 * vocab]),
        ("model.layers.0.mlp.up_proj.weight", vec![32, vocab], vec![0.0; 32 * vocab]),
        ("model.layers.0.post_attention_layernorm.weight", vec![vocab], vec![1.0; vocab]),
        ("model.layers.0.self_attn.k_proj.weight", vec![8, vocab], vec![0.0; 8 * vocab]),
        ("model.layers.0.self_attn.o_proj.weight", vec![vocab, 16], vec![0.0; vocab * 16]),
        ("model.layers.0.self_attn.q_proj.weight", vec![16, vocab], vec![0.0; 16 * vocab]),
        ("model.layers.0.self_attn.v_proj.weight", vec![8, vocab], vec![0.0; 8 * vocab]),
        ("model.norm.weight", vec![vocab], vec![1.0; vocab]),
    ];
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape, _)| TensorSpec {
            name: (*name).to_owned(),
            dtype: Dtype::F32,
            shape: shape.clone(),
        })
        .collect();
    write(&folder.join("model.safetensors"), &specs, &BTreeMap::new(), |i| {
        Ok(encode_f32(&tensors[i].2, Dtype::F32).into())
    })
    .expect("weights");
    folder
}
