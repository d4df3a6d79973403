//! Words that go with numbers.

/// A count with its noun: `1 step`, `2 steps`, `3 batches`, `4 entries`.
#[must_use]
pub fn counted(count: usize, singular: &str) -> String {
    let plural = match singular {
        _ if count == 1 => return format!("1 {singular}"),
        "epoch" => "epochs".to_owned(), // its ch is a k
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_every_other_count_plural() {
        assert_eq!(counted(1, "step"), "1 step");
        assert_eq!(counted(0, "record"), "0 records");
        assert_eq!(counted(3, "batch"), "3 batches");
        assert_eq!(counted(4, "entry"), "4 entries");
        assert_eq!(counted(2, "key"), "2 keys");
        assert_eq!(counted(2, "epoch"), "2 epochs");
    }
}
