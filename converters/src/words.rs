//! Words that go with numbers.

/// A count with its noun: `1 step`, `2 steps`, `3 batches`, `4 entries`.
#[must_use]
pub fn counted(count: usize, singular: &str) -> String {
    let plural = match singular {
        _ if count == 1 => return format!("1 {singular}"),
        word if word.ends_with("ch") || word.ends_with('s') || word.ends_with('x') => {
            format!("{word}es")
        }
        word if word.ends_with('y') && !word.ends_with("ey") => {
            format!("{}ies", &word[..word.len() - 1])
        }
        word => format!("{word}s"),
    };
    format!("{count} {plural}")
}
