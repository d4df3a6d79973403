//! The file types of GGUF (`general.file_type`) and the type each tensor gets in a file of that
//! type, as llama-quantize chooses it.
//!
//! In: a [`FileType`], a [`Config`], a tensor's GGUF name and shape. Out: its [`GgmlType`], and a
//! [`Fallback`] where the row length forbids the type that was wanted. Source: llama-quantize of
//! llama.cpp 11434 by experiment (docs/formats/gguf.md), held to the linked library by
//! `tests/quantize.rs`.

use std::fmt;
use std::str::FromStr;

use crate::arch::Config;
use crate::error::Error;
use crate::gguf::GgmlType;

macro_rules! file_types {
    ($($name:ident = $id:literal, $label:literal, $base:ident;)*) => {
        /// A kind of GGUF file, by what most of its matrices are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, reason = "llama.cpp's own names")]
        #[expect(missing_docs, reason = "llama.cpp's own names")]
        pub enum FileType { $($name),* }

        impl FileType {
            /// Every file type mmx writes.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// `general.file_type`.
            pub fn id(self) -> u32 {
                match self { $(Self::$name => $id),* }
            }

            /// The name on the command line: `q4_0`, `q4_k_m`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            /// The type of the matrices that get no other one.
            pub fn base(self) -> GgmlType {
                match self { $(Self::$name => GgmlType::$base),* }
            }
        }
    };
}

// Source: llama.h (enum llama_ftype) of the pinned llama.cpp; docs/formats/gguf.md.
file_types! {
    F32 = 0, "f32", F32;
    F16 = 1, "f16", F16;
    BF16 = 32, "bf16", BF16;
    Q4_0 = 2, "q4_0", Q4_0;
    Q4_1 = 3, "q4_1", Q4_1;
    Q5_0 = 8, "q5_0", Q5_0;
    Q5_1 = 9, "q5_1", Q5_1;
    Q8_0 = 7, "q8_0", Q8_0;
    Q2_K = 10, "q2_k", Q2_K;
    Q3_K_S = 11, "q3_k_s", Q3_K;
    Q3_K_M = 12, "q3_k_m", Q3_K;
    Q3_K_L = 13, "q3_k_l", Q3_K;
    Q4_K_S = 14, "q4_k_s", Q4_K;
    Q4_K_M = 15, "q4_k_m", Q4_K;
    Q5_K_S = 16, "q5_k_s", Q5_K;
    Q5_K_M = 17, "q5_k_m", Q5_K;
    Q6_K = 18, "q6_k", Q6_K;
    IQ4_NL = 25, "iq4_nl", IQ4_NL;
    IQ4_XS = 30, "iq4_xs", IQ4_XS;
    TQ1_0 = 36, "tq1_0", TQ1_0;
    TQ2_0 = 37, "tq2_0", TQ2_0;
    MXFP4_MOE = 38, "mxfp4_moe", MXFP4;
}

impl FileType {
    /// True when matrices are held in blocks.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// The file type with this `general.file_type`.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.id() == id)
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileType {
    type Err = Error;

    /// Any case; `q3_k`, `q4_k` and `q5_k` mean the `_m` mixtures, as in llama-quantize.
    fn from_str(text: &str) -> Result<Self, Error> {
        let lower = text.to_ascii_lowercase();
        let name = match lower.as_str() {
            "q3_k" | "q4_k" | "q5_k" => format!("{lower}_m"),
            _ => lower,
        };
        Self::ALL.iter().copied().find(|t| t.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|t| t.name()).collect();
            Error::misuse(format!("file type: expected one of {}, found {text}", known.join(", ")))
        })
    }
}

/// A tensor whose row length forbids the type that was wanted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fallback {
    /// The tensor's GGUF name.
    pub tensor: String,
    /// The type wanted, by ggml's name.
    pub wanted: &'static str,
    /// The type used.
    pub used: &'static str,
    /// Why, in a sentence.
    pub reason: String,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} instead of {}: {}", self.tensor, self.used, self.wanted, self.reason)
    }
}

/// The type of the tensor `name` (GGUF name; `shape` outermost first) in a file of type `file`.
/// `importance` is whether an importance matrix is used, which changes two rules.
pub fn recipe(
    file: FileType,
    config: &Config,
    name: &str,
    shape: &[usize],
    importance: bool,
) -> (GgmlType, Option<Fallback>) {
    let kept = shape.len() < 2
        || !name.ends_with("weight")
        || name.contains("_norm.weight")
        || name.contains("ffn_gate_inp.weight");
    if kept {
        return (GgmlType::F32, None);
    }
    if !file.is_quantized() {
        return (file.base(), None);
    }
    let row = shape[shape.len() - 1];
    let wanted = wanted(file, config, name, shape.len(), importance);
    let used = fitting(wanted, row);
    let fallback = (used != wanted).then(|| Fallback {
        tensor: name.to_owned(),
        wanted: wanted.name(),
        used: used.name(),
        reason: format!("rows of {row} are no multiple of {}", wanted.block_elements()),
    });
    (used, fallback)
}

/// `wanted`, or what llama-quantize takes where rows of `row` values do not divide into its blocks.
fn fitting(wanted: GgmlType, row: usize) -> GgmlType {
    use GgmlType::{
        F16, IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, TQ1_0, TQ2_0,
    };
    let fits = |ty: GgmlType| row.is_multiple_of(ty.block_elements());
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        IQ4_XS => IQ4_NL,
        Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { F16 }
}

/// The mixture's choice before the row length is looked at.
fn wanted(file: FileType, config: &Config, name: &str, dims: usize, importance: bool) -> GgmlType {
    use FileType as F;
    use GgmlType::{Q3_K, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K, Q8_0};
    let base = file.base();
    let layers = config.num_hidden_layers;
    let layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split('.').next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0usize);
    // an eighth at either end and every third between, in whole layers
    let eighth = layers / 8;
    let more_bits =
        layer < eighth || layer >= 7 * layers / 8 || (layer.wrapping_sub(eighth)) % 3 == 2;
    let grouped = config.num_attention_heads / config.num_key_value_heads >= 4;
    let experts = config.moe.as_ref().map_or(0, |moe| moe.num_experts);

    if name == "output.weight" || (name == "token_embd.weight" && config.tie_word_embeddings) {
        return match file {
            F::MXFP4_MOE | F::Q8_0 => Q8_0,
            _ => Q6_K,
        };
    }
    if file == F::MXFP4_MOE {
        return if dims > 2 { base } else { Q8_0 };
    }
    if name == "token_embd.weight" {
        return if matches!(file, F::TQ1_0 | F::TQ2_0) { Q4_K } else { base };
    }
    if name.contains("attn_v.weight") {
        if experts == 8 {
            return Q8_0; // small beside eight experts
        }
        return match file {
            F::Q2_K if grouped => Q4_K,
            F::Q2_K => Q3_K,
            F::Q3_K_M if layer < 2 => Q5_K,
            F::Q3_K_M => Q4_K,
            F::Q3_K_L => Q5_K,
            F::IQ4_NL | F::IQ4_XS if grouped => Q5_K,
            F::Q4_K_M | F::Q5_K_M if more_bits => Q6_K,
            F::Q4_K_S if layer < 4 => Q5_K,
            _ => base,
        };
    }
    if name.contains("attn_k.weight") {
        return if experts == 8 { Q8_0 } else { base };
    }
    if name.contains("ffn_down") {
        return match file {
            F::Q2_K => Q3_K,
            F::Q3_K_M if layer < layers / 16 => Q5_K,
            F::Q3_K_M => Q4_K,
            F::Q3_K_L => Q5_K,
            F::Q4_K_M | F::Q5_K_M if more_bits => Q6_K,
            F::Q4_K_S if layer < eighth => Q5_K,
            F::IQ4_NL | F::IQ4_XS if layer < eighth && !importance => Q5_K,
            F::Q4_0 if importance && layer < eighth => Q4_1,
            F::Q5_0 if importance && layer < eighth => Q5_1,
            _ => base,
        };
    }
    if name.contains("attn_output.weight") {
        if experts == 8 {
            return match file {
                F::Q2_K | F::Q3_K_S | F::Q3_K_M | F::Q4_K_S | F::Q4_K_M | F::IQ4_NL | F::IQ4_XS => {
                    Q5_K
                }
                _ => base,
            };
        }
        return match file {
            F::Q2_K => Q3_K,
            F::Q3_K_M => Q4_K,
            F::Q3_K_L => Q5_K,
            _ => base,
        };
    }
    base
}

#[cfg(test)]
mod tests {
    use crate::arch::presets;

    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_short() {
        assert_eq!("Q4_0".parse::<FileType>().unwrap(), FileType::Q4_0);
        assert_eq!("q4_k".parse::<FileType>().unwrap(), FileType::Q4_K_M);
        let error = "q9_9".parse::<FileType>().unwrap_err().to_string();
        assert!(error.contains("found q9_9") && error.contains("q4_k_m"), "{error}");
        for &file in FileType::ALL {
            assert_eq!(file.name().parse::<FileType>().unwrap(), file);
            assert_eq!(FileType::from_id(file.id()), Some(file));
        }
    }

    /// The case `quant-columns`: per preset and type, what rows of its lengths become.
    #[test]
    fn quant_columns() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/cases/files/quant-columns/table.json"
        );
        let table: serde_json::Value =
            serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
        let mut compared = 0;
        for entry in table.as_array().unwrap() {
            for (wanted, used) in entry["types"].as_object().unwrap() {
                let wanted =
                    *GgmlType::ALL.iter().find(|t| t.name() == wanted).expect("a known type");
                for (row, key) in
                    [("row of all but ffn_down", "others"), ("row of ffn_down", "ffn_down")]
                {
                    let row = entry[row].as_u64().unwrap() as usize;
                    assert_eq!(fitting(wanted, row).name(), used[key].as_str().unwrap(), "{entry}");
                    compared += 1;
                }
            }
        }
        assert!(compared >= 60, "the table has {compared} entries");
    }

    #[test]
    fn replacements_are_named_with_their_reason() {
        let config = presets::preset("minimind2-small").unwrap();
        let (ty, fallback) =
            recipe(FileType::Q4_K_M, &config, "blk.1.ffn_down.weight", &[512, 1408], false);
        assert_eq!(ty, GgmlType::Q5_0);
        let fallback = fallback.unwrap();
        assert_eq!((fallback.wanted, fallback.used), ("Q4_K", "Q5_0"));
        assert_eq!(fallback.reason, "rows of 1408 are no multiple of 256");
        let norm = recipe(FileType::Q4_0, &config, "output_norm.weight", &[512], false);
        assert_eq!(norm, (GgmlType::F32, None));
        let odd = recipe(FileType::Q8_0, &config, "blk.0.attn_q.weight", &[8, 24], false);
        assert_eq!(odd.0, GgmlType::F16);
    }
}
