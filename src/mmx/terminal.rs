//! The listener that puts what libraries say on stderr: sentences, a bar on a terminal, elsewhere a
//! line now and then.
#![allow(dead_code, reason = "each program uses a part of it")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use log::Level;
use mmx_converters::progress::{Listener, Progress};

use crate::error::spelled;
use crate::talk::says;

/// Set by Ctrl-C and SIGTERM once a training is under way; a second one ends the process at once.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// The terminal as a listener.
#[derive(Debug, Default)]
pub(crate) struct Terminal {
    shown: Mutex<Shown>,
    /// The options as which settings in sentences are spelled.
    options: Vec<String>,
    /// Nothing is printed: another process speaks for this one.
    quiet: bool,
}

#[derive(Debug, Default)]
struct Shown {
    bar: Option<ProgressBar>,
    steps: bool,
    said: Option<Instant>,
}

impl Terminal {
    /// One that spells the settings in sentences as these options.
    pub(crate) fn spelling(options: Vec<String>) -> Self {
        Self { options, ..Self::default() }
    }

    /// One that prints nothing where `quiet`; Ctrl-C is caught all the same.
    pub(crate) fn quiet(self, quiet: bool) -> Self {
        Self { quiet, ..self }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Terminal {
    /// Prints a line above the bar.
    fn say(&self, sentence: &str) {
        if !self.quiet && says(Level::Info) {
            self.print(sentence);
        }
    }

    fn warn(&self, warning: &str) {
        if !self.quiet && says(Level::Warn) {
            self.print(&format!("warning: {warning}"));
        }
    }

    fn progress(&self, progress: Progress<'_>) {
        if !self.quiet && says(Level::Info) {
            self.show(progress);
        } else if let Progress::Steps { .. } = progress
            && !std::mem::replace(&mut self.shown().steps, true)
        {
            catch_stop(None);
        }
    }
}

impl Terminal {
    fn print(&self, sentence: &str) {
        let sentence = spelled(sentence, &self.options);
        match &self.shown().bar {
            Some(bar) => bar.suspend(|| eprintln!("{sentence}")),
            None => eprintln!("{sentence}"),
        }
    }

    fn show(&self, progress: Progress<'_>) {
        let mut shown = self.shown();
        match progress {
            Progress::Bytes { doing, done, total } => {
                let bar = shown.bar.get_or_insert_with(|| {
                    let bar = ProgressBar::new(total).with_message(doing.to_owned());
                    let template = "{msg} {bytes} of {total_bytes} ({bytes_per_sec})";
                    match ProgressStyle::with_template(template) {
                        Ok(style) => bar.with_style(style),
                        Err(_) => bar,
                    }
                });
                bar.set_position(done);
            }
            Progress::Steps { done, total, message } => shown.steps(done, total, message),
            Progress::Finished => {
                let bar = shown.bar.take();
                match (bar, shown.steps) {
                    (Some(bar), true) => bar.abandon(), // it stays as it is
                    (Some(bar), false) => bar.finish_and_clear(),
                    (None, _) => (),
                }
                shown.steps = false;
            }
        }
    }
}

impl Shown {
    fn steps(&mut self, done: usize, total: usize, message: &str) {
        /// Time between lines where there is no bar.
        const EVERY: Duration = Duration::from_secs(10);
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(
                Some(total as u64),
                ProgressDrawTarget::stderr_with_hz(4), // hidden when stderr is no terminal
            );
            let template = "{bar:24} {pos}/{len} steps  {msg}  ETA {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_position(done as u64);
            bar.reset_eta();
            bar
        });
        if !self.steps {
            self.steps = true;
            self.said = None;
            catch_stop(Some(bar));
        } else if bar.is_hidden() {
            if self.said.is_none_or(|said| said.elapsed() >= EVERY) || done == total {
                eprintln!("step {done}/{total}  {message}");
                self.said = Some(Instant::now());
            }
        } else {
            bar.set_message(message.to_owned());
            bar.set_position(done as u64);
        }
    }
}

/// From now on Ctrl-C and SIGTERM ask for a checkpoint; before, they end the process. Without a bar
/// nothing is said.
fn catch_stop(bar: Option<&ProgressBar>) {
    let speaks = bar.is_some();
    let handler = move || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // 128 + SIGINT
        }
        if speaks {
            eprintln!("\nstopping after this step; once more ends at once without saving");
        }
    };
    if let (Err(error), Some(bar)) = (ctrlc::set_handler(handler), bar) {
        bar.suspend(|| eprintln!("warning: Ctrl-C will end the run without saving: {error}"));
    }
}
