//! Findings about this machine, and about what each runtime will make of a model.
//!
//! In: this machine, and perhaps a model's configuration. Out: findings with the command that fixes
//! what is missing; per runtime whether it carries the model (the table of
//! [`consumers`](crate::consumers::table)), per file type what the file will really hold.

use std::collections::BTreeMap;

use mmx_converters::arch::{Config, Layout, Role, public_tensors, weights};
use mmx_converters::words::counted;
use mmx_ggml::{CpuSet, FileType};
use serde::Serialize;

use crate::consumers::table::{CONSUMERS, Consumer};
use crate::{blocks, trainer};

/// A thing that mmx can use, found or not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The thing's name.
    pub what: &'static str,
    /// True where it is there.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// The command that brings what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// A runtime's verdict on a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// Name of the runtime.
    pub runtime: &'static str,
    /// Class or architecture under which it runs the model.
    pub form: String,
    /// True where the runtime computes the same as mmx.
    pub ok: bool,
    /// The reason why not, or a remark.
    pub note: String,
    /// The versions of the runtime that were tried; nothing for mmx itself, and for one that was
    /// read in its sources.
    pub version: Option<&'static str>,
}

/// The contents of a GGUF of a type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TypeReport {
    /// The type on the command line.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bits for each parameter, everything counted.
    pub bits_per_weight: f64,
    /// Matrices that do not get the type meant for them.
    pub fallbacks: usize,
    /// Bytes of the matrices that fall back.
    pub fallback_bytes: u64,
    /// Matrices by the type they get.
    pub types: BTreeMap<String, usize>,
}

/// The matrices whose rows have the same length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rows {
    /// Values of a row.
    pub length: usize,
    /// Matrices with such rows.
    pub matrices: usize,
    /// True where the K types and IQ4_XS fit: blocks of 256.
    pub fits_256: bool,
    /// True where every other block type fits: blocks of 32.
    pub fits_32: bool,
}

/// A model's report: what runtimes and file types will make of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelReport {
    /// The family.
    pub family: &'static str,
    /// Parameters in all, and the number that one token uses.
    pub parameters: (usize, usize),
    /// The embedding table's share of the parameters.
    pub embedding_share: f64,
    /// True where the embedding table is the output head too.
    pub tied: bool,
    /// A verdict of each runtime.
    pub targets: Vec<Target>,
    /// The matrices by length of their rows.
    pub rows: Vec<Rows>,
    /// The contents of a GGUF of each file type.
    pub types: Vec<TypeReport>,
}

/// Looks at the machine.
pub fn machine() -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(torch());
    let cores = mmx_ggml::cpus();
    let features = cpu_features();
    findings.push(Finding {
        what: "CPU",
        ok: true,
        found: match features.is_empty() {
            true => counted(cores, "core"),
            false => format!("{}, {}", counted(cores, "core"), features.join(", ")),
        },
        fix: None,
    });
    findings.extend(runner());
    for (what, program, fix) in [
        ("Ollama", "ollama", "https://ollama.com/download, for `mmx ollama create`"),
        ("Python", PYTHON.0, PYTHON.1),
    ] {
        let found = in_path(program);
        findings.push(Finding {
            what,
            ok: found.is_some(),
            fix: found.is_none().then(|| fix.to_owned()),
            found: found.unwrap_or_else(|| format!("no {program} in PATH")),
        });
    }
    let token = mmx_hub::environment::Token::find().map(|token| token.place);
    findings.push(Finding {
        what: "hub token",
        ok: token.is_some(),
        fix: token.is_none().then(|| {
            "hf auth login, or export HF_TOKEN=..., for `mmx push` and private models".to_owned()
        }),
        found: match token {
            Some(place) if place == "HF_TOKEN" => "HF_TOKEN is set".to_owned(),
            Some(file) => format!("in {file}"),
            None => "HF_TOKEN is not set, and nobody is logged in".to_owned(),
        },
    });
    findings
}

/// Findings about `mmx-train`: whether it is there, and what it found.
fn torch() -> Vec<Finding> {
    if trainer::program().is_none() {
        return vec![Finding {
            what: "libtorch",
            ok: false,
            found: "no mmx-train beside mmx".to_owned(),
            fix: Some(format!("{}, for `mmx train`", trainer::Installation::here().fix())),
        }];
    }
    let refused = |what, message: String, fix| Finding { what, ok: false, found: message, fix };
    let found = |what, found| Finding { what, ok: true, found, fix: None };
    match trainer::about() {
        Err(error) => vec![refused("libtorch", error.to_string(), error.hint())],
        Ok(about) => vec![
            found("libtorch", about.libtorch),
            match about.device {
                Ok(device) => found("device", device),
                Err(why) => refused("device", why.message, why.hint),
            },
        ],
    }
}

fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("AVX2", std::is_x86_feature_detected!("avx2")),
            ("FMA", std::is_x86_feature_detected!("fma")),
            ("AVX-512", std::is_x86_feature_detected!("avx512f")),
            ("AVX-512 VNNI", std::is_x86_feature_detected!("avx512vnni")),
            ("AVX-512 BF16", std::is_x86_feature_detected!("avx512bf16")),
        ];
        all.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Findings about the runner: the CPU's kernels, and devices.
fn runner() -> Vec<Finding> {
    let kernels = mmx_ggml::cpu_kernels();
    let mut findings = vec![Finding {
        what: "kernels",
        ok: kernels.is_ok(),
        fix: None,
        found: kernels.unwrap_or_else(|error| error.to_string()),
    }];
    findings.push(match CpuSet::of_process() {
        Ok(cpu) => {
            let here = CpuSet::here().into_iter().map(CpuSet::name).collect::<Vec<_>>().join(", ");
            let sets = mmx_ggml::kernel_sets(cpu).map(|(kind, set)| format!("{kind} {set}"));
            Finding {
                what: "cpu set",
                ok: cpu != CpuSet::Portable,
                fix: None,
                found: format!("{cpu}: {} (this CPU: {here})", sets.join(", ")),
            }
        }
        Err(error) => Finding {
            what: "cpu set",
            ok: false,
            fix: Some("MMX_CPU=NAME, or no MMX_CPU for the best".to_owned()),
            found: error.to_string(),
        },
    });
    let before = findings.len();
    let devices = mmx_ggml::devices().unwrap_or_default();
    findings.extend(devices.into_iter().map(|device| Finding {
        what: "device",
        ok: true,
        fix: None,
        found: format!(
            "{}: {}, {:.1} GB, {:.1} free",
            device.name,
            device.description,
            device.memory as f64 / 1e9,
            device.free as f64 / 1e9
        ),
    }));
    if findings.len() == before {
        findings.push(Finding {
            what: "device",
            ok: false,
            found: "none for the runner but the CPU".to_owned(),
            fix: Some(
                "cargo build --release --features vulkan, cuda or metal in mmx's sources, for GPUs"
                    .to_owned(),
            ),
        });
    }
    findings
}

/// The name of Python in PATH, and how to get one.
const PYTHON: (&str, &str) = if cfg!(windows) {
    ("python", "winget install Python.Python.3.12, for `mmx verify --consumers`")
} else if cfg!(target_os = "macos") {
    ("python3", "brew install python3, for `mmx verify --consumers`")
} else {
    ("python3", "apt-get install python3, for `mmx verify --consumers`")
};

/// The path of a program in PATH.
fn in_path(program: &str) -> Option<String> {
    let paths = std::env::var_os("PATH")?;
    let program = format!("{program}{}", std::env::consts::EXE_SUFFIX);
    let found = std::env::split_paths(&paths).map(|dir| dir.join(&program)).find(|p| p.is_file());
    found.map(|path| path.display().to_string())
}

/// Looks at a model.
pub fn model(config: &Config) -> ModelReport {
    let table = weights(config);
    let (total, active) = config.parameters();
    let embedding: usize =
        table.iter().filter(|w| w.role == Role::Embedding).map(|w| w.elements()).sum();
    let publics = public_tensors(&table, Layout::Gguf);
    let matrix = |shape: &[usize], parts: &[usize]| {
        shape.len() > 1 && parts.iter().all(|&i| table[i].quantize())
    };
    let mut lengths: BTreeMap<usize, usize> = BTreeMap::new();
    for public in publics.iter().filter(|p| matrix(&p.shape, &p.weights)) {
        *lengths.entry(public.shape.last().copied().unwrap_or(0)).or_default() += 1;
    }
    let types = FileType::ALL.iter().map(|&file| {
        let mut report = TypeReport {
            ty: file.to_string(),
            bytes: 0,
            bits_per_weight: 0.0,
            fallbacks: 0,
            fallback_bytes: 0,
            types: BTreeMap::new(),
        };
        for public in &publics {
            let (ty, fallback) = blocks::recipe(file, config, &public.name, &public.shape);
            let row = public.shape.last().copied().unwrap_or(1);
            let rows = public.shape.iter().product::<usize>() / row.max(1);
            let bytes = (ty.row_bytes(row).unwrap_or(0) * rows) as u64;
            report.bytes += bytes;
            if matrix(&public.shape, &public.weights) {
                *report.types.entry(ty.name().to_owned()).or_default() += 1;
            }
            if fallback.is_some() {
                report.fallbacks += 1;
                report.fallback_bytes += bytes;
            }
        }
        report.bits_per_weight = 8.0 * report.bytes as f64 / total.max(1) as f64;
        report
    });
    ModelReport {
        family: config.family.name(),
        parameters: (total, active),
        embedding_share: embedding as f64 / total.max(1) as f64,
        tied: config.tie_word_embeddings,
        targets: targets(config),
        rows: lengths
            .into_iter()
            .map(|(length, matrices)| Rows {
                length,
                matrices,
                fits_256: length.is_multiple_of(256),
                fits_32: length.is_multiple_of(32),
            })
            .collect(),
        types: types.collect(),
    }
}

fn targets(config: &Config) -> Vec<Target> {
    let target = |consumer: &Consumer| {
        let carried = consumer.carries(config);
        Target {
            runtime: consumer.name,
            form: consumer.form(config).to_owned(),
            ok: carried.is_ok(),
            note: carried.unwrap_or_else(|reason| reason),
            version: consumer.tried,
        }
    };
    CONSUMERS.iter().map(target).collect()
}

#[cfg(test)]
mod tests {
    use mmx_converters::arch::presets;

    use super::*;

    #[test]
    fn sizes_are_those_llama_quantize_gives() {
        // minimind2-small as llama-quantize writes it, MB of all tensors
        let report = model(&presets::preset("minimind2-small").unwrap());
        for (ty, mb, fallbacks) in [("q4_0", 15.4, 0), ("q4_k_m", 17.3, 8), ("q8_0", 27.5, 0)] {
            let found = report.types.iter().find(|t| t.ty == ty).unwrap();
            assert!((found.bytes as f64 / 1e6 - mb).abs() < 0.1, "{ty}: {}", found.bytes);
            assert_eq!(found.fallbacks, fallbacks, "{ty}");
        }
        let lengths: Vec<(usize, bool)> =
            report.rows.iter().map(|rows| (rows.length, rows.fits_256)).collect();
        assert_eq!(lengths, [(512, true), (1408, false)]);
        assert!(report.tied && (report.embedding_share - 0.127).abs() < 0.005);
        assert!(report.targets.iter().all(|target| target.ok));
    }

    #[test]
    fn a_runtime_that_cannot_carry_the_model_says_why() {
        let mut config = presets::preset("minimind2-moe").unwrap();
        config.moe.as_mut().unwrap().num_experts_per_tok = 1;
        let report = model(&config);
        for target in report.targets {
            assert!(!target.ok, "{}", target.runtime);
            assert!(!target.note.is_empty());
        }
        let v1 = model(&presets::preset("minimind-v1").unwrap());
        let vllm = v1.targets.iter().find(|t| t.runtime == "vLLM").unwrap();
        assert!(vllm.ok && vllm.note.contains("48"), "{}", vllm.note);
    }
}
