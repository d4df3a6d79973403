//! Low-rank adapters: y = Wx + scale * B(Ax), apart from the model they change. In and out: PEFT's
//! folder (`adapter_config.json`, which names the base model, and `adapter_model.safetensors`); in
//! also a file of weights alone, under PEFT's names or MiniMind's.
//!
//! Source: PEFT's documentation of the LoRA checkpoint format; MiniMind's `save_lora`.

mod gguf;
mod joined;
mod peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::arch::assemble::from_gguf_rows;
use crate::arch::lm_config::from_lm_config;
use crate::arch::{Config, Weight};
use crate::error::{Error, Result, TensorReport};
use crate::file;
use crate::model::fallback;
use crate::pth::Pth;
use crate::safetensors::{self, SafeTensors, TensorSpec};
use crate::tensor::{Dtype, TensorView, encode_f32};

/// The file that makes a folder one of adapters.
pub const CONFIG_NAME: &str = "adapter_config.json";
/// The adapters' weights.
pub const WEIGHTS_NAME: &str = "adapter_model.safetensors";
/// The adapters' weights in PEFT's older form.
const OLD_WEIGHTS_NAME: &str = "adapter_model.bin";
/// The prefix that PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";
/// Prefixes that wrappers put before a module's name: PEFT, torch.compile, DataParallel; in any
/// order.
const PREFIXES: [&str; 3] = [PREFIX, "_orig_mod.", "module."];

/// The two factors beside one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    /// Columns of the weight.
    pub inputs: usize,
    /// Rows of the weight.
    pub outputs: usize,
    /// Its own alpha, where that is another than [`Adapters::alpha`].
    pub alpha: Option<f64>,
}

/// A tensor's shape and values.
type Read = (Vec<usize>, Vec<f32>);

/// A matrix as it was read: rows, columns, values.
type Matrix = (usize, usize, Vec<f32>);

/// The adapters of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapters {
    /// Inner dimension of most of them: see [`Adapter::rank`].
    pub rank: usize,
    /// The product B A counts alpha / rank times, the rank being the adapter's own.
    pub alpha: f64,
    /// The model they belong to, as the folder names it.
    pub base: Option<String>,
    /// By module: `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, Adapter>,
}

/// True for a folder that holds adapters and no model of its own.
pub fn is_adapter_folder(dir: &Path) -> bool {
    dir.join(CONFIG_NAME).is_file() && !dir.join("config.json").exists()
}

impl Adapters {
    /// Opens a folder with [`CONFIG_NAME`], or a safetensors or `.pth` file of the weights alone,
    /// whose alpha is then taken to be the rank (as MiniMind's are).
    ///
    /// # Errors
    /// Files that cannot be read or break their format; other names than those of adapters; an A
    /// without its B; ranks other than the configuration's, or without one that differ; a kind of
    /// adapter other than LoRA.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_peft(path, None);
        }
        let adapters = Self::open_weights(path)?;
        adapters.check_uniform(path)?;
        Ok(adapters)
    }

    /// Opens whatever [`Adapters::open`] opens, and also a GGUF adapter, for the model of `config`,
    /// whose table is `weights`; they fit it. Adapters of PEFT beside a tensor that joins several
    /// weights become one for each.
    ///
    /// # Errors
    /// As [`Adapters::open`] and [`Adapters::check`].
    pub fn open_for(path: &Path, config: &Config, weights: &[Weight]) -> Result<Self> {
        if path.is_file() && file::Bytes::map(path)?.starts_with(b"GGUF") {
            return Self::open_gguf(path, config, weights);
        }
        let mut adapters = match path.is_dir() {
            true => Self::open_peft(path, Some(weights))?,
            false => Self::open(path)?,
        };
        adapters.rename_lm_config(weights);
        adapters.check(path, weights)?;
        Ok(adapters)
    }

    /// Gives adapters of MiniMind's first class ([`crate::arch::lm_config`]) today's names, and those
    /// of q and k today's order of rows.
    fn rename_lm_config(&mut self, weights: &[Weight]) {
        for (module, mut adapter) in std::mem::take(&mut self.modules) {
            let name = from_lm_config(&module).unwrap_or_else(|| module.clone());
            let is_it = |weight: &&Weight| weight.name.strip_suffix(".weight") == Some(&name);
            if name != module
                && let Some(weight) = weights.iter().find(is_it)
                && weight.shape[0] == adapter.outputs
            {
                let shape = [adapter.b.len()];
                let rows = from_gguf_rows(weight, encode_f32(&adapter.b, Dtype::F32));
                let view = TensorView { dtype: Dtype::F32, shape: &shape, data: &rows };
                adapter.b = view.to_f32();
            }
            self.modules.insert(name, adapter);
        }
    }

    fn open_weights(path: &Path) -> Result<Self> {
        let is_pth = path.extension().is_some_and(|e| e == "pth" || e == "bin");
        if is_pth {
            let file = Pth::open(path)?;
            let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
            return Self::from_tensors(path, &names, &|name| {
                let tensor = file.tensor(name)?;
                let data = file.data(tensor);
                let view = TensorView { dtype: tensor.dtype, shape: &tensor.shape, data: &data };
                Some((tensor.shape.clone(), values(&view)?))
            });
        }
        let file = SafeTensors::open(path)?;
        let names: Vec<&str> = file.names().collect();
        Self::from_tensors(path, &names, &|name| {
            let view = file.get(name)?;
            Some((view.shape.to_vec(), values(&view)?))
        })
    }

    /// `get` gives a tensor's shape and values, and nothing for one that is not of a float type.
    fn from_tensors(
        path: &Path,
        names: &[&str],
        get: &dyn Fn(&str) -> Option<Read>,
    ) -> Result<Self> {
        let mut halves: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
        for &name in names {
            let wrong = |what: String| Error::format(path, format!("tensor {name}: {what}"));
            let Some((module, half)) = split_name(name) else {
                return Err(wrong(
                    "expected an adapter's name (MODULE.lora_A.weight or MODULE.lora.A.weight), \
                     found another"
                        .into(),
                ));
            };
            let Some((shape, values)) = get(name) else {
                return Err(wrong("expected a float type, found another".into()));
            };
            let &[rows, columns] = shape.as_slice() else {
                return Err(wrong(format!("expected two dimensions, found shape {shape:?}")));
            };
            let slot = &mut halves.entry(module.to_owned()).or_default()[half];
            if slot.replace((rows, columns, values)).is_some() {
                return Err(wrong("expected once, found under two names".into()));
            }
        }
        let mut ranks: BTreeMap<usize, usize> = BTreeMap::new();
        let mut modules = BTreeMap::new();
        for (module, halves) in halves {
            let wrong = |what: String| Error::format(path, format!("adapter {module}: {what}"));
            let [Some((a_rows, inputs, a)), Some((outputs, b_columns, b))] = halves else {
                return Err(wrong("expected both A and B, found one of them".into()));
            };
            if a_rows != b_columns || a_rows == 0 || inputs == 0 {
                let found = format!("found A [{a_rows}, {inputs}] and B [{outputs}, {b_columns}]");
                return Err(wrong(format!("expected one rank, at least 1, {found}")));
            }
            *ranks.entry(a_rows).or_default() += 1;
            modules.insert(module, Adapter { a, b, inputs, outputs, alpha: None });
        }
        // the smallest of equals
        let Some((&rank, _)) = ranks.iter().rev().max_by_key(|(_, count)| **count) else {
            return Err(Error::format(path, "expected at least one adapter, found none"));
        };
        Ok(Self { rank, alpha: rank as f64, base: None, modules })
    }

    /// The factor of an adapter's product B A: alpha / rank.
    pub fn scale_of(&self, adapter: &Adapter) -> f64 {
        adapter.alpha.unwrap_or(self.alpha) / adapter.rank() as f64
    }

    /// Refuses adapters of several ranks or scales, for those who can take only one.
    ///
    /// # Errors
    /// The first module that differs from the others.
    pub fn check_uniform(&self, path: &Path) -> Result<()> {
        let other = |adapter: &Adapter| adapter.rank() != self.rank || adapter.alpha.is_some();
        let Some((module, adapter)) = self.modules.iter().find(|(_, adapter)| other(adapter))
        else {
            return Ok(());
        };
        Err(Error::format(
            path,
            format!(
                "adapter {module}: expected rank {} and scale {} as of most others, found rank {} and scale {}",
                self.rank,
                self.alpha / self.rank as f64,
                adapter.rank(),
                self.scale_of(adapter)
            ),
        ))
    }

    /// Refuses a NaN or infinity.
    ///
    /// # Errors
    /// The first one, with tensor and index.
    pub fn refuse_not_finite(&self, path: &Path) -> Result<()> {
        for (module, adapter) in &self.modules {
            let halves = [("A", &adapter.a, adapter.inputs), ("B", &adapter.b, adapter.rank())];
            for (half, values, columns) in halves {
                let name = format!("{module}.lora_{half}.weight");
                let shape = [values.len() / columns.max(1), columns];
                let bytes = bytemuck::cast_slice(values);
                fallback::refuse_not_finite(path, &name, &shape, Dtype::F32, bytes)?;
            }
        }
        Ok(())
    }

    /// The last parts of the modules' names, each once: `o_proj`, `q_proj`.
    pub fn targets(&self) -> Vec<String> {
        let last = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
        let mut names: Vec<String> = self.modules.keys().map(last).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The adapter beside a weight.
    pub fn of(&self, weight: &Weight) -> Option<&Adapter> {
        self.modules.get(weight.name.strip_suffix(".weight")?)
    }

    /// Compares the adapters with a model's table.
    ///
    /// # Errors
    /// All adapters of modules that the model does not have, or of other shapes.
    pub fn check(&self, path: &Path, weights: &[Weight]) -> Result<()> {
        let mut report = TensorReport::default();
        let shapes: BTreeMap<&str, &[usize]> = weights
            .iter()
            .filter_map(|w| Some((w.name.strip_suffix(".weight")?, w.shape.as_slice())))
            .collect();
        for (module, adapter) in &self.modules {
            let found = [adapter.outputs, adapter.inputs];
            match shapes.get(module.as_str()) {
                None => report.unexpected.push(module.clone()),
                Some(shape) if **shape != found => report.mismatched.push((
                    module.clone(),
                    format!("shape {shape:?}"),
                    format!("{found:?}"),
                )),
                Some(_) => (),
            }
        }
        match report.is_empty() {
            true => Ok(()),
            false => Err(Error::Tensors { path: path.to_owned(), report }),
        }
    }

    /// Refuses adapters that PEFT could not put beside the stock class's own modules.
    ///
    /// # Errors
    /// An adapter beside a router or an expert: the class holds those of a layer in one tensor.
    pub fn check_peft(&self, config: &Config) -> Result<()> {
        let inside = |module: &&String| config.family.is_moe() && module.contains(".mlp.");
        match self.modules.keys().find(inside) {
            None => Ok(()),
            Some(module) => Err(Error::unsupported(
                format!("adapter {module} in PEFT's form"),
                format!(
                    "{} holds a layer's router and experts as tensors, not as modules of their own; \
                     the merged folder and the GGUF adapter carry it",
                    config.family.transformers_class()
                ),
            )),
        }
    }

    /// Writes PEFT's two files into `dir`, which exists.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CONFIG_NAME);
        let alpha = |alpha: f64| match alpha.fract() == 0.0 && alpha.abs() < 1e9 {
            true => json!(alpha as i64), // PEFT writes a whole number
            false => json!(alpha),
        };
        let mut config = json!({
            "base_model_name_or_path": self.base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "lora_alpha": alpha(self.alpha),
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.rank,
            "target_modules": self.targets(),
            "task_type": "CAUSAL_LM",
        });
        let all = self.modules.iter();
        let ranks: Map<String, Value> = all
            .clone()
            .filter(|(_, adapter)| adapter.rank() != self.rank)
            .map(|(module, adapter)| (module.clone(), adapter.rank().into()))
            .collect();
        let alphas: Map<String, Value> = all
            .filter_map(|(module, adapter)| Some((module.clone(), alpha(adapter.alpha?))))
            .collect();
        for (key, pattern) in [("rank_pattern", ranks), ("alpha_pattern", alphas)] {
            if !pattern.is_empty() {
                config[key] = pattern.into();
            }
        }
        let mut text = serde_json::to_string_pretty(&config)
            .map_err(|e| Error::format(&path, e.to_string()))?;
        text.push('\n');
        file::write_bytes(&path, text.as_bytes())?;
        let mut tensors: Vec<(TensorSpec, &[f32])> = Vec::new();
        for (module, adapter) in &self.modules {
            let rank = adapter.rank();
            let (a, b) = ([rank, adapter.inputs], [adapter.outputs, rank]);
            for (half, shape, values) in [("A", a, &adapter.a), ("B", b, &adapter.b)] {
                let name = format!("{PREFIX}{module}.lora_{half}.weight");
                let shape = shape.to_vec();
                tensors.push((TensorSpec { name, dtype: Dtype::F32, shape }, values));
            }
        }
        let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::write(&dir.join(WEIGHTS_NAME), &specs, &metadata, |i| {
            Ok(bytemuck::cast_slice(tensors[i].1).into())
        })?;
        Ok(())
    }

    /// Where the base model of a folder of adapters is: as the folder names it, or beside the
    /// folder.
    ///
    /// # Errors
    /// A folder that names no base model, or one that is not there.
    pub fn base_path(dir: &Path) -> Result<PathBuf> {
        let config = dir.join(CONFIG_NAME);
        let key = "base_model_name_or_path";
        let base = peft::settings(dir)?[key].as_str().unwrap_or_default().to_owned();
        if base.is_empty() {
            return Err(Error::key(config, key, "expected the base model's path, found none"));
        }
        let places = [PathBuf::from(&base), dir.join(&base)];
        match places.into_iter().find(|path| path.exists()) {
            Some(path) => Ok(path),
            None => Err(Error::key(
                config,
                key,
                format!("expected the base model's path, found {base}, which is not there"),
            )),
        }
    }
}

impl Adapter {
    /// The inner dimension of this adapter.
    pub fn rank(&self) -> usize {
        self.a.len() / self.inputs.max(1)
    }

    /// W + scale * B A, in float32, `[out, in]`: rounded once more where it is stored in fewer
    /// bits.
    pub fn merged(&self, weight: &[f32], scale: f64) -> Vec<f32> {
        let rank = self.rank();
        let mut out = weight.to_vec();
        out.par_chunks_mut(self.inputs.max(1)).enumerate().for_each(|(row, out)| {
            let mut product = vec![0f64; out.len()];
            for r in 0..rank {
                let factor = scale * f64::from(self.b[row * rank + r]);
                let a = &self.a[r * self.inputs..(r + 1) * self.inputs];
                product.iter_mut().zip(a).for_each(|(p, a)| *p += factor * f64::from(*a));
            }
            out.iter_mut().zip(product).for_each(|(w, p)| *w = (f64::from(*w) + p) as f32);
        });
        out
    }
}

/// The values of a float tensor.
fn values(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let float = matches!(view.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64);
    float.then(|| view.to_f32())
}

/// Module and half (0: A, 1: B) of a tensor's name.
fn split_name(mut name: &str) -> Option<(&str, usize)> {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    let ends = [
        (".lora_A.weight", 0),
        (".lora_B.weight", 1),
        (".lora_A.default.weight", 0),
        (".lora_B.default.weight", 1),
        (".lora.A.weight", 0),
        (".lora.B.weight", 1),
    ];
    ends.into_iter().find_map(|(end, half)| Some((name.strip_suffix(end)?, half)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Adapters {
        let adapter = Adapter {
            a: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            b: vec![0.5, -1.0, 0.0, 2.0],
            inputs: 3,
            outputs: 2,
            alpha: None,
        };
        let modules = BTreeMap::from([("model.layers.0.self_attn.q_proj".to_owned(), adapter)]);
        Adapters { rank: 2, alpha: 3.0, base: Some("base".into()), modules }
    }

    #[test]
    fn a_folder_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a folder");
        small().write(dir.path()).expect("written");
        assert!(is_adapter_folder(dir.path()));
        assert_eq!(Adapters::open(dir.path()).expect("readable"), small());
        // the weights alone carry no alpha
        let alone = Adapters::open(&dir.path().join(WEIGHTS_NAME)).expect("readable");
        assert_eq!((alone.rank, alone.alpha, alone.base), (2, 2.0, None));
    }

    #[test]
    fn merging_adds_the_scaled_product() {
        let adapter = &small().modules["model.layers.0.self_attn.q_proj"];
        let merged = adapter.merged(&[10.0; 6], 1.5);
        // B A = [[-3.5, -4, -4.5], [8, 10, 12]]
        assert_eq!(merged, [4.75, 4.0, 3.25, 22.0, 25.0, 28.0]);
    }

    #[test]
    fn rejects_what_would_change_the_arithmetic_unseen() {
        let dir = tempfile::tempdir().expect("a folder");
        small().write(dir.path()).expect("written");
        let path = dir.path().join(CONFIG_NAME);
        let good: Value =
            serde_json::from_slice(&fs_err::read(&path).expect("a file")).expect("JSON");
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("layer_replication", json!([[0, 2], [1, 2]])),
            ("rank_pattern", json!({"q_proj": 4})),
            ("alpha_pattern", json!({"q_proj": "four"})),
            ("alpha_pattern", json!({"(q_proj": 4})),
            ("r", json!(4)),
            ("lora_alpha", json!("three")),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            fs_err::write(&path, bad.to_string()).expect("a file");
            let said = Adapters::open(dir.path()).expect_err(key).to_string();
            assert!(said.contains(key), "{said}");
        }
    }

    #[test]
    fn rejects_an_adapter_without_its_other_half() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("half.safetensors");
        let name = "model.layers.0.self_attn.q_proj.lora.A.weight".to_owned();
        let spec = TensorSpec { name, dtype: Dtype::F32, shape: vec![1, 2] };
        safetensors::write(&path, &[spec], &BTreeMap::new(), |_| Ok(vec![0; 8].into()))
            .expect("written");
        let said = Adapters::open(&path).expect_err("no B").to_string();
        assert!(said.contains("q_proj: expected both A and B"), "{said}");
    }
}
