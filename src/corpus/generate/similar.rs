//! ROUGE-L of two instructions: how much of their words they share in order.
//!
//! Source: Wang et al., "Self-Instruct" (2023), section 2.2: an instruction is kept where its ROUGE-L
//! with every other one is below 0.7.

use crate::words::{hash, plain_words};

/// Instructions that are alike have at least this.
pub(super) const ALIKE: f64 = 0.7;

/// A text's words as hashes.
pub(super) fn words(text: &str) -> Vec<u64> {
    plain_words(&text.to_lowercase()).map(|word| hash(word.as_bytes(), 0)).collect()
}

/// The F measure of the longest common subsequence; 0 where one has no words.
pub(super) fn rouge_l(a: &[u64], b: &[u64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 0.0;
    }
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    let common = row[b.len()] as f64;
    2.0 * common / (a.len() + b.len()) as f64
}

/// The most that ROUGE-L can be by the lengths alone.
pub(super) fn most(a: &[u64], b: &[u64]) -> f64 {
    2.0 * a.len().min(b.len()) as f64 / (a.len() + b.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_words_in_order_count() {
        let of = |a: &str, b: &str| rouge_l(&words(a), &words(b));
        assert_eq!(of("Write a poem", "write a poem!"), 1.0);
        assert_eq!(of("", "a"), 0.0);
        // a, c, d of four and five words
        assert!((of("a b c d", "a c x d y") - 6.0 / 9.0).abs() < 1e-12);
        assert!(of("写一首诗", "写一首歌") > 0.7);
        assert!(most(&words("a"), &words("a b c")) >= of("a", "a b c"));
    }
}
