//! Numbers as people read them, and JSON as scripts do.

use std::io::Write;

use serde::Serialize;

use crate::error::{Error, Result};

/// A size in bytes: `512 B`, `15.4 MB`. Thousands, as disks and download pages count.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n as f64, &[(1e9, " GB"), (1e6, " MB"), (1e3, " kB")], " B")
}

/// A count: `508.2K`, `25.8M`.
pub(crate) fn count(n: usize) -> String {
    scaled(n as f64, &[(1e9, "B"), (1e6, "M"), (1e3, "K")], "")
}

fn scaled(n: f64, units: &[(f64, &str)], rest: &str) -> String {
    match units.iter().find(|(size, _)| n >= *size) {
        Some((size, unit)) => format!("{:.1}{unit}", n / size),
        None => format!("{n}{rest}"),
    }
}

/// A count of matrices, whose plural is one of its own.
pub(crate) fn matrices(n: usize) -> String {
    if n == 1 { "1 matrix".to_owned() } else { format!("{n} matrices") }
}

/// A bar for bytes on their way; drawn on a terminal only.
pub(crate) fn bytes_bar() -> indicatif::ProgressBar {
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = indicatif::ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    indicatif::ProgressBar::new(0).with_style(style)
}

/// Writes text to stdout. A reader that has gone (`mmx inspect .. | head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
        _ => Ok(()),
    }
}

/// Prints one JSON object on stdout.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::failed(format!("the result as JSON: {e}")))?;
    text.push('\n');
    print(&text)
}

/// Adds a line to a text that is printed as a whole.
macro_rules! line {
    ($text:expr, $($part:tt)*) => {{
        $text.push_str(&format!($($part)*));
        $text.push('\n');
    }};
}
pub(crate) use line;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(15_440_000), "15.4 MB");
        assert_eq!(count(508_224), "508.2K");
    }
}
