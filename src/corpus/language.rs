//! The language of a text, by its script and trigrams.

use whatlang::Lang;

/// Codes of ISO 639-1 and those of ISO 639-3 that the detector knows.
const SHORT: [(&str, &str); 34] = [
    ("ar", "ara"),
    ("bg", "bul"),
    ("bn", "ben"),
    ("cs", "ces"),
    ("da", "dan"),
    ("de", "deu"),
    ("el", "ell"),
    ("en", "eng"),
    ("es", "spa"),
    ("fa", "pes"),
    ("fi", "fin"),
    ("fr", "fra"),
    ("he", "heb"),
    ("hi", "hin"),
    ("hu", "hun"),
    ("id", "ind"),
    ("it", "ita"),
    ("ja", "jpn"),
    ("ko", "kor"),
    ("nl", "nld"),
    ("no", "nob"),
    ("pl", "pol"),
    ("pt", "por"),
    ("ro", "ron"),
    ("ru", "rus"),
    ("sv", "swe"),
    ("ta", "tam"),
    ("te", "tel"),
    ("th", "tha"),
    ("tr", "tur"),
    ("uk", "ukr"),
    ("ur", "urd"),
    ("vi", "vie"),
    ("zh", "cmn"),
];

/// Characters that are looked at.
const SEEN: usize = 1000;

/// The language of a code, if the detector knows it.
pub(crate) fn known(code: &str) -> Option<Lang> {
    let long = SHORT.iter().find(|(short, _)| *short == code).map_or(code, |(_, long)| long);
    Lang::from_code(long)
}

/// The language of a text's beginning, its shorter code, and how sure that is (0 to 1); nothing for
/// a text without letters.
#[must_use]
pub fn detect(text: &str) -> Option<(Lang, &'static str, f64)> {
    let end = text.char_indices().nth(SEEN).map_or(text.len(), |(end, _)| end);
    let found = whatlang::detect(&text[..end])?;
    let code = found.lang().code();
    let code = SHORT.iter().find(|(_, long)| *long == code).map_or(code, |(short, _)| short);
    Some((found.lang(), code, found.confidence()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_code_is_one_that_the_detector_knows() {
        for (short, long) in SHORT {
            assert_eq!(known(short).map(|lang| lang.code()), Some(long));
        }
        assert_eq!(known("xx"), None);
    }

    #[test]
    fn languages_are_told_apart() {
        for (text, code) in [
            ("The quick brown fox jumps over the lazy dog, and then it sleeps.", "en"),
            ("今天天气很好，我们一起去公园散步吧。", "zh"),
            ("今日は天気がいいので、公園へ散歩に行きましょう。", "ja"),
            ("Сегодня хорошая погода, пойдём гулять в парк.", "ru"),
        ] {
            assert_eq!(detect(text).map(|found| found.1), Some(code), "{text}");
        }
        assert!(detect("123 456").is_none());
    }
}
