//! Numbers as people read them, and JSON as scripts do.

use std::io::Write;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::talk::{note, says};

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

/// Says on stderr what is being done; on a terminal with the time that it takes so far, which shows
/// that it goes on where nothing tells how far it is.
#[derive(Default)]
pub(crate) struct Clock {
    bar: Option<indicatif::ProgressBar>,
}

impl Clock {
    /// Ends what was done and begins something else.
    pub(crate) fn start(&mut self, doing: String) {
        self.stop();
        if !says(log::Level::Info) {
            return;
        }
        let bar = indicatif::ProgressBar::new_spinner();
        if bar.is_hidden() {
            note!("{doing}");
            return;
        }
        if let Ok(style) = indicatif::ProgressStyle::with_template("{msg}  {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(doing);
        bar.enable_steady_tick(std::time::Duration::from_secs(1));
        self.bar = Some(bar);
    }

    /// The line stays, with the time that it took.
    fn stop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Does a transfer with a bar of its bytes, done and in all, on a terminal. Afterwards it is gone.
pub(crate) fn with_bytes_bar<T>(
    transfer: impl FnOnce(&mut dyn FnMut(u64, u64)) -> mmx_converters::Result<T>,
) -> Result<T> {
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = indicatif::ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    let bar = match says(log::Level::Info) {
        true => indicatif::ProgressBar::new(0).with_style(style),
        false => indicatif::ProgressBar::hidden(),
    };
    let done = transfer(&mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(done)
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
