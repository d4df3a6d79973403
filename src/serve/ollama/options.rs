//! The object `options` of a request to Ollama's API: options that are obeyed, that change nothing
//! here, and that are refused. Source: Ollama 0.33.0, api/types.go, and the options that older
//! versions and its Python client know. docs/api-ollama.md is the list for people; a test holds it
//! against the tables below.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::sampling::{Names, OneOrMany, Params};

/// Options that are obeyed.
pub(super) const OBEYED: [&str; 11] = [
    "num_predict",
    "num_ctx",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
];

/// Options that say how to compute, not what, or only count beside others that are refused.
pub(super) const IGNORED: [&str; 17] = [
    "num_keep", // what a shifting context keeps: none shifts here
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "use_mmap",
    "use_mlock",
    "numa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "embedding_only",
    "draft_num_predict",
    "num_gqa",
    "mirostat_tau", // beside mirostat
    "mirostat_eta",
];
/// Options that are not supported, with the value by which they are off.
pub(super) const OFF: [(&str, f64); 3] = [("mirostat", 0.0), ("typical_p", 1.0), ("tfs_z", 1.0)];

/// Reads the sampling settings from `options`.
///
/// # Errors
/// 400, with the option: another type than expected, or something that would be ignored.
pub(super) fn params(mut options: Fields) -> Result<Params, ApiError> {
    options.ignore(&IGNORED);
    for (name, off) in OFF {
        if let Some(found) = options.number(name)?.filter(|&x| x != off) {
            let text = format!("not supported: expected {off} (off) or nothing, found {found}");
            return Err(options.fault(name, &text));
        }
    }
    if options.flag("penalize_newline")? == Some(false) {
        let text = "not supported: expected true or nothing, found false";
        return Err(options.fault("penalize_newline", text));
    }
    let max_tokens = match options.int("num_predict")? {
        Some(-1 | -2) | None => None, // no limit; as much as the context holds
        Some(n) if n > 0 => Some(n),
        Some(n) => {
            let text = format!("expected at least 1, or -1 for no limit, found {n}");
            return Err(options.fault("num_predict", &text));
        }
    };
    let n_ctx = match options.int("num_ctx")? {
        None => None,
        Some(n) => match usize::try_from(n) {
            Ok(n) if n > 0 => Some(n),
            _ => {
                return Err(options.fault("num_ctx", &format!("expected at least 1, found {n}")));
            }
        },
    };
    let seed = match options.int("seed")? {
        None | Some(-1) => None, // -1: choose one
        Some(n) if n >= 0 => Some(n),
        Some(n) => {
            let text = format!("expected -1 (choose one), 0 or more, found {n}");
            return Err(options.fault("seed", &text));
        }
    };
    let stop = match options.any("stop") {
        None => None,
        Some(value) => match OneOrMany::of(value, "stop") {
            Ok(OneOrMany::Many(texts)) if texts.is_empty() => None,
            Ok(texts) => Some(texts),
            Err(_) => return Err(options.fault("stop", "expected a list of texts")),
        },
    };
    let params = Params {
        max_tokens,
        n_ctx,
        temperature: options.number("temperature")?,
        top_p: options.number("top_p")?,
        top_k: options.int("top_k")?,
        min_p: options.number("min_p")?,
        repetition_penalty: options.number("repeat_penalty")?,
        presence_penalty: options.number("presence_penalty")?,
        frequency_penalty: options.number("frequency_penalty")?,
        seed,
        stop,
        names: Names {
            max_tokens: "num_predict",
            repetition_penalty: "repeat_penalty",
            within: "options.",
            ..Names::default()
        },
        ..Params::default()
    };
    // here the penalties look at the whole text: another window counts only where there is a
    // penalty
    let last = options.int("repeat_last_n")?;
    let off = |penalty: Option<f64>, off: f64| penalty.is_none_or(|x| x == off);
    let none = off(params.repetition_penalty, 1.0)
        && off(params.presence_penalty, 0.0)
        && off(params.frequency_penalty, 0.0);
    if let Some(n) = last.filter(|&n| n != -1 && !none) {
        let text = format!("expected -1 (the whole text) beside a penalty, found {n}");
        return Err(options.fault("repeat_last_n", &text));
    }
    options.finish(&[], &[])?;
    Ok(params)
}

/// Adds to the error of a prompt that is too long which option limits it; `num_ctx` is the
/// request's value.
pub(super) fn with_context(error: ApiError, num_ctx: Option<usize>) -> ApiError {
    match num_ctx.filter(|_| error.code == Some("context_length_exceeded")) {
        Some(n) => {
            let message = format!("{} (options.num_ctx: {n})", error.message);
            ApiError { message, ..error }
        }
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &str) -> Result<Params, ApiError> {
        let mut body = Fields::parse(format!("{{\"options\": {options}}}").as_bytes())?;
        params(body.within("options")?)
    }

    #[test]
    fn a_seed_of_minus_one_is_chosen_and_other_negative_ones_are_refused() {
        assert_eq!(of("{\"seed\": -1}").expect("chosen").seed, None);
        assert_eq!(of("{\"seed\": 0}").expect("fixed").seed, Some(0));
        assert_eq!(of("{\"seed\": 7.0}").expect("fixed").seed, Some(7));
        for bad in ["-2", "-9223372036854775808", "\"7\"", "7.5"] {
            let error = of(&format!("{{\"seed\": {bad}}}")).expect_err(bad);
            assert!(error.message.starts_with("options.seed: expected"), "{}", error.message);
            assert!(error.message.contains(bad.trim_matches('"')), "{}", error.message);
        }
    }

    #[test]
    fn an_option_is_obeyed_off_harmless_or_refused_by_its_name() {
        for good in [
            "{\"mirostat\": 0, \"mirostat_tau\": 5.0, \"typical_p\": 1, \"tfs_z\": 1.0}",
            "{\"repeat_last_n\": 64}",
            "{\"repeat_last_n\": 64, \"repeat_penalty\": 1.0}",
            "{\"repeat_last_n\": -1, \"repeat_penalty\": 1.1}",
            "{\"num_thread\": 2, \"num_keep\": 5, \"unheard_of\": null, \"penalize_newline\": true}",
            "{\"num_predict\": -1}",
            "{\"num_predict\": -2}",
            "{\"stop\": []}",
        ] {
            assert!(of(good).is_ok(), "{good}");
        }
        for (bad, name) in [
            ("{\"mirostat\": 2}", "mirostat"),
            ("{\"typical_p\": 0.7}", "typical_p"),
            ("{\"tfs_z\": 0.5}", "tfs_z"),
            ("{\"penalize_newline\": false}", "penalize_newline"),
            ("{\"repeat_last_n\": 64, \"repeat_penalty\": 1.1}", "repeat_last_n"),
            ("{\"repeat_last_n\": 64, \"presence_penalty\": 0.5}", "repeat_last_n"),
            ("{\"num_ctx\": 0}", "num_ctx"),
            ("{\"num_predict\": 0}", "num_predict"),
            ("{\"num_predict\": 1.5}", "num_predict"),
            ("{\"temprature\": 0}", "temprature"),
            ("{\"stop\": [1]}", "stop"),
            ("{\"top_p\": \"0.9\"}", "top_p"),
        ] {
            let error = of(bad).expect_err(bad);
            let start = format!("options.{name}: ");
            assert!(error.message.starts_with(&start), "{bad}: {}", error.message);
        }
        assert!(of("[]").expect_err("a list").message.starts_with("options: expected an object"));
    }

    /// docs/api-ollama.md has a row for every option of the tables.
    #[test]
    fn the_manual_lists_every_option() {
        let manual = include_str!("../../../docs/api-ollama.md");
        let row = |name: &str, what: &str| {
            let start = format!("| `{name}` |");
            let line = manual.lines().find(|l| l.starts_with(&start) && l.contains(what));
            assert!(line.is_some(), "docs/api-ollama.md: no row {start} .. {what}");
        };
        OBEYED.iter().for_each(|name| row(name, "obeyed"));
        IGNORED.iter().for_each(|name| row(name, "ignored"));
        OFF.iter().for_each(|(name, _)| row(name, "refused"));
        ["penalize_newline", "repeat_last_n"].iter().for_each(|name| row(name, "refused"));
    }
}
