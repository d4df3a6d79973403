//! config.json's rotary settings, which may stand in several places that contradict each other.
//!
//! In: the keys of a config.json. Out: theta, the scaling, and a sentence for each contradiction. Of two places the one counts that Transformers 5 lets count. Source: tried with
//! Transformers 5.24 and 4.57.6 on Llama:
//!
//! | places | 5.24 takes | 4.57.6 takes |
//! |---|---|---|
//! | `rope_scaling` and `rope_parameters` | `rope_scaling` whole, unless it is empty | `rope_scaling` |
//! | `rope_theta` in that object and at the top | the object's | the one at the top |
//! | `rope_type` and `type` | `rope_type` | `type` |
//! | `factor` null | max_position_embeddings / original | fails |
//! | `original_max_position_embeddings` in that object and at the top | the one at the top | the object's |
//! | in neither | max_position_embeddings | the same |
//! | `mscale` and `mscale_all_dim` without `attention_factor` | their quotient | the same |
//!
//! MiniMind's own classes read `rope_theta` at the top, and `inference_rope_scaling` before all
//! else.

use serde_json::{Map, Value};

use super::config::{Llama3, RopeScaling, Yarn};
use super::family::minimind3::MINIMIND3_YARN;
use super::keys::Keys;
use crate::error::{Error, Result};

/// Transformers' default for Llama, Qwen3 and Granite, and the base of MiniMind v1.
const TRANSFORMERS_THETA: f64 = 10_000.0;
/// The reference's default.
const MINIMIND_THETA: f64 = 1e6;

/// The base of the frequencies and their scaling. `own`: MiniMind's config.json rather than a
/// stock class's.
///
/// # Errors
/// A value of another type, a kind of scaling that no family has, or settings that differ from
/// layer to layer.
pub(super) fn read(
    keys: &Keys<'_>,
    own: bool,
    max_position_embeddings: usize,
    warnings: &mut Vec<String>,
) -> Result<(f64, Option<RopeScaling>)> {
    let object = |key: &str| match keys.object.get(key) {
        Some(Value::Object(object)) if !object.is_empty() => Some(object),
        _ => None,
    };
    let (scaling, parameters) = (object("rope_scaling"), object("rope_parameters"));
    let (name, nested) = match (scaling, parameters) {
        (Some(scaling), _) => ("rope_scaling", Some(scaling)),
        (None, parameters) => ("rope_parameters", parameters),
    };
    let mut say = |text: String| warnings.push(format!("{}: {text}", keys.path.display()));
    if let (Some(scaling), Some(parameters)) = (scaling, parameters)
        && let Some(key) = first_difference(scaling, parameters)
    {
        say(format!(
            "rope_scaling and rope_parameters disagree about {key}: rope_scaling counts, as in Transformers"
        ));
    }
    let nested = nested.map(|object| Keys { path: keys.path, object });
    if let Some(nested) = &nested {
        refuse_what_is_missing_here(keys, nested, name)?;
    }
    let theta = theta(keys, nested.as_ref(), name, own, &mut say)?;
    if own && keys.bool_or("inference_rope_scaling", false)? {
        return Ok((theta, Some(MINIMIND3_YARN)));
    }
    let scaling = match &nested {
        Some(nested) => scaling_of(keys, nested, name, own, max_position_embeddings, &mut say)?,
        None => None,
    };
    Ok((theta, scaling))
}

/// A key that both objects have, with different values.
fn first_difference<'a>(a: &'a Map<String, Value>, b: &Map<String, Value>) -> Option<&'a str> {
    let number = |v: &Value| v.as_f64();
    let differ = |x: &Value, y: &Value| x != y && (number(x).is_none() || number(x) != number(y));
    let kind = |map: &Map<String, Value>| map.get("rope_type").or(map.get("type")).cloned();
    if kind(a) != kind(b) {
        return Some("rope_type");
    }
    a.iter().find(|(key, x)| b.get(*key).is_some_and(|y| differ(x, y))).map(|(key, _)| key.as_str())
}

/// Refuses settings of each kind of layer, or of a part of each head, which no family has.
fn refuse_what_is_missing_here(keys: &Keys<'_>, nested: &Keys<'_>, name: &str) -> Result<()> {
    if let Some((key, value)) = nested.object.iter().find(|(_, value)| value.is_object()) {
        let key = format!("{name}.{key}");
        return Err(keys.error(&key, "one set of rotary settings for all layers", value));
    }
    if let Some((_, value)) = nested.find(&["truncate"])
        && value.as_bool() != Some(true)
    {
        return Err(keys.error(&format!("{name}.truncate"), "true", value));
    }
    for (place, found) in [
        ("partial_rotary_factor".to_owned(), keys.find(&["partial_rotary_factor"])),
        (format!("{name}.partial_rotary_factor"), nested.find(&["partial_rotary_factor"])),
    ] {
        if let Some((_, value)) = found
            && value.as_f64() != Some(1.0)
        {
            return Err(keys.error(&place, "1 (all of each head turns)", value));
        }
    }
    Ok(())
}

fn theta(
    keys: &Keys<'_>,
    nested: Option<&Keys<'_>>,
    name: &str,
    own: bool,
    say: &mut impl FnMut(String),
) -> Result<f64> {
    let top = keys.f64_or(&["rope_theta"], Some(f64::NAN))?;
    let inner = match nested {
        Some(nested) => nested.f64_or(&["rope_theta"], Some(f64::NAN))?,
        None => f64::NAN,
    };
    let (first, second, kept) =
        if own { (top, inner, "rope_theta") } else { (inner, top, "the latter") };
    if !first.is_nan() && !second.is_nan() && first != second {
        let like = if own { "as in MiniMind's own class" } else { "as in Transformers 5" };
        say(format!("rope_theta is {top} and {name}.rope_theta is {inner}: {kept} counts, {like}"));
    }
    if let Some(theta) = [first, second].into_iter().find(|theta| !theta.is_nan()) {
        return Ok(theta);
    }
    // v1's class has no such key: the base stands in its code
    let v1 = own && keys.has_any(&["n_layers"]);
    let default = if own && !v1 { MINIMIND_THETA } else { TRANSFORMERS_THETA };
    say(format!("neither rope_theta nor {name}.rope_theta: {default} is assumed"));
    Ok(default)
}

fn scaling_of(
    keys: &Keys<'_>,
    nested: &Keys<'_>,
    name: &str,
    own: bool,
    max_position_embeddings: usize,
    say: &mut impl FnMut(String),
) -> Result<Option<RopeScaling>> {
    let text = |key: &str| nested.find(&[key]).and_then(|(_, v)| v.as_str());
    let kind = text("rope_type").or(text("type")).unwrap_or("default");
    if let Some(other) = text("type").filter(|other| *other != kind) {
        say(format!(
            "{name}.rope_type is {kind} and {name}.type is {other}: the former counts, as in Transformers 5"
        ));
    }
    match kind {
        "default" => return Ok(None),
        "linear" | "dynamic" | "yarn" | "llama3" => {}
        other => {
            return Err(Error::key(
                nested.path,
                format!("{name}.rope_type"),
                format!("expected default, linear, dynamic, yarn or llama3, found {other}"),
            ));
        }
    }
    let key = "original_max_position_embeddings";
    let inner = nested.usize_or(&[key], Some(max_position_embeddings))?;
    // MiniMind's own class knows no such key at the top
    let original = if own { inner } else { keys.usize_or(&[key], Some(inner))? };
    if original != inner {
        say(format!(
            "{key} is {original} and {name}.{key} is {inner}: the former counts, as in Transformers 5"
        ));
    }
    let factor = match nested.object.get("factor") {
        Some(Value::Null) => max_position_embeddings as f64 / original as f64,
        _ => nested.f64_or(&["factor"], None)?,
    };
    if factor < 1.0 {
        let message = format!("expected at least 1, found {factor}");
        return Err(Error::key(nested.path, format!("{name}.factor"), message));
    }
    match kind {
        "linear" => return Ok(Some(RopeScaling::Linear { factor })),
        "dynamic" => return Ok(Some(RopeScaling::Dynamic { factor })),
        "llama3" => {
            let low_freq_factor = nested.f64_or(&["low_freq_factor"], None)?;
            let high_freq_factor = nested.f64_or(&["high_freq_factor"], None)?;
            if high_freq_factor <= low_freq_factor {
                let message = format!(
                    "expected more than low_freq_factor ({low_freq_factor}), found {high_freq_factor}"
                );
                return Err(Error::key(nested.path, format!("{name}.high_freq_factor"), message));
            }
            return Ok(Some(RopeScaling::Llama3(Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            })));
        }
        _ => {}
    }
    // YaRN (Peng et al. 2023), as Transformers and vLLM have it
    let scaled = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let mscale = nested.f64_or(&["mscale"], Some(0.0))?;
    let all_dim = nested.f64_or(&["mscale_all_dim"], Some(0.0))?;
    let usual = if mscale != 0.0 && all_dim != 0.0 {
        scaled(mscale) / scaled(all_dim)
    } else {
        scaled(1.0)
    };
    Ok(Some(RopeScaling::Yarn(Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: nested.f64_or(&["beta_fast"], Some(32.0))?,
        beta_slow: nested.f64_or(&["beta_slow"], Some(1.0))?,
        attention_factor: nested.f64_or(&["attention_factor"], Some(usual))?,
    })))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::arch::{Config, RopeScaling};
    use crate::error::Result;

    fn read(extra: Value) -> Result<(Config, Vec<String>)> {
        let mut config = json!({"model_type": "llama", "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5});
        config.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
        Config::from_json(&config, Path::new("config.json"))
    }

    fn yarn(extra: Value) -> Value {
        let mut yarn = json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0,
            "original_max_position_embeddings": 1024});
        yarn.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
        yarn
    }

    /// Each row was given to Transformers 5.24, which made these numbers of it.
    #[test]
    fn of_two_places_the_one_counts_that_transformers_5_takes_and_it_is_said() {
        let plain = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
        let (low, high) = (1e4, 1e6);
        let rows = [
            (json!({"rope_theta": high, "rope_parameters": plain(low)}), low, None, 1),
            (json!({"rope_theta": high, "rope_parameters": plain(high)}), high, None, 0),
            (
                json!({"rope_scaling": yarn(json!({})), "rope_parameters": plain(high)}),
                low,
                Some(4.0),
                2, // and that theta is assumed
            ),
            (
                json!({"rope_theta": 5e5, "rope_scaling": yarn(json!({})), "rope_parameters": plain(high)}),
                5e5,
                Some(4.0),
                1,
            ),
            (
                json!({"rope_theta": high, "rope_scaling": yarn(json!({"type": "default"}))}),
                high,
                Some(4.0),
                1,
            ),
            (
                json!({"rope_theta": high, "rope_scaling": yarn(json!({"type": "yarn", "rope_type": "default"}))}),
                high,
                None,
                1,
            ),
            (
                json!({"rope_theta": high, "rope_scaling": {}, "rope_parameters": plain(low)}),
                low,
                None,
                1,
            ),
            (
                json!({"rope_theta": high, "rope_scaling": yarn(json!({})), "rope_parameters": yarn(json!({"factor": 8.0}))}),
                high,
                Some(4.0),
                1,
            ),
        ];
        for (given, theta, factor, said) in rows {
            let (config, warnings) = read(given.clone()).unwrap();
            assert_eq!(config.rope_theta, theta, "{given}");
            let found = config.rope_scaling.map(|scaling| scaling.factor());
            assert_eq!(found, factor, "{given}");
            assert_eq!(warnings.len(), said, "{given}: {warnings:?}");
        }
    }

    #[test]
    fn what_yarn_leaves_out_is_filled_in_as_transformers_5_does() {
        let get = |extra: Value| {
            let given = json!({"rope_theta": 1e6, "rope_scaling": yarn(extra)});
            let Some(RopeScaling::Yarn(yarn)) = read(given).unwrap().0.rope_scaling else {
                panic!("no YaRN")
            };
            yarn
        };
        assert_eq!(get(json!({})).original_max_position_embeddings, 1024);
        let open = get(json!({"original_max_position_embeddings": null}));
        assert_eq!(open.original_max_position_embeddings, 4096);
        assert_eq!(get(json!({"factor": null})).factor, 4.0);
        // 1.0648216253695715 and 1.138629436111989 by Transformers 5.24
        let both = get(json!({"attention_factor": null, "mscale": 1.0, "mscale_all_dim": 0.5}));
        assert!((both.attention_factor - 1.064_821_625_369_571_5).abs() < 1e-12, "{both:?}");
        let one = get(json!({"attention_factor": null, "mscale": 0.5}));
        assert!((one.attention_factor - 1.138_629_436_111_989).abs() < 1e-12, "{one:?}");
    }

    #[test]
    fn the_original_length_at_the_top_counts_and_bounds_an_open_factor() {
        let given = json!({"rope_theta": 1e6, "original_max_position_embeddings": 512,
            "rope_scaling": yarn(json!({"factor": null}))});
        let (config, warnings) = read(given).unwrap();
        let Some(RopeScaling::Yarn(found)) = config.rope_scaling else { panic!("no YaRN") };
        assert_eq!((found.original_max_position_embeddings, found.factor), (512, 8.0));
        assert!(warnings[0].contains("the former counts"), "{warnings:?}");
    }

    #[test]
    fn rejects_rotary_settings_that_no_family_has() {
        let error = |extra: Value| read(extra).unwrap_err().to_string();
        let text =
            error(json!({"rope_theta": 1e6, "rope_scaling": yarn(json!({"truncate": false}))}));
        assert!(text.contains("key rope_scaling.truncate: expected true, found false"), "{text}");
        let text = error(json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}));
        assert!(text.contains("key rope_parameters.full_attention"), "{text}");
        let nested = json!({"rope_theta": 1e6, "partial_rotary_factor": 0.5});
        let text = error(json!({"rope_parameters": nested}));
        assert!(text.contains("key rope_parameters.partial_rotary_factor"), "{text}");
        let text =
            error(json!({"partial_rotary_factor": 0.5, "rope_parameters": {"rope_theta": 1e6}}));
        assert!(text.contains("key partial_rotary_factor"), "{text}");
    }
}
