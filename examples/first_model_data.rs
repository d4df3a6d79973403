//! The data of the main job (`scripts/run`), made deterministically.
//!
//! ```text
//! first_model_data text FILE.. > corpus.jsonl          plain text to {"text"} records
//! first_model_data numbers train > numbers.jsonl       chats of one to three questions that spell numbers out
//! first_model_data numbers test  > held-out.jsonl      the same questions about numbers never trained on, one each
//! first_model_data numbers second > second.jsonl       the same, each after another such question and its answer
//! first_model_data sums sft  > sums.jsonl              chats that add two numbers below 100 (`scripts/run-rl`)
//! first_model_data sums tasks > tasks.jsonl            other sums to be answered, each with its right answer
//! first_model_data sums test > held-out.jsonl          sums that are in neither, as chats
//! first_model_data big MEGABYTES > big.jsonl           made-up text of realistic lengths (scripts/big-data)
//! ```
//! The chat task has right answers: a number from 0 to 9999 in digits to English words and to Chinese
//! characters, and back. Which numbers are held out depends on the number alone.

use std::io::{self, Write};

use serde_json::json;

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["text", files @ ..] if !files.is_empty() => files.iter().try_for_each(|f| text(f)),
        ["numbers", "train"] => train(),
        ["numbers", "test"] => test(),
        ["numbers", "second"] => second(),
        ["sums", part @ ("sft" | "tasks" | "test")] => sums(part),
        ["big", megabytes] if megabytes.parse::<u64>().is_ok() => {
            big(megabytes.parse().unwrap_or_default())
        }
        _ => {
            eprintln!(
                "usage: first_model_data text FILE.. | numbers train|test|second | sums sft|tasks|test | big MEGABYTES"
            );
            std::process::exit(2);
        }
    }
}

/// Splits a text at lines of one `%` (fortune files) or at blank lines, joins paragraphs to records of at
/// least 200 characters, drops terminal colours, and prints each as a JSON line.
fn text(path: &str) -> io::Result<()> {
    let all = fs_err::read_to_string(path)?;
    let fortune = all.lines().any(|line| line == "%");
    let mut record = String::new();
    let mut out = io::stdout().lock();
    let mut flush = |record: &mut String| {
        let text = record.trim();
        let result =
            if text.is_empty() { Ok(()) } else { writeln!(out, "{}", json!({ "text": text })) };
        record.clear();
        result
    };
    for line in all.lines() {
        let line = without_colours(line);
        let boundary = if fortune { line == "%" } else { line.trim().is_empty() };
        if boundary && (fortune || record.chars().count() >= 200) {
            flush(&mut record)?;
        } else if !boundary {
            record.push_str(line.trim());
            record.push('\n');
        }
    }
    flush(&mut record)
}

/// Drops `ESC [ .. m` sequences.
fn without_colours(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find("\u{1b}[") {
        out.push_str(&rest[..start]);
        rest = rest[start..].split_once('m').map_or("", |(_, after)| after);
    }
    out + rest
}

/// Numbers up to this one, exclusive.
const NUMBERS: u32 = 10_000;

/// A fixed scramble of 64 bits (the finalizer of SplitMix64, Steele et al. 2014).
fn scramble(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One number in a hundred is held out, except the few below 20 whose words occur nowhere else.
fn held_out(n: u32) -> bool {
    n >= 20 && scramble(n.into()).is_multiple_of(100)
}

/// A question and its answer.
type Asked = (String, String);

/// The four questions about each number that is held out, or about each that is not, in an order of their own.
fn questions(held_out_ones: bool) -> Vec<Asked> {
    let mut chosen: Vec<(u32, u32)> = (0..NUMBERS)
        .filter(|&n| held_out(n) == held_out_ones)
        .flat_map(|n| (0..4).map(move |form| (n, form)))
        .collect();
    // a model that stops early has seen all sizes, and the questions of a chat are about different numbers
    chosen.sort_by_key(|&(n, form)| scramble(u64::from(4 * n + form) + 1_000_000));
    let asked = |(n, form)| match form {
        0 => (format!("{n} in English?"), english(n)),
        1 => (format!("{n}用中文？"), chinese(n)),
        2 => (format!("{} in digits?", english(n)), n.to_string()),
        _ => (format!("{}用数字？", chinese(n)), n.to_string()),
    };
    chosen.into_iter().map(asked).collect()
}

fn print_chat<'a>(
    out: &mut impl Write,
    turns: impl IntoIterator<Item = &'a Asked>,
) -> io::Result<()> {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let turns = turns
        .into_iter()
        .flat_map(|(question, answer)| [turn("user", question), turn("assistant", answer)]);
    writeln!(out, "{}", json!({ "conversations": turns.collect::<Vec<_>>() }))
}

/// Every question once, one to three in a chat: a model that has only seen single ones answers the second wrongly.
fn train() -> io::Result<()> {
    let questions = questions(false);
    let mut out = io::stdout().lock();
    let (mut rest, mut number) = (questions.as_slice(), 0u64);
    while !rest.is_empty() {
        let (chat, after) = rest.split_at(rest.len().min(1 + (scramble(number) % 3) as usize));
        print_chat(&mut out, chat)?;
        (rest, number) = (after, number + 1);
    }
    Ok(())
}

fn test() -> io::Result<()> {
    let mut out = io::stdout().lock();
    questions(true).iter().try_for_each(|asked| print_chat(&mut out, [asked]))
}

/// Each of [`test`]'s questions after the one before it.
fn second() -> io::Result<()> {
    let questions = questions(true);
    let mut out = io::stdout().lock();
    let before = questions.iter().cycle().skip(questions.len() - 1);
    before.zip(&questions).try_for_each(|(first, second)| print_chat(&mut out, [first, second]))
}

/// The sums of two numbers below 100 that belong to a part, in an order of their own: of each
/// hundred some 5 are held out, 45 are tasks, 50 are shown with their answers.
fn sums_of(part: &str) -> Vec<Asked> {
    let of = |seed: u64| match seed % 100 {
        0..5 => "test",
        5..50 => "tasks",
        _ => "sft",
    };
    let seed = |a: u64, b: u64| scramble(2_000_000 + 100 * a + b);
    let mut all: Vec<(u64, u64)> = (0..100)
        .flat_map(|a| (0..100).map(move |b| (a, b)))
        .filter(|&(a, b)| of(seed(a, b)) == part)
        .collect();
    all.sort_by_key(|&(a, b)| seed(a, b) / 100);
    all.into_iter().map(|(a, b)| (format!("{a}+{b}"), (a + b).to_string())).collect()
}

fn sums(part: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for asked in sums_of(part) {
        if part != "tasks" {
            print_chat(&mut out, [&asked])?;
            continue;
        }
        // the answer is for the reward alone: the turn that would show it is empty
        let (question, answer) = asked;
        let turns = [("user", question.as_str()), ("assistant", "")]
            .map(|(role, content)| json!({"role": role, "content": content}));
        writeln!(out, "{}", json!({"conversations": turns, "answer": answer}))?;
    }
    Ok(())
}

/// Texts of made-up words, every third in Chinese, until there are so many megabytes. Words are common or
/// rare as in real text (a word's rank is the square of an even draw), and most texts have 100 to 900
/// characters, some ten times as many.
fn big(megabytes: u64) -> io::Result<()> {
    const SYLLABLES: [&str; 24] = [
        "the", "an", "re", "ing", "con", "er", "ti", "al", "so", "men", "pre", "ly", "un", "ka",
        "lo", "st", "or", "de", "vi", "qua", "ness", "per", "in", "ble",
    ];
    let mut state = 0u64;
    let mut draw = move |below: u64| {
        state += 1;
        scramble(state) % below
    };
    let mut out = io::BufWriter::with_capacity(1 << 20, io::stdout().lock());
    let (mut written, mut number) = (0, 0u64);
    while written < megabytes * 1_000_000 {
        let scale = if draw(20) == 0 { 10 } else { 1 };
        let length = scale * (100 + draw(800)) as usize;
        let mut text = String::with_capacity(3 * length);
        let mut characters = 0;
        while characters < length {
            let even = draw(1 << 16);
            let rank = (even * even) >> 16;
            if number.is_multiple_of(3) {
                // the first of the common ideographs' block stand for the common ones
                let code = 0x4e00 + (rank >> 4) as u32;
                text.push(char::from_u32(code).unwrap_or('一'));
                characters += 1;
                if draw(12) == 0 {
                    text.push('，');
                }
                continue;
            }
            let word = scramble(rank >> 2);
            let before = text.len();
            for part in 0..=word % 3 {
                text.push_str(SYLLABLES[(word >> (8 * part + 8)) as usize % SYLLABLES.len()]);
            }
            text.push_str(if draw(10) == 0 { ". " } else { " " });
            characters += text.len() - before;
        }
        let line = json!({ "text": text }).to_string();
        writeln!(out, "{line}")?;
        written += line.len() as u64 + 1;
        number += 1;
    }
    out.flush()
}

/// `4827` as `four thousand eight hundred twenty-seven`.
fn english(n: u32) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] =
        ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let with_rest = |head: String, rest: u32, separator: &str| match rest {
        0 => head,
        rest => head + separator + &english(rest),
    };
    match n {
        0..20 => SMALL[n as usize].to_owned(),
        20..100 => with_rest(TENS[n as usize / 10].to_owned(), n % 10, "-"),
        100..1000 => with_rest(format!("{} hundred", english(n / 100)), n % 100, " "),
        _ => with_rest(format!("{} thousand", english(n / 1000)), n % 1000, " "),
    }
}

/// `4027` as `四千零二十七`: 零 stands once for each inner run of zeros; 10 to 19 begin with 十.
fn chinese(n: u32) -> String {
    const DIGITS: [char; 10] = ['零', '一', '二', '三', '四', '五', '六', '七', '八', '九'];
    if n == 0 {
        return DIGITS[0].to_string();
    }
    let mut out = String::new();
    let mut zero = false;
    for (unit, name) in [(1000, "千"), (100, "百"), (10, "十"), (1, "")] {
        let digit = n / unit % 10;
        if digit == 0 {
            zero = !out.is_empty();
            continue;
        }
        if zero {
            out.push(DIGITS[0]);
            zero = false;
        }
        if !(digit == 1 && unit == 10 && out.is_empty()) {
            out.push(DIGITS[digit as usize]);
        }
        out.push_str(name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_english() {
        for (n, words) in [
            (0, "zero"),
            (13, "thirteen"),
            (40, "forty"),
            (87, "eighty-seven"),
            (100, "one hundred"),
            (1005, "one thousand five"),
            (9999, "nine thousand nine hundred ninety-nine"),
        ] {
            assert_eq!(english(n), words);
        }
    }

    #[test]
    fn no_sum_is_in_two_parts_and_all_are_in_one() {
        let parts = ["sft", "tasks", "test"].map(sums_of);
        let mut all: Vec<_> = parts.iter().flatten().collect();
        assert_eq!(all.len(), 10_000);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10_000);
        let sizes = parts.each_ref().map(Vec::len);
        assert!(
            sizes[0] > 4_800 && sizes[1] > 4_200 && (400..600).contains(&sizes[2]),
            "{sizes:?}"
        );
        assert!(parts[2].iter().any(|(question, answer)| answer.len() == 3 && question.len() == 5));
    }

    #[test]
    fn spells_chinese() {
        for (n, words) in [
            (0, "零"),
            (10, "十"),
            (17, "十七"),
            (20, "二十"),
            (105, "一百零五"),
            (110, "一百一十"),
            (4000, "四千"),
            (4007, "四千零七"),
            (4070, "四千零七十"),
            (9909, "九千九百零九"),
        ] {
            assert_eq!(chinese(n), words);
        }
    }
}
