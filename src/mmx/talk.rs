//! How much is said on stderr: `-q`, `-v` and `MMX_LOG`, and the logger that shows what libraries
//! record.
//!
//! Errors are always said. Warnings, notes and bars can be silenced; records of libraries are seen
//! where they are asked for.
#![allow(dead_code, unused_macros, unused_imports, reason = "each program uses a part of it")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::error::{Error, Result};

/// The variable that says how much is said.
const VARIABLE: &str = "MMX_LOG";

/// The level of what the programs say themselves, as [`LevelFilter`] numbers it.
static SAID: AtomicUsize = AtomicUsize::new(LevelFilter::Info as usize);

/// The flags that both programs have.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct TalkArgs {
    /// Say more on stderr: what mmx does and how long it takes; -vv the libraries below it, too
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Say nothing on stderr but warnings and errors; -qq errors alone
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    quiet: u8,
}

/// Which records are seen: those of a target (a crate, or a module of one) up to a level.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    /// Targets of their own, longest first.
    targets: Vec<(String, LevelFilter)>,
    others: LevelFilter,
}

impl Filter {
    /// Reads `LEVEL` or `TARGET=LEVEL`, with commas between.
    fn parse(text: &str) -> Result<Self> {
        let mut filter = Self { targets: Vec::new(), others: LevelFilter::Off };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (target, level) = part.split_once('=').map_or((None, part), |(t, l)| (Some(t), l));
            let level = level.trim().parse::<LevelFilter>().map_err(|_| {
                Error::usage(format!(
                    "{VARIABLE}: expected off, error, warn, info, debug or trace, or TARGET=LEVEL with commas between, \
                     found {part:?}"
                ))
            })?;
            match target {
                Some(target) => filter.targets.push((target.trim().to_owned(), level)),
                None => filter.others = level,
            }
        }
        filter.targets.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        Ok(filter)
    }

    fn of(&self, target: &str) -> LevelFilter {
        let within = |(name, _): &&(String, LevelFilter)| {
            target
                .strip_prefix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        self.targets.iter().find(within).map_or(self.others, |(_, level)| *level)
    }

    fn most(&self) -> LevelFilter {
        self.targets
            .iter()
            .map(|(_, level)| *level)
            .chain([self.others])
            .max()
            .unwrap_or(self.others)
    }
}

/// Writes records on stderr, with the seconds since the start.
#[derive(Debug)]
struct Stderr {
    filter: Filter,
    started: Instant,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.filter.of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let seconds = self.started.elapsed().as_secs_f64();
            let level = record.level().as_str().to_lowercase();
            eprintln!("[{seconds:9.3}] {level:5} {}: {}", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Prints panics as ever, but for those that are told as errors about a file.
pub(crate) fn hush_guarded_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !mmx_data::is_guarded() {
            print(panic);
        }
    }));
}

/// Begins to talk as the flags say, else as `MMX_LOG` does.
///
/// # Errors
/// A variable that says nothing known.
pub(crate) fn begin(args: TalkArgs) -> Result<()> {
    let variable = std::env::var(VARIABLE).ok().filter(|text| !text.trim().is_empty());
    let asked = variable.as_deref().map(Filter::parse).transpose()?;
    let of_flags = match (args.verbose, args.quiet) {
        (0, 0) => None,
        (0, 1) => Some((LevelFilter::Warn, Vec::new(), LevelFilter::Off)),
        (0, _) => Some((LevelFilter::Error, Vec::new(), LevelFilter::Off)),
        (1, _) => Some((LevelFilter::Debug, own(LevelFilter::Debug), LevelFilter::Off)),
        (_, _) => Some((LevelFilter::Trace, own(LevelFilter::Trace), LevelFilter::Debug)),
    };
    let filter = match (of_flags, asked) {
        (Some((said, targets, others)), _) => {
            SAID.store(said as usize, Ordering::Relaxed);
            Filter { targets, others }
        }
        (None, Some(filter)) => {
            let said = filter.of("mmx");
            SAID.store(said.max(LevelFilter::Error) as usize, Ordering::Relaxed);
            filter
        }
        (None, None) => return Ok(()),
    };
    static LOGGER: OnceLock<Stderr> = OnceLock::new();
    let most = filter.most();
    let logger = LOGGER.get_or_init(|| Stderr { filter, started: Instant::now() });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(most);
    }
    Ok(())
}

/// The crates of mmx, at a level.
fn own(level: LevelFilter) -> Vec<(String, LevelFilter)> {
    let crates = [
        "mmx_converters",
        "mmx_training",
        "mmx_corpus",
        "mmx_models",
        "mmx_train",
        "mmx_serve",
        "mmx_data",
        "mmx_ggml",
        "mmx_eval",
        "mmx_hub",
        "mmx",
    ];
    crates.map(|name| (name.to_owned(), level)).into()
}

/// True where the programs say things of this level themselves.
pub(crate) fn says(level: Level) -> bool {
    level as usize <= SAID.load(Ordering::Relaxed)
}

/// Says a sentence about what is done, on stderr.
macro_rules! note {
    ($($part:tt)*) => {
        if $crate::talk::says(log::Level::Info) {
            eprintln!($($part)*);
        }
    };
}
pub(crate) use note;

/// Warns on stderr.
macro_rules! warning {
    ($($part:tt)*) => {
        if $crate::talk::says(log::Level::Warn) {
            eprintln!("warning: {}", format_args!($($part)*));
        }
    };
}
pub(crate) use warning;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_the_level_of_its_longest_name() {
        let filter = Filter::parse("info, mmx_hub=debug,mmx_hub::http = off").unwrap();
        for (target, level) in [
            ("mmx_hub", LevelFilter::Debug),
            ("mmx_hub::download", LevelFilter::Debug),
            ("mmx_hub::http", LevelFilter::Off),
            ("mmx_hubs", LevelFilter::Info),
            ("ureq", LevelFilter::Info),
        ] {
            assert_eq!(filter.of(target), level, "{target}");
        }
        assert_eq!(
            (filter.most(), Filter::parse("mmx=trace").unwrap().of("ureq")),
            (LevelFilter::Debug, LevelFilter::Off)
        );
        let error = Filter::parse("loud").unwrap_err().to_string();
        assert!(
            error.contains("MMX_LOG: expected off, error") && error.contains("\"loud\""),
            "{error}"
        );
    }
}
