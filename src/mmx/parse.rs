//! The command line's words to a program's arguments: clap's parser, with help that fits the
//! terminal's width, errors that say what was expected, and only tips that work.

use std::ffi::OsString;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Parser};

/// The longest line of an example, columns; clap wraps prose at the terminal's width by itself.
pub(crate) const EXAMPLE_WIDTH: usize = 80;

/// Reads the program's own arguments. Help and version are printed with exit code 0, misuse with 2.
pub(crate) fn parse<P: Parser>() -> P {
    parse_from(std::env::args_os().collect()).unwrap_or_else(|error| error.exit())
}

/// Reads arguments, the program's name first.
pub(crate) fn parse_from<P: Parser>(words: Vec<OsString>) -> Result<P, clap::Error> {
    let mut command = command::<P>();
    let matches = command.try_get_matches_from_mut(&words);
    match matches.and_then(|matches| P::from_arg_matches(&matches)) {
        Ok(arguments) => Ok(arguments),
        Err(error) => Err(explained::<P>(error, &words)),
    }
}

pub(crate) fn command<P: Parser>() -> Command {
    arranged(P::command())
}

/// A command and those below it, with their closing text as paragraphs, and options that take a
/// negative number as their value rather than as another option.
pub(crate) fn arranged(command: Command) -> Command {
    let command = match command.get_after_help().map(|text| paragraphs(&text.to_string())) {
        Some(text) => command.after_help(text),
        None => command,
    };
    let command = command.mut_args(|arg| {
        let option = !arg.is_positional() && arg.get_action().takes_values();
        if option { arg.allow_negative_numbers(true) } else { arg }
    });
    command.mut_subcommands(arranged)
}

/// Lines of prose joined to one for each paragraph, so that they are broken in one place only: at
/// the terminal's width. Lines that begin with a space are examples, and are broken as a shell
/// takes them.
pub(crate) fn paragraphs(text: &str) -> String {
    let mut out = String::new();
    let mut in_prose = false;
    for (i, line) in text.lines().enumerate() {
        let prose = !line.is_empty() && !line.starts_with(' ');
        match (i, in_prose && prose) {
            (0, _) => (),
            (_, true) => out.push(' '),
            (_, false) => out.push('\n'),
        }
        if prose {
            out.push_str(line)
        } else {
            out.push_str(&example(line))
        }
        in_prose = prose;
    }
    out
}

/// An example, broken before an option, `&&` or `|` where it is too long for one line.
pub(crate) fn example(line: &str) -> String {
    let places: Vec<usize> = line
        .match_indices(' ')
        .map(|(i, _)| i)
        .filter(|&i| [" -", " &&", " | "].iter().any(|start| line[i..].starts_with(start)))
        .filter(|&i| !line[..i].trim().is_empty())
        .filter(|&i| {
            ['\'', '"'].iter().all(|&quote| line[..i].matches(quote).count().is_multiple_of(2))
        })
        .collect();
    let (mut out, mut rest, mut begin) = (String::new(), line, 0);
    loop {
        // " \" closes a line that goes on
        let room = EXAMPLE_WIDTH - if out.is_empty() { 2 } else { 7 };
        let fits = |end: &&usize| **end > begin && line[begin..**end].chars().count() <= room;
        let place = match rest.chars().count() <= room + 2 {
            true => None,
            false => places.iter().rfind(fits),
        };
        let Some(&place) = place else {
            out.push_str(rest);
            return out;
        };
        out.push_str(&line[begin..place]);
        out.push_str(" \\\n      ");
        begin = place + 1;
        rest = &line[begin..];
    }
}

/// clap's error with what was expected of a number, and without tips that do not work.
fn explained<P: Parser>(mut error: clap::Error, words: &[OsString]) -> clap::Error {
    if let Some(expected) = expected_number(&error) {
        let text = |kind| error.get(kind).map_or_else(String::new, ToString::to_string);
        let (argument, found) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
        let help = "For more information, try '--help'.";
        return clap::Error::raw(
            error.kind(),
            format!("invalid value '{found}' for '{argument}': expected {expected}\n\n{help}\n"),
        );
    }
    let Some(ContextValue::StyledStrs(tips)) = error.remove(ContextKind::Suggested) else {
        return error;
    };
    // clap has not tried this one: behind `--`, no option takes a value, and most commands take no
    // more words
    let mut tips: Vec<_> =
        tips.into_iter().filter(|tip| !tip.to_string().contains(" as a value, use ")).collect();
    if let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg)
        && error.get(ContextKind::SuggestedArg).is_none()
        && let Some(tip) = dash_tip::<P>(unknown, words)
    {
        tips.push(tip.into());
    }
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

/// What a number should have been, where the standard library's reason does not say it.
fn expected_number(error: &clap::Error) -> Option<&'static str> {
    if error.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let source = std::error::Error::source(error)?;
    if source.is::<ParseFloatError>() {
        return Some("a number");
    }
    match source.downcast_ref::<ParseIntError>()?.kind() {
        IntErrorKind::PosOverflow => Some("a smaller number"),
        IntErrorKind::NegOverflow => Some("a larger number"),
        _ => Some("a whole number from 0"),
    }
}

/// How to give a word that begins with a dash and was taken for an option, if there is a way that
/// works.
fn dash_tip<P: Parser>(unknown: &str, words: &[OsString]) -> Option<String> {
    // of `-x.gguf` clap names `-x`
    let is_it =
        |word: &&str| *word == unknown || !unknown.starts_with("--") && word.starts_with(unknown);
    let words: Vec<&str> = words.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
    let i = words.iter().position(is_it).filter(|&i| i > 0 && words[i].len() > 1)?;
    let works = |before: &[&str], word: &str| {
        let all = before.iter().copied().chain([word]).chain(words[i + 1..].iter().copied());
        match command::<P>().try_get_matches_from(all) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::MissingRequiredArgument,
        }
    };
    let joined = format!("{}={}", words[i - 1], words[i]);
    if words[i - 1].starts_with('-') && works(&words[..i - 1], &joined) {
        return Some(format!(
            "a value that begins with a dash is joined to its option: '{joined}'"
        ));
    }
    let file = format!("./{}", words[i]);
    works(&words[..i], &file)
        .then(|| format!("a file whose name begins with a dash is written '{file}'"))
}
