//! Fields that OpenAI's routes do not support, and those that change nothing. docs/api.md lists
//! them for people.

use crate::fields::Refused;

/// Fields of texts, of any kind, that are not supported and would change the answer. Source: the
/// references of OpenAI, llama.cpp's server and vLLM; the values are their defaults.
pub(crate) const REFUSED: &[Refused] = &[
    // OpenAI
    ("audio", &[]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("suffix", &["\"\""]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
    // llama.cpp
    ("dry_multiplier", &["0"]),
    ("dynatemp_range", &["0"]),
    ("grammar", &["\"\""]),
    ("image_data", &["[]"]),
    ("json_schema", &["{}"]),
    ("lora", &["[]"]),
    ("min_keep", &["0"]),
    ("mirostat", &["0"]),
    ("n_discard", &["0"]),
    ("n_indent", &["0"]),
    ("n_keep", &["0"]),
    ("n_probs", &["0"]),
    ("post_sampling_probs", &["false"]),
    ("reasoning_format", &["\"auto\"", "\"deepseek\""]),
    ("repeat_last_n", &["-1"]),
    ("response_fields", &["[]"]),
    ("return_progress", &["false"]),
    ("return_tokens", &["false"]),
    ("samplers", &[]),
    ("t_max_predict_ms", &["0", "-1"]),
    ("tfs_z", &["1"]),
    ("top_n_sigma", &["-1", "0"]),
    ("typical_p", &["1"]),
    ("typ_p", &["1"]),
    ("xtc_probability", &["0"]),
    // vLLM and others
    ("add_generation_prompt", &["true"]),
    ("allowed_token_ids", &[]),
    ("bad_words", &["[]"]),
    ("chat_template", &[]),
    ("continue_final_message", &["false"]),
    ("documents", &["[]"]),
    ("early_stopping", &["false"]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("include_reasoning", &["true"]),
    ("include_stop_str_in_output", &["false"]),
    ("length_penalty", &["1"]),
    ("logits_processors", &["[]"]),
    ("min_tokens", &["0"]),
    ("mm_processor_kwargs", &["{}"]),
    ("no_repeat_ngram_size", &["0"]),
    ("prompt_logprobs", &[]),
    ("reasoning", &[]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("skip_special_tokens", &["true"]),
    ("smoothing_factor", &["0"]),
    ("stop_token_ids", &["[]"]),
    ("structured_outputs", &[]),
    ("thinking", &[]),
    ("top_a", &["0"]),
    ("transforms", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &["false"]),
];

/// Fields that change nothing in the answer: they are about accounts, caches, speed, or about
/// something that must be turned on by another field first. Source: as of [`REFUSED`].
pub(crate) const IGNORED: &[&str] = &[
    // OpenAI
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    // llama.cpp
    "cache_prompt",
    "dry_allowed_length",
    "dry_base",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "id_slot",
    "mirostat_eta",
    "mirostat_tau",
    "n_cache_reuse",
    "slot_id",
    "timings_per_token",
    "xtc_threshold",
    // vLLM and others
    "cache_salt",
    "draft_model",
    "keep_alive",
    "kv_transfer_params",
    "priority",
    "request_id",
    "session_id",
    "spaces_between_special_tokens",
    "ttl",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn no_field_is_in_two_tables_and_every_neutral_value_is_json() {
        for (i, (name, neutral)) in REFUSED.iter().enumerate() {
            assert!(!IGNORED.contains(name), "{name}");
            assert!(REFUSED[..i].iter().all(|(other, _)| other != name), "{name}");
            assert!(
                neutral.iter().all(|json| serde_json::from_str::<Value>(json).is_ok()),
                "{name}"
            );
        }
    }

    #[test]
    fn the_page_of_the_apis_names_every_field() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
        let page = fs_err::read_to_string(page).unwrap();
        let half = page.split("## Ollama's API").next().unwrap();
        for name in REFUSED.iter().map(|(name, _)| name).chain(IGNORED) {
            assert!(half.contains(&format!("`{name}`")), "{name}");
        }
    }
}
