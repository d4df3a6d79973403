//! Signs of text that was read in a wrong encoding once.

/// Sequences that are next to never text: UTF-8 read as Windows-1252 (the second bytes of quotes
/// and accented letters), U+FFFD read as GBK, and uninitialized memory of Visual C++ as GBK.
const MOJIBAKE: [&str; 13] = [
    "\u{e2}\u{20ac}\u{2122}", // ’
    "\u{e2}\u{20ac}\u{153}",  // “
    "\u{e2}\u{20ac}\u{9d}",   // ”
    "\u{e2}\u{20ac}\u{201c}", // –
    "\u{e2}\u{20ac}\u{a6}",   // …
    "\u{c3}\u{a9}",           // é
    "\u{c3}\u{a8}",           // è
    "\u{c3}\u{bc}",           // ü
    "\u{c3}\u{b6}",           // ö
    "\u{c3}\u{a4}",           // ä
    "\u{ef}\u{bb}\u{bf}",     // the byte order mark
    "锟斤拷",
    "烫烫烫",
];

/// The share of characters that are signs of a wrong encoding, and the first sign.
pub(super) fn broken(text: &str, characters: usize) -> (f64, Option<String>) {
    let (mut count, mut first) = (0usize, None);
    let mut sign = |at: usize, characters: usize, what: String| {
        count += characters;
        if first.as_ref().is_none_or(|(before, _)| at < *before) {
            first = Some((at, what));
        }
    };
    for (at, c) in text.char_indices() {
        let is_sign = match c {
            '\t' | '\n' | '\r' => false,
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffd}' => true,
            '\u{e000}'..='\u{f8ff}' => true, // private use
            c => (c as u32) & 0xfffe == 0xfffe,
        };
        if is_sign {
            sign(at, 1, format!("U+{:04X}", c as u32));
        }
    }
    // most text has none of the characters they begin with
    if text.contains(['\u{e2}', '\u{c3}', '\u{ef}', '锟', '烫']) {
        for sequence in MOJIBAKE {
            for (at, found) in text.match_indices(sequence) {
                sign(at, found.chars().count(), found.escape_debug().to_string());
            }
        }
    }
    (count as f64 / characters.max(1) as f64, first.map(|(_, what)| what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> f64 {
        broken(text, text.chars().count()).0
    }

    #[test]
    fn signs_of_wrong_encodings_are_counted_and_good_text_has_none() {
        for text in ["naïve café, Füße", "中文\n\t好", "“quotes” – … ’", "Ãbc", "한국어 العربية"]
        {
            assert_eq!(share(text), 0.0, "{text}");
        }
        // each mangled as a program does that takes UTF-8's bytes for Windows-1252
        assert!((share("caf\u{c3}\u{a9}") - 2.0 / 5.0).abs() < 1e-12);
        assert!((share("it\u{e2}\u{20ac}\u{2122}s") - 3.0 / 6.0).abs() < 1e-12);
        assert_eq!(share("\u{fffd}\u{0}\u{85}\u{e123}"), 1.0);
        assert_eq!(share("锟斤拷锟斤拷"), 1.0);
        assert_eq!(broken("ab\u{fffd}", 3).1.as_deref(), Some("U+FFFD"));
    }
}
