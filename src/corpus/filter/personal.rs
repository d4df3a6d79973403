//! Patterns of personal data, replaced by their kind in brackets: `[EMAIL]`.
//!
//! Precision goes before recall: what has a check digit is checked, what looks like a version or a
//! number of something else stays. Names and postal addresses are not found: they have no pattern.
//!
//! - `email`: addresses with a dot in the domain and a top level of letters.
//! - `phone`: mobile numbers of mainland China (11 digits from 13 to 19, also with `+86` and in
//!   groups 3-4-4); numbers with `+` and a country's code, 8 to 15 digits; North American numbers
//!   in groups 3-3-4. An order number of 11 digits that begins so is taken for one.
//! - `id`: numbers of Chinese identity cards: a date, and the check digit (GB 11643-1999). Of random
//!   numbers of 18 digits fewer than 1 in 1000 pass.
//! - `card`: 13 to 19 digits that begin with 3 to 6 and pass Luhn's check, in one piece or in groups
//!   of four; 1 in 10 of such numbers passes by chance.
//! - `ip`: addresses of IPv4 that are routed publicly, and have two parts of two digits or more;
//!   `1.2.3.4` may be a version.

use serde::Deserialize;

/// A kind of personal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Addresses of electronic mail.
    Email,
    /// Telephone numbers.
    Phone,
    /// Numbers of Chinese identity cards.
    Id,
    /// Numbers of payment cards.
    Card,
    /// Addresses of IPv4.
    Ip,
}

impl Kind {
    /// The rule's name.
    pub(super) fn rule(self) -> &'static str {
        match self {
            Self::Email => "personal.email",
            Self::Phone => "personal.phone",
            Self::Id => "personal.id",
            Self::Card => "personal.card",
            Self::Ip => "personal.ip",
        }
    }

    /// What stands in its place.
    fn mark(self) -> &'static str {
        match self {
            Self::Email => "[EMAIL]",
            Self::Phone => "[PHONE]",
            Self::Id => "[ID]",
            Self::Card => "[CARD]",
            Self::Ip => "[IP]",
        }
    }
}

/// A text with its personal data replaced, and the kinds found; nothing where there is none.
pub(super) fn replaced(text: &str, kinds: &[Kind]) -> Option<(String, Vec<Kind>)> {
    let found = find(text, kinds);
    if found.is_empty() {
        return None;
    }
    let (mut out, mut end) = (String::with_capacity(text.len()), 0);
    for &(kind, from, to) in &found {
        out.push_str(&text[end..from]);
        out.push_str(kind.mark());
        end = to;
    }
    out.push_str(&text[end..]);
    Some((out, found.into_iter().map(|(kind, ..)| kind).collect()))
}

/// True where a text has any.
pub(super) fn is_in(text: &str, kinds: &[Kind]) -> bool {
    !find(text, kinds).is_empty()
}

/// Places of personal data, in order, none within another.
fn find(text: &str, kinds: &[Kind]) -> Vec<(Kind, usize, usize)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    let mut end = 0; // of what was found last
    while at < bytes.len() {
        let place = match bytes[at] {
            b'@' if kinds.contains(&Kind::Email) => {
                email(bytes, at, end).map(|(from, to)| (Kind::Email, from, to))
            }
            b'0'..=b'9' | b'+' | b'(' if at == 0 || !is_word(bytes[at - 1]) => {
                number(bytes, at, kinds).map(|(kind, to)| (kind, at, to))
            }
            _ => None,
        };
        match place {
            Some((kind, from, to)) => {
                // digits at the beginning of an address were no number
                found.push((kind, from, to));
                (at, end) = (to, to);
            }
            None => at += 1,
        }
    }
    found
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The address around an `@`, which begins at `least` or later.
fn email(bytes: &[u8], at: usize, least: usize) -> Option<(usize, usize)> {
    let local = |b: u8| b.is_ascii_alphanumeric() || b"._%+-".contains(&b);
    let mut from = at;
    while from > least && local(bytes[from - 1]) {
        from -= 1;
    }
    while from < at && !bytes[from].is_ascii_alphanumeric() {
        from += 1;
    }
    if from == at || at - from > 64 {
        return None;
    }
    let domain = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    let length = bytes[at + 1..].iter().take(254).take_while(|b| domain(**b)).count();
    let mut to = at + 1 + length;
    while to > at + 1 && !bytes[to - 1].is_ascii_alphanumeric() {
        to -= 1;
    }
    let domain = &bytes[at + 1..to];
    let labels: Vec<&[u8]> = domain.split(|b| *b == b'.').collect();
    let whole = labels.iter().all(|label| !label.is_empty() && label[0] != b'-');
    let top = labels.last().is_some_and(|l| l.len() >= 2 && l.iter().all(u8::is_ascii_alphabetic));
    (labels.len() >= 2 && whole && top).then_some((from, to))
}

/// The number that begins here, and where it ends.
fn number(bytes: &[u8], from: usize, kinds: &[Kind]) -> Option<(Kind, usize)> {
    let has = |kind| kinds.contains(&kind);
    if has(Kind::Ip)
        && let Some(to) = ip(bytes, from)
    {
        return Some((Kind::Ip, to));
    }
    if has(Kind::Id)
        && let Some(to) = identity(bytes, from)
    {
        return Some((Kind::Id, to));
    }
    if has(Kind::Card)
        && let Some(to) = card(bytes, from)
    {
        return Some((Kind::Card, to));
    }
    if has(Kind::Phone)
        && let Some(to) = phone(bytes, from)
    {
        return Some((Kind::Phone, to));
    }
    None
}

/// True where a number ends: no digit, letter or part of a decimal number follows.
fn ends(bytes: &[u8], to: usize) -> bool {
    match (bytes.get(to), bytes.get(to + 1)) {
        (Some(b), _) if is_word(*b) || *b == b'@' => false,
        (Some(b'.' | b'-'), Some(next)) if next.is_ascii_digit() => false,
        _ => true,
    }
}

fn digits(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count()
}

fn ip(bytes: &[u8], from: usize) -> Option<usize> {
    // a part of a longer number with dots, 1.2.3.4.5
    if from > 1 && bytes[from - 1] == b'.' && bytes[from - 2].is_ascii_digit() {
        return None;
    }
    let (mut at, mut parts, mut long) = (from, [0u16; 4], 0);
    for (i, part) in parts.iter_mut().enumerate() {
        if i > 0 {
            if bytes.get(at) != Some(&b'.') {
                return None;
            }
            at += 1;
        }
        let count = digits(bytes, at.min(bytes.len()));
        if count == 0 || count > 3 || (count > 1 && bytes[at] == b'0') {
            return None;
        }
        *part = bytes[at..at + count].iter().fold(0, |n, b| n * 10 + u16::from(b - b'0'));
        if *part > 255 {
            return None;
        }
        long += usize::from(count > 1);
        at += count;
    }
    // private, local, reserved: they lead to nobody. Source: IANA's special-purpose registry
    let nobody = matches!(
        parts,
        [0 | 10 | 127 | 224.., ..] | [192, 168, ..] | [172, 16..=31, ..] | [169, 254, ..]
    );
    (ends(bytes, at) && long >= 2 && !nobody).then_some(at)
}

fn identity(bytes: &[u8], from: usize) -> Option<usize> {
    let number = bytes.get(from..from + 18)?;
    let body = &number[..17];
    if !body.iter().all(u8::is_ascii_digit) || !ends(bytes, from + 18) {
        return None;
    }
    let value = |part: &[u8]| part.iter().fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
    let (year, month, day) = (value(&body[6..10]), value(&body[10..12]), value(&body[12..14]));
    let dated =
        (1900..=2099).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    // GB 11643-1999: weights 2^(17-i) modulo 11
    let sum: u32 = body
        .iter()
        .enumerate()
        .map(|(i, b)| u32::from(b - b'0') * (2u32.pow(17 - i as u32) % 11))
        .sum();
    let check = b"10X98765432"[(sum % 11) as usize];
    (dated && body[0] != b'0' && number[17].to_ascii_uppercase() == check).then_some(from + 18)
}

/// Digits from a place on, in one piece or in groups of four with one blank or hyphen between.
fn card(bytes: &[u8], from: usize) -> Option<usize> {
    if !matches!(bytes[from], b'3'..=b'6') {
        return None;
    }
    let first = digits(bytes, from);
    let (mut number, mut at) = (bytes[from..from + first].to_vec(), from + first);
    if first == 4 {
        let separator = *bytes.get(at).filter(|b| matches!(b, b' ' | b'-'))?;
        while bytes.get(at) == Some(&separator) && number.len() < 20 {
            let count = digits(bytes, at + 1);
            if count == 0 || count > 4 {
                break;
            }
            number.extend(&bytes[at + 1..at + 1 + count]);
            at += 1 + count;
            if count < 4 {
                break;
            }
        }
    }
    let luhn = number.iter().rev().enumerate().fold(0, |sum, (i, b)| {
        let digit = u32::from(b - b'0');
        sum + if i.is_multiple_of(2) { digit } else { digit * 2 / 10 + digit * 2 % 10 }
    });
    let one = number.iter().all(|b| *b == number[0]);
    ((13..=19).contains(&number.len()) && luhn.is_multiple_of(10) && !one && ends(bytes, at))
        .then_some(at)
}

fn phone(bytes: &[u8], from: usize) -> Option<usize> {
    let mobile = |at: usize| {
        let begins = bytes.get(at) == Some(&b'1')
            && bytes.get(at + 1).is_some_and(|b| (b'3'..=b'9').contains(b));
        let to = match digits(bytes, at.min(bytes.len())) {
            11 => Some(at + 11),
            3 => groups(bytes, at, &[3, 4, 4]),
            _ => None,
        };
        to.filter(|&to| begins && ends(bytes, to))
    };
    match bytes[from] {
        b'+' => {
            if bytes[from + 1..].starts_with(b"86") {
                let gap = matches!(bytes.get(from + 3), Some(b' ' | b'-'));
                if let Some(to) = mobile(from + 3 + usize::from(gap)) {
                    return Some(to);
                }
            }
            // a country's code, then groups with single blanks, hyphens, dots or brackets between
            if !bytes.get(from + 1).is_some_and(|b| (b'1'..=b'9').contains(b)) {
                return None;
            }
            let (mut at, mut count, mut end) = (from + 1, 0, from + 1);
            let mut gaps = 0;
            while let Some(b) = bytes.get(at) {
                match b {
                    b'0'..=b'9' => {
                        (count, end, gaps) = (count + 1, at + 1, 0);
                    }
                    b' ' | b'-' | b'.' | b'(' | b')' if gaps < 2 => gaps += 1,
                    _ => break,
                }
                at += 1;
                if count > 15 {
                    return None;
                }
            }
            // E.164: at most 15 digits
            ((8..=15).contains(&count) && ends(bytes, end)).then_some(end)
        }
        b'(' => {
            let closed = bytes.get(from + 4) == Some(&b')') && digits(bytes, from + 1) == 3;
            let gap = usize::from(bytes.get(from + 5) == Some(&b' '));
            let to = if closed { groups(bytes, from + 5 + gap, &[3, 4]) } else { None };
            to.filter(|&to| ends(bytes, to) && (b'2'..=b'9').contains(&bytes[from + 1]))
        }
        b'1' => mobile(from),
        // North American numbers begin with 2 to 9, as do their exchanges
        b'2'..=b'9' => {
            let to = groups(bytes, from, &[3, 3, 4]).filter(|&to| ends(bytes, to))?;
            (b'2'..=b'9').contains(&bytes[from + 4]).then_some(to)
        }
        _ => None,
    }
}

/// The end of groups of so many digits with one and the same blank, hyphen or dot between.
fn groups(bytes: &[u8], from: usize, lengths: &[usize]) -> Option<usize> {
    let (mut at, mut separator) = (from, None);
    for (i, length) in lengths.iter().enumerate() {
        if i > 0 {
            let found = *bytes.get(at).filter(|b| matches!(b, b' ' | b'-' | b'.'))?;
            if *separator.get_or_insert(found) != found {
                return None;
            }
            at += 1;
        }
        if digits(bytes, at.min(bytes.len())) != *length {
            return None;
        }
        at += length;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 5] = [Kind::Email, Kind::Phone, Kind::Id, Kind::Card, Kind::Ip];

    fn after(text: &str) -> String {
        replaced(text, &ALL).map_or(text.to_owned(), |(text, _)| text)
    }

    #[test]
    fn personal_data_is_replaced_by_its_kind() {
        for (text, expected) in [
            (
                "write to ann.o'hara@x.com or bob+1@mail.example.org.",
                "write to ann.o'[EMAIL] or [EMAIL].",
            ),
            ("邮箱zhang3@qq.com，电话13912345678。", "邮箱[EMAIL]，电话[PHONE]。"),
            ("call +86 139-1234-5678 or +49 30 1234567", "call [PHONE] or [PHONE]"),
            ("(555) 234-5678, 555-234-5678", "[PHONE], [PHONE]"),
            ("身份证11010519491231002X号", "身份证[ID]号"),
            ("card 4111 1111 1111 1111, 5500005555555559", "card [CARD], [CARD]"),
            ("from 203.0.113.77 at noon", "from [IP] at noon"),
            ("13912345678@139.com", "[EMAIL]"),
        ] {
            assert_eq!(after(text), expected);
        }
    }

    #[test]
    fn numbers_that_are_something_else_stay() {
        for text in [
            "version 1.2.3.4, 10.0.0.12, 192.168.10.20, 999.10.10.10, 1.22.33.44.55",
            "pi is 3.14159265358979, in 2024-11-29 12:30:45",
            "order 4111111111111112, 110105194912310021",
            "ISBN 978-7-302-51234-5, 0912345678, 12345678901",
            "user@localhost, @name, a@b, x@1.2, me @ home.com",
            "a139123456789 139123456780 v13912345678",
            "1999-2000-2001 and 100 200 3000",
            "+1 and 2+3456 = 3458",
        ] {
            assert_eq!(after(text), text);
        }
    }

    #[test]
    fn only_the_kinds_asked_for_are_replaced() {
        let text = "a@b.cn 13912345678";
        let found = replaced(text, &[Kind::Email]);
        assert_eq!(found, Some(("[EMAIL] 13912345678".into(), vec![Kind::Email])));
        assert_eq!(replaced(text, &[]), None);
    }

    #[test]
    fn any_text_is_scanned_without_a_panic_and_loses_nothing_around() {
        let mut random = mmx_converters::random::Random::new(3, 0);
        let pieces = ["1", "39", "4111", "@", ".", "+", "(", ")", "-", " ", "a", "中", "X", "86"];
        for _ in 0..20_000 {
            let text: String =
                (0..random.below(24)).map(|_| pieces[random.below(pieces.len())]).collect();
            let places = find(&text, &ALL);
            let mut end = 0;
            for (_, from, to) in places {
                assert!(end <= from && from < to && to <= text.len(), "{text:?}");
                assert!(text.is_char_boundary(from) && text.is_char_boundary(to), "{text:?}");
                end = to;
            }
        }
    }
}
