//! What stages of training make of data.

use mmx_converters::Result;
use mmx_converters::tokenizer::Tokenizer;

/// The ids that the reasoning stage weighs tenfold: those of `<think>`, `</think>`, `<answer>` and
/// `</answer>`, sorted, each once.
///
/// # Errors
/// The tokenizer's own.
pub fn reason_tag_ids(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for tag in ["<think>", "</think>", "<answer>", "</answer>"] {
        ids.extend(tokenizer.encode(tag)?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
