//! Adapters as llama.cpp reads them: per adapted matrix T of the base, `T.lora_a` and `T.lora_b`,
//! and keys that say what the file is. In and out.
//!
//! GGUF holds some matrices otherwise than the model is trained: rows of q and k permuted (then B's
//! rows are too), experts stacked (then their A and B are; an expert without an adapter gets zeros,
//! which add nothing). Source: docs/formats/gguf.md.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::{Adapter, Adapters, Read};
use crate::arch::{Config, Layout, Public, Role, Weight, assemble, public_tensors};
use crate::error::{Error, Result};
use crate::gguf::{self, GgmlType, Gguf, Metadata, TensorSpec, Value};
use crate::tensor::{self, Dtype, TensorView};

/// The factors of a public tensor in GGUF's order.
struct Pair {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    experts: usize,
}

const A: &str = ".lora_a";
const B: &str = ".lora_b";

impl Adapters {
    /// Writes a GGUF adapter for the model of `config`, whose table is `weights`. Returns its size
    /// in bytes.
    ///
    /// # Errors
    /// An adapter beside the embedding (llama.cpp has none), or beside one of several shared
    /// experts, which GGUF joins into one matrix; the system's refusal.
    pub fn write_gguf(
        &self,
        path: &Path,
        name: &str,
        config: &Config,
        weights: &[Weight],
    ) -> Result<u64> {
        // to llama.cpp an alpha of 0 stands for a scale of 1
        let alpha = if self.alpha as f32 == 0.0 { self.rank as f64 } else { self.alpha };
        let mut specs = Vec::new();
        let mut values: Vec<Vec<f32>> = Vec::new();
        for public in public_tensors(weights, Layout::Gguf) {
            let Some(pair) = self.pair(&public, weights, alpha)? else { continue };
            let Pair { a, b, rank, experts } = pair;
            let (rows, columns) = match public.shape.as_slice() {
                [.., rows, columns] => (*rows, *columns),
                _ => continue, // a norm's gain has no adapter (`Adapters::check`)
            };
            let shape = |matrix: [usize; 2]| {
                let stack = (public.shape.len() == 3).then_some(experts);
                stack.into_iter().chain(matrix).collect::<Vec<_>>()
            };
            let pair = [(A, shape([rank, columns]), a), (B, shape([rows, rank]), b)];
            for (end, shape, data) in pair {
                let name = format!("{}{end}", public.name);
                specs.push(TensorSpec { name, shape, ty: GgmlType::F32 });
                values.push(data);
            }
        }
        let mut metadata = Metadata::new();
        let text = |text: &str| Value::String(text.to_owned());
        metadata.set("general.architecture", text(config.family.gguf_arch()));
        metadata.set("general.type", text("adapter"));
        metadata.set("general.name", text(name));
        metadata.set("adapter.type", text("lora"));
        metadata.set("adapter.lora.alpha", Value::F32(alpha as f32));
        gguf::write(path, &metadata, &specs, |i| {
            Ok(Cow::Owned(tensor::encode_f32(&values[i], Dtype::F32)))
        })
    }

    /// A and B of a public tensor in GGUF's order; nothing without an adapter. A file has one
    /// `alpha`, and the scale alpha / rank: what an adapter's own scale differs by goes into its B.
    /// A stack has one rank: an adapter of a lower one is filled up with zeros.
    fn pair(&self, public: &Public, weights: &[Weight], alpha: f64) -> Result<Option<Pair>> {
        let rows: Vec<&Weight> = public.weights.iter().map(|&i| &weights[i]).collect();
        let Some(first) = rows.iter().find(|row| self.of(row).is_some()) else { return Ok(None) };
        let refuse = |reason: &str| {
            Err(Error::unsupported(format!("adapter {} in GGUF", first.name), reason))
        };
        if first.role == Role::Embedding {
            return refuse("llama.cpp applies no adapter to a token embedding of its own");
        }
        // whole matrices, and stacks of one whole matrix per expert
        let whole = rows.iter().all(|row| {
            let place = &row.gguf;
            let matrix = place.shape.len().saturating_sub(2);
            place.extent[matrix..] == place.shape[matrix..]
        });
        if !whole {
            return refuse(
                "GGUF joins the shared experts into one matrix, which no adapter of one of them fits",
            );
        }
        let ranks = rows.iter().filter_map(|row| Some(self.of(row)?.rank()));
        let rank = ranks.max().unwrap_or(self.rank);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for row in &rows {
            let (a_end, b_end) = (a.len() + rank * row.shape[1], b.len() + row.shape[0] * rank);
            if let Some(adapter) = self.of(row) {
                a.extend_from_slice(&adapter.a);
                let own = adapter.rank();
                let scaled = self.in_file(adapter, alpha, rank);
                let mut wide = Vec::with_capacity(row.shape[0] * rank); // [out, own rank] -> [out, rank]
                for values in scaled.chunks_exact(own) {
                    wide.extend_from_slice(values);
                    wide.resize(wide.len() + rank - own, 0.0);
                }
                b.extend(permuted(row, &wide, assemble::to_gguf_rows));
            }
            a.resize(a_end, 0.0);
            b.resize(b_end, 0.0);
        }
        Ok(Some(Pair { a, b, rank, experts: rows.len() }))
    }

    /// B for a file whose scale is `alpha` / `rank`.
    fn in_file<'a>(&self, adapter: &'a Adapter, alpha: f64, rank: usize) -> Cow<'a, [f32]> {
        if adapter.alpha.is_none() && adapter.rank() == rank && alpha == self.alpha {
            return Cow::Borrowed(&adapter.b);
        }
        let factor = self.scale_of(adapter) * rank as f64 / alpha;
        Cow::Owned(adapter.b.iter().map(|x| (f64::from(*x) * factor) as f32).collect())
    }

    /// Reads a GGUF adapter for the model of `config`, whose table is `weights`.
    ///
    /// # Errors
    /// Another kind of file, another architecture, tensors that the base does not have, ranks that
    /// differ.
    pub fn open_gguf(path: &Path, config: &Config, weights: &[Weight]) -> Result<Self> {
        let file = Gguf::open(path)?;
        let arch = config.family.gguf_arch();
        for (key, expected) in
            [("general.type", "adapter"), ("general.architecture", arch), ("adapter.type", "lora")]
        {
            let found = file.metadata().string(key).unwrap_or("none");
            if found != expected {
                let message = format!("expected {expected}, found {found}");
                return Err(Error::key(path, key, message));
            }
        }
        let publics = public_tensors(weights, Layout::Gguf);
        let mut read: BTreeMap<String, Read> = BTreeMap::new();
        for info in file.tensors() {
            let wrong = |what: String| Error::format(path, format!("tensor {}: {what}", info.name));
            let half = [(A, "A"), (B, "B")]
                .into_iter()
                .find_map(|(end, half)| Some((info.name.strip_suffix(end)?, half)));
            let found = half.and_then(|(name, half)| {
                Some((publics.iter().find(|p| p.name == name && p.shape.len() > 1)?, half))
            });
            let Some((public, half)) = found else {
                return Err(wrong("expected a tensor of the base with .lora_a or .lora_b".into()));
            };
            let Some(dtype) = info.ty.dtype() else {
                return Err(wrong(format!("expected a float type, found {}", info.ty.name())));
            };
            let view = TensorView { dtype, shape: &info.shape, data: file.data(info) };
            let values = view.to_f32();
            let experts = public.weights.len();
            let matrix = match info.shape.as_slice() {
                [rows, columns] if experts == 1 => [*rows, *columns],
                [stack, rows, columns] if *stack == experts => [*rows, *columns],
                // a stack of one: ggml drops a trailing dimension of one
                [rows, columns] if public.shape.len() == 3 && public.shape[0] == 1 => {
                    [*rows, *columns]
                }
                shape => {
                    return Err(wrong(format!(
                        "expected a matrix for each of {experts} weights, found shape {shape:?}"
                    )));
                }
            };
            let size = matrix[0] * matrix[1];
            for (&i, values) in public.weights.iter().zip(values.chunks(size.max(1))) {
                let row = &weights[i];
                let module = row.name.strip_suffix(".weight").unwrap_or(&row.name);
                let values = match half {
                    // before its rows can be put back, their number must be right
                    "B" if matrix[0] != row.shape[0] => {
                        return Err(wrong(format!(
                            "expected {} rows, found {}",
                            row.shape[0], matrix[0]
                        )));
                    }
                    "B" => permuted(row, values, assemble::from_gguf_rows),
                    _ => values.to_vec(),
                };
                read.insert(format!("{module}.lora_{half}.weight"), (matrix.to_vec(), values));
            }
        }
        let names: Vec<&str> = read.keys().map(String::as_str).collect();
        let mut adapters = Self::from_tensors(path, &names, &|name| read.get(name).cloned())?;
        let key = "adapter.lora.alpha";
        if let Some(value) = file.metadata().get(key) {
            let alpha = value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| {
                Error::key(path, key, format!("expected a number, found {}", value.describe()))
            })?;
            // llama.cpp: an alpha of 0 stands for a scale of 1
            adapters.alpha = if alpha == 0.0 { adapters.rank as f64 } else { alpha };
        }
        // GGUF stacks all experts of a layer: zeros stand for one that has no adapter
        adapters.modules.retain(|_, adapter| !is_zero(adapter));
        adapters.check(path, weights)?;
        Ok(adapters)
    }
}

fn is_zero(adapter: &Adapter) -> bool {
    adapter.a.iter().chain(&adapter.b).all(|x| *x == 0.0)
}

/// Rows of B in another order, as the weight's own rows are.
fn permuted(row: &Weight, b: &[f32], order: fn(&Weight, Vec<u8>) -> Vec<u8>) -> Vec<f32> {
    let bytes = order(row, tensor::encode_f32(b, Dtype::F32));
    let shape = [b.len()];
    TensorView { dtype: Dtype::F32, shape: &shape, data: &bytes }.to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{presets, weights};

    /// Adapters with values that tell every place apart.
    fn adapters(weights: &[Weight], wanted: &[&str]) -> Adapters {
        let mut modules = BTreeMap::new();
        let mut next = 0.0;
        let mut count = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| {
                    next += 1.0;
                    next
                })
                .collect()
        };
        for row in weights.iter().filter(|row| wanted.iter().any(|end| row.name.contains(end))) {
            let [outputs, inputs] = row.shape[..] else { continue };
            let (a, b) = (count(2 * inputs), count(outputs * 2));
            let module = row.name.strip_suffix(".weight").unwrap().to_owned();
            modules.insert(module, Adapter { a, b, inputs, outputs, alpha: None });
        }
        Adapters { rank: 2, alpha: 3.0, base: None, modules }
    }

    fn small(preset: &str) -> Config {
        let mut config = presets::preset(preset).unwrap();
        (config.vocab_size, config.num_hidden_layers, config.head_dim) = (10, 2, 4);
        (config.hidden_size, config.intermediate_size) = (4 * config.num_attention_heads, 24);
        if let Some(moe) = &mut config.moe {
            moe.intermediate_size = 24;
        }
        config
    }

    #[test]
    fn a_gguf_adapter_reads_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for (preset, wanted) in [
            ("minimind2-small", &["q_proj", "k_proj", "o_proj", "down_proj"][..]),
            ("minimind2-moe", &["q_proj", "experts.1.up_proj", "experts.3.up_proj"]),
            ("minimind3", &["q_proj", "v_proj"]),
            ("minimind3-moe", &["experts", "mlp.gate.weight"]),
        ] {
            let config = small(preset);
            let table = weights(&config);
            let before = adapters(&table, wanted);
            let path = dir.path().join(format!("{preset}.gguf"));
            before.write_gguf(&path, "m", &config, &table).unwrap();
            let after = Adapters::open_gguf(&path, &config, &table).unwrap();
            assert_eq!(after, before, "{preset}");
        }
    }

    #[test]
    fn rows_of_b_are_permuted_for_llama_only() {
        let dir = tempfile::tempdir().unwrap();
        for (preset, permuted) in [("minimind2-small", true), ("minimind3", false)] {
            let config = small(preset);
            let table = weights(&config);
            let one = adapters(&table, &["layers.0.self_attn.q_proj"]);
            let path = dir.path().join("a.gguf");
            one.write_gguf(&path, "m", &config, &table).unwrap();
            let file = Gguf::open(&path).unwrap();
            let tensor = file.tensor("blk.0.attn_q.weight.lora_b").unwrap();
            let view =
                TensorView { dtype: Dtype::F32, shape: &tensor.shape, data: file.data(tensor) };
            let b = &one.modules["model.layers.0.self_attn.q_proj"].b;
            // head_dim 4: GGUF's second row is the third of the head where pairs are neighbours
            let second = if permuted { &b[4..6] } else { &b[2..4] };
            assert_eq!(&view.to_f32()[2..4], second, "{preset}");
        }
    }

    #[test]
    fn rejects_what_is_no_adapter_of_this_base() {
        let dir = tempfile::tempdir().unwrap();
        let config = small("minimind2-small");
        let table = weights(&config);
        let path = dir.path().join("a.gguf");
        adapters(&table, &["q_proj"]).write_gguf(&path, "m", &config, &table).unwrap();
        let other = small("minimind3");
        let error = Adapters::open_gguf(&path, &other, &weights(&other)).unwrap_err().to_string();
        assert!(error.contains("expected qwen3, found llama"), "{error}");
        let mut fewer = config.clone();
        fewer.num_hidden_layers = 1;
        let error = Adapters::open_gguf(&path, &fewer, &weights(&fewer)).unwrap_err().to_string();
        assert!(error.contains("blk.1.attn_q.weight.lora_"), "{error}");
        let embedding = adapters(&table, &["embed_tokens"]);
        let error = embedding.write_gguf(&path, "m", &config, &table).unwrap_err().to_string();
        assert!(error.contains("embed_tokens"), "{error}");
    }
}
