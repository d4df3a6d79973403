//! Models as MiniMind's generations published them, made naively: random state dicts under the names
//! of each class, in torch's zip of a pickle, and as folders with each class's config.json.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use mmx_converters::random::SplitMix64;
use mmx_converters::safetensors::{TensorSpec, write};
use mmx_converters::tensor::Dtype;
use serde_json::{Value, json};

/// Width of the models.
pub const HIDDEN: usize = 128;
/// The tokenizer's of tests/fixtures/golden.
pub const VOCAB: usize = 512;
const LAYERS: usize = 2;
const EXPERTS: usize = 4;

/// A tensor: its name, its shape, its values.
pub type Tensor = (String, Vec<usize>, Vec<f16>);

/// The classes that MiniMind's weights were saved by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `LMConfig` of 2024: 16 heads, a base of 1e4, masks in the file.
    V1,
    /// `LMConfig` of early 2025: 8 heads, a base of 1e6.
    V2LmConfig,
    /// `MiniMindConfig` of April 2025: Transformers' names.
    V2,
    /// `MiniMindConfig` of 2026: norms of q and k.
    V3,
}

/// A generation of models.
#[derive(Clone, Copy, Debug)]
pub struct Generation {
    pub class: Class,
    pub moe: bool,
}

impl Generation {
    pub fn heads(self) -> (usize, usize) {
        match self.class {
            Class::V1 => (16, 8),
            Class::V2LmConfig | Class::V2 => (8, 2),
            Class::V3 => (8, 4),
        }
    }

    fn head_dim(self) -> usize {
        HIDDEN / self.heads().0
    }

    fn theta(self) -> f64 {
        if self.class == Class::V1 { 1e4 } else { 1e6 }
    }

    pub fn family(self) -> &'static str {
        match (self.class, self.moe) {
            (Class::V3, false) => "minimind3",
            (Class::V3, true) => "minimind3-moe",
            (_, false) => "minimind2",
            (_, true) => "minimind2-moe",
        }
    }

    /// True for the names of Meta's Llama.
    pub fn is_lm_config(self) -> bool {
        matches!(self.class, Class::V1 | Class::V2LmConfig)
    }

    fn ffn(self) -> usize {
        match self.class {
            Class::V3 => (std::f64::consts::PI * HIDDEN as f64 / 64.0).ceil() as usize * 64,
            _ => (8 * HIDDEN / 3).div_ceil(64) * 64,
        }
    }

    /// Names of Transformers, and shapes.
    fn shapes(self) -> Vec<(String, Vec<usize>)> {
        let (heads, kv_heads) = self.heads();
        let (head_dim, ffn) = (self.head_dim(), self.ffn());
        let mut all = vec![("model.embed_tokens".to_owned(), vec![VOCAB, HIDDEN])];
        for layer in 0..LAYERS {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm", &[HIDDEN]);
            add("post_attention_layernorm", &[HIDDEN]);
            add("self_attn.q_proj", &[heads * head_dim, HIDDEN]);
            add("self_attn.k_proj", &[kv_heads * head_dim, HIDDEN]);
            add("self_attn.v_proj", &[kv_heads * head_dim, HIDDEN]);
            add("self_attn.o_proj", &[HIDDEN, heads * head_dim]);
            if self.class == Class::V3 {
                add("self_attn.q_norm", &[head_dim]);
                add("self_attn.k_norm", &[head_dim]);
            }
            let mut networks = vec!["mlp".to_owned()];
            if self.moe {
                add("mlp.gate", &[EXPERTS, HIDDEN]);
                networks = (0..EXPERTS).map(|i| format!("mlp.experts.{i}")).collect();
                if self.class != Class::V3 {
                    networks.push("mlp.shared_experts.0".to_owned());
                }
            }
            for network in networks {
                add(&format!("{network}.gate_proj"), &[ffn, HIDDEN]);
                add(&format!("{network}.up_proj"), &[ffn, HIDDEN]);
                add(&format!("{network}.down_proj"), &[HIDDEN, ffn]);
            }
        }
        all.push(("model.norm".to_owned(), vec![HIDDEN]));
        all.iter_mut().for_each(|(name, _)| name.push_str(".weight"));
        all
    }

    /// A model's tensors under Transformers' names, the rows of q and k as halves of a head turn.
    pub fn tensors(self) -> Vec<Tensor> {
        let mut rng = SplitMix64::new(20);
        let mut value =
            |middle: f64, width: f64| f16::from_f64(middle + width * (rng.next_f64() - 0.5));
        let made = self.shapes().into_iter().map(|(name, shape)| {
            let (middle, width) = if name.contains("norm") { (1.0, 0.5) } else { (0.0, 0.35) };
            let values = (0..shape.iter().product()).map(|_| value(middle, width)).collect();
            (name, shape, values)
        });
        made.collect()
    }

    /// The state dict as the class saves it, with both names of the tied matrix.
    pub fn state_dict(self) -> Vec<Tensor> {
        let mut all = self.tensors();
        if !self.is_lm_config() {
            let head = ("lm_head.weight".to_owned(), all[0].1.clone(), all[0].2.clone());
            all.push(head);
            return all;
        }
        let (heads, kv_heads) = self.heads();
        for (name, shape, values) in &mut all {
            let heads = match name.as_str() {
                name if name.contains("q_proj") => Some(heads),
                name if name.contains("k_proj") => Some(kv_heads),
                _ => None,
            };
            if let Some(heads) = heads {
                *values = pairs(values, shape[0] / heads, shape[1]);
            }
            *name = meta_name(name);
        }
        all.push(("output.weight".to_owned(), all[0].1.clone(), all[0].2.clone()));
        if self.class == Class::V1 {
            let seq = 64;
            for layer in 0..LAYERS {
                let mask = (0..seq * seq).map(|i| {
                    f16::from_f64(if i % seq > i / seq { f64::NEG_INFINITY } else { 0.0 })
                });
                let name = format!("layers.{layer}.attention.mask");
                all.push((name, vec![1, 1, seq, seq], mask.collect()));
            }
        }
        all
    }

    /// config.json as the class saves it.
    pub fn config(self) -> Value {
        let (heads, kv_heads) = self.heads();
        let mut config = match self.class {
            Class::V1 | Class::V2LmConfig => json!({
                "architectures": ["MiniMindLM"], "model_type": "minimind",
                "auto_map": {"AutoConfig": "LMConfig.LMConfig", "AutoModelForCausalLM": "model.MiniMindLM"},
                "dim": HIDDEN, "n_layers": LAYERS, "n_heads": heads, "n_kv_heads": kv_heads,
                "vocab_size": VOCAB, "hidden_dim": null, "multiple_of": 64, "norm_eps": 1e-5,
                "max_seq_len": 512, "dropout": 0.0, "flash_attn": true, "use_moe": self.moe,
                "num_experts_per_tok": 2, "n_routed_experts": EXPERTS, "n_shared_experts": true,
                "scoring_func": "softmax", "aux_loss_alpha": 0.01, "seq_aux": true, "norm_topk_prob": true,
                "torch_dtype": "float16", "transformers_version": "4.44.0",
            }),
            Class::V2 => json!({
                "architectures": ["MiniMindForCausalLM"], "model_type": "minimind",
                "auto_map": {"AutoConfig": "model_minimind.MiniMindConfig",
                    "AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM"},
                "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": heads,
                "num_key_value_heads": kv_heads, "vocab_size": VOCAB, "intermediate_size": self.ffn(),
                "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768,
                "hidden_act": "silu", "dropout": 0.0, "flash_attn": true, "use_moe": self.moe,
                "num_experts_per_tok": 2, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
                "scoring_func": "softmax", "aux_loss_alpha": 0.1, "seq_aux": true, "norm_topk_prob": true,
                "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
            }),
            Class::V3 => json!({
                "architectures": ["MiniMindForCausalLM"], "model_type": "minimind",
                "auto_map": {"AutoConfig": "model_minimind.MiniMindConfig",
                    "AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM"},
                "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": heads,
                "num_key_value_heads": kv_heads, "head_dim": self.head_dim(), "vocab_size": VOCAB,
                "intermediate_size": self.ffn(), "rms_norm_eps": 1e-6, "rope_theta": 1e6,
                "max_position_embeddings": 32768, "inference_rope_scaling": false, "rope_scaling": null,
                "hidden_act": "silu", "dropout": 0.0, "flash_attn": true, "use_moe": self.moe,
                "num_experts": EXPERTS, "num_experts_per_tok": 1, "moe_intermediate_size": self.ffn(),
                "norm_topk_prob": true, "router_aux_loss_coef": 5e-4, "tie_word_embeddings": true,
                "bos_token_id": 1, "eos_token_id": 2, "dtype": "float16",
            }),
        };
        if self.class == Class::V2LmConfig {
            config["rope_theta"] = json!(1e6);
            config["max_seq_len"] = json!(8192);
        }
        config
    }

    /// A folder that says everything itself: Transformers' class where the model is dense, else
    /// MiniMind's with Transformers' names.
    pub fn plain_folder(self, folder: &Path, tensors: &[Tensor]) {
        let (heads, kv_heads) = self.heads();
        let third = self.class == Class::V3;
        let mut config = json!({
            "model_type": if third { "qwen3" } else { "llama" },
            "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": self.head_dim(), "vocab_size": VOCAB,
            "intermediate_size": self.ffn(), "rms_norm_eps": if third { 1e-6 } else { 1e-5 },
            "rope_theta": self.theta(), "max_position_embeddings": 32768, "hidden_act": "silu",
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        });
        if self.moe {
            config["model_type"] = json!("minimind");
            config["use_moe"] = json!(true);
            config["norm_topk_prob"] = json!(true);
            let more = match third {
                true => {
                    json!({"num_experts": EXPERTS, "num_experts_per_tok": 1, "moe_intermediate_size": self.ffn()})
                }
                false => {
                    json!({"n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_shared_experts": 1})
                }
            };
            let more = more.as_object().expect("an object").clone();
            config.as_object_mut().expect("an object").extend(more);
        }
        safetensors_folder(folder, &config, tensors);
    }
}

/// config.json and model.safetensors in float16.
pub fn safetensors_folder(folder: &Path, config: &Value, tensors: &[Tensor]) {
    fs_err::create_dir_all(folder).expect("a folder");
    fs_err::write(folder.join("config.json"), config.to_string()).expect("a file");
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape, _)| TensorSpec {
            name: name.clone(),
            dtype: Dtype::F16,
            shape: shape.clone(),
        })
        .collect();
    let path = folder.join("model.safetensors");
    write(&path, &specs, &BTreeMap::new(), |i| Ok(bytes(&tensors[i].2).into())).expect("written");
}

/// The name that `LMConfig`'s class gives a tensor, part by part.
fn meta_name(name: &str) -> String {
    let mut name = name.replace("mlp.shared_experts.0", "mlp.shared_experts");
    for (today, first) in [
        ("model.embed_tokens", "tok_embeddings"),
        ("model.layers", "layers"),
        ("model.norm", "norm"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attention.wq"),
        ("self_attn.k_proj", "attention.wk"),
        ("self_attn.v_proj", "attention.wv"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.", "feed_forward."),
        ("gate_proj", "w1"),
        ("down_proj", "w2"),
        ("up_proj", "w3"),
    ] {
        name = name.replace(today, first);
    }
    name
}

/// Rows whose halves turn together, in the order in which neighbours do: row 2j is the first half's
/// j-th, row 2j + 1 the second half's.
pub fn pairs<T: Copy>(rows: &[T], head_dim: usize, columns: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * columns) {
        for j in 0..head_dim / 2 {
            for row in [j, j + head_dim / 2] {
                out.extend_from_slice(&head[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

fn bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes a state dict as torch.save does: a zip of stored entries, a pickle of protocol 2 and a
/// storage for each tensor.
pub fn save(path: &Path, tensors: &[Tensor]) {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        let text = |out: &mut Vec<u8>, text: &str| {
            out.push(b'X');
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        };
        let int = |out: &mut Vec<u8>, n: usize| {
            out.push(b'J');
            out.extend((n as i32).to_le_bytes());
        };
        text(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(b"ctorch\nHalfStorage\n");
        text(&mut pickle, &i.to_string());
        text(&mut pickle, "cpu");
        int(&mut pickle, values.len());
        pickle.extend(b"tQ");
        int(&mut pickle, 0);
        let strides: Vec<usize> =
            (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect();
        for sizes in [shape, &strides] {
            pickle.push(b'(');
            sizes.iter().for_each(|n| int(&mut pickle, *n));
            pickle.push(b't');
        }
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend(b"u.");
    let mut entries =
        vec![("data.pkl".to_owned(), pickle), ("version".to_owned(), b"3\n".to_vec())];
    for (i, (_, _, values)) in tensors.iter().enumerate() {
        entries.push((format!("data/{i}"), bytes(values)));
    }
    fs_err::write(path, zip(&entries)).expect("a file");
}

/// A zip of stored entries.
fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let name = format!("archive/{name}");
        let size = (data.len() as u32).to_le_bytes();
        let shared = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0][..],
            &crc(data).to_le_bytes(),
            &size,
            &size,
            &(name.len() as u16).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&shared);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&shared);
        out.extend(name.as_bytes());
        out.extend(data);
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(
        [(entries.len() as u16).to_le_bytes(), (entries.len() as u16).to_le_bytes()].concat(),
    );
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

/// CRC-32, bit by bit.
fn crc(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
