//! Models that another library quantized: known by config.json, and refused by that library's name
//! before any tensor is looked at. mmx reads float weights, and quantizes by itself on export.
//!
//! In: a config.json. Out: nothing, or an error that says what to do instead. Sources: the
//! `quantization_config` classes of Transformers 5.24 and 4.57, what mlx-lm 0.32 writes, vLLM 0.32's
//! reading of `compression_config`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The keys under which the libraries say how a model is quantized, the telling one first.
const KEYS: [&str; 3] = ["quantization_config", "quantization", "compression_config"];

/// Refuses the config.json of a quantized model.
///
/// # Errors
/// One of the keys names a method, or has settings of one.
pub(crate) fn refuse(config: &Map<String, Value>, path: &Path) -> Result<()> {
    let Some((key, settings)) = KEYS.into_iter().find_map(|key| {
        let settings = config.get(key)?;
        is_set(settings).then_some((key, settings))
    }) else {
        return Ok(());
    };
    let method = method(config, key, settings);
    Err(Error::failed_with_hint(
        format!(
            "{}: key {key}: expected a model of float weights, found one quantized by {method}{}",
            path.display(),
            bits(settings).map_or(String::new(), |bits| format!(" ({bits} bits)"))
        ),
        hint(&method),
    ))
}

/// [`refuse`] of a file, where it is a JSON object.
///
/// # Errors
/// As [`refuse`]; a file that cannot be read.
pub(crate) fn refuse_file(path: &Path) -> Result<()> {
    let text = fs_err::read_to_string(path).map_err(|e| Error::io(path, e))?;
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(config)) => refuse(&config, path),
        _ => Ok(()), // whoever needs the configuration says so
    }
}

/// False for null, false, and settings without any.
fn is_set(settings: &Value) -> bool {
    match settings {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::String(name) => !matches!(name.as_str(), "" | "none"),
        _ => true,
    }
}

/// The method's name, as its library spells it.
fn method(config: &Map<String, Value>, key: &str, settings: &Value) -> String {
    if let Some(name) = settings.as_str() {
        return name.to_owned();
    }
    let text = |name: &str| settings.get(name).and_then(Value::as_str);
    let has = |name: &str| settings.get(name).is_some();
    let on = |name: &str| settings.get(name).and_then(Value::as_bool) == Some(true);
    if let Some(name) = text("quant_method") {
        // some wrote the enumeration of Python: QuantizationMethod.GPTQ
        return name.strip_prefix("QuantizationMethod.").unwrap_or(name).to_owned();
    }
    // Transformers takes a file without a method for bitsandbytes where it says so
    if on("load_in_4bit") || on("load_in_8bit") {
        return "bitsandbytes".to_owned();
    }
    if key == "compression_config" || has("config_groups") {
        return "compressed-tensors".to_owned();
    }
    if has("quant_algo") {
        return "modelopt".to_owned();
    }
    // mlx-lm writes its settings under both keys, without a method
    if key == "quantization" || config.get("quantization").is_some_and(is_set) {
        return "MLX".to_owned();
    }
    let keys: Vec<&str> =
        settings.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    format!("a method without a name (its settings: {})", keys.join(", "))
}

/// Bits of a quantized weight, where the settings have them at the top.
fn bits(settings: &Value) -> Option<u64> {
    let number = ["bits", "num_bits", "nbits"].iter().find_map(|key| settings.get(key)?.as_u64());
    let on = |key: &str| settings.get(key).and_then(Value::as_bool) == Some(true);
    number.or_else(|| on("load_in_4bit").then_some(4)).or_else(|| on("load_in_8bit").then_some(8))
}

fn hint(method: &str) -> String {
    let own = "take the model it was made from: mmx quantizes it by itself, to a GGUF";
    match method {
        "MLX" => {
            format!("{own}; `mlx_lm.convert` makes floats of this one where asked to dequantize")
        }
        "bitsandbytes" => {
            format!("{own}; in Transformers `model.dequantize()` makes floats of this one")
        }
        _ => own.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(config: Value) -> Option<(String, String)> {
        let config = config.as_object().cloned().unwrap();
        let error = refuse(&config, Path::new("config.json")).err()?;
        Some((error.to_string(), error.hint().unwrap()))
    }

    #[test]
    fn every_librarys_own_form_is_refused_by_its_name() {
        let rows = [
            // mlx-lm 0.32, convert -q: affine, and with layers of their own
            (
                "MLX (4 bits)",
                json!({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"},
                "quantization_config": {"group_size": 64, "bits": 4, "mode": "affine"}}),
            ),
            (
                "MLX (8 bits)",
                json!({"quantization": {"group_size": 32, "bits": 8,
                "model.embed_tokens": {"group_size": 32, "bits": 4}, "lm_head": false}}),
            ),
            // mxfp4 of MLX: still its own tensors
            (
                "MLX (4 bits)",
                json!({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}),
            ),
            (
                "gptq (4 bits)",
                json!({"quantization_config": {"quant_method": "gptq", "bits": 4,
                "group_size": 128, "desc_act": false, "sym": true, "format": "gptq"}}),
            ),
            (
                "GPTQ (4 bits)",
                json!({"quantization_config": {"quant_method": "QuantizationMethod.GPTQ",
                "bits": 4}}),
            ),
            (
                "awq (4 bits)",
                json!({"quantization_config": {"quant_method": "awq", "bits": 4,
                "zero_point": true, "version": "gemm"}}),
            ),
            (
                "bitsandbytes (4 bits)",
                json!({"quantization_config": {"quant_method": "bitsandbytes",
                "_load_in_4bit": true, "load_in_4bit": true, "load_in_8bit": false,
                "bnb_4bit_quant_type": "nf4"}}),
            ),
            ("bitsandbytes (8 bits)", json!({"quantization_config": {"load_in_8bit": true}})),
            (
                "compressed-tensors",
                json!({"quantization_config": {"quant_method": "compressed-tensors",
                "format": "pack-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}}),
            ),
            (
                "compressed-tensors",
                json!({"compression_config": {"format": "int-quantized",
                "config_groups": {}}}),
            ),
            (
                "compressed-tensors",
                json!({"quantization_config": {"config_groups": {}, "format": "x"}}),
            ),
            (
                "fp8",
                json!({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
                "activation_scheme": "dynamic", "weight_block_size": [128, 128]}}),
            ),
            ("fbgemm_fp8", json!({"quantization_config": {"quant_method": "fbgemm_fp8"}})),
            (
                "torchao",
                json!({"quantization_config": {"quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}}),
            ),
            (
                "modelopt",
                json!({"quantization_config": {"quant_algo": "FP8", "kv_cache_scheme": null}}),
            ),
            ("hqq", json!({"quantization_config": {"quant_method": "hqq", "quant_config": {}}})),
            (
                "auto-round (4 bits)",
                json!({"quantization_config": {"quant_method": "auto-round", "bits": 4}}),
            ),
            ("bitnet", json!({"quantization_config": {"quant_method": "bitnet"}})),
            ("mxfp4", json!({"quantization_config": {"quant_method": "mxfp4"}})),
            ("sinq (4 bits)", json!({"quantization_config": {"quant_method": "sinq", "nbits": 4}})),
            (
                "one of tomorrow",
                json!({"quantization_config": {"quant_method": "one of tomorrow"}}),
            ),
            ("awq", json!({"quantization": "awq"})),
            (
                "a method without a name (its settings: scheme)",
                json!({"quantization_config": {"scheme": "w8a8"}}),
            ),
        ]; // rows of a table read better than the formatter's columns
        for (name, config) in rows {
            let (message, hint) = refusal(config.clone()).unwrap_or_else(|| panic!("{config}"));
            assert!(message.ends_with(&format!("found one quantized by {name}")), "{message}");
            assert!(hint.contains("the model it was made from"), "{hint}");
        }
        let (message, hint) = refusal(json!({"quantization": {"bits": 4}})).unwrap();
        assert!(
            message.starts_with("config.json: key quantization: expected a model of"),
            "{message}"
        );
        assert!(hint.contains("`mlx_lm.convert` makes floats"), "{hint}");
    }

    #[test]
    fn what_holds_floats_is_not_refused() {
        for config in [
            json!({}),
            json!({"quantization_config": null, "quantization": null}),
            json!({"quantization_config": {}}),
            json!({"quantization": false}),
            json!({"quantization": "none"}),
        ] {
            assert_eq!(refusal(config.clone()), None, "{config}");
        }
    }
}
