//! Programs of others, confined: JSON lines in, JSON lines out.
//!
//! A command gets lines on stdin and must write one for each on stdout. It runs in a directory of its
//! own, which is gone afterwards, with limits on time, memory, processes and the size of files; it
//! can write nowhere else, and has no network. On Linux that takes Landlock (5.13 or newer) and
//! seccomp, on x86-64 or aarch64; namespaces of users, processes, mounts and networks are added where
//! the system allows them. Where a command cannot be confined it is refused, unless the caller
//! accepts that ([`Sandbox::allow_unsandboxed`]).
//!
//! What it can still do: read what the user may read (as root: what everybody may, for it runs as
//! nobody), and use the limits up.
//!
//! | file | what it holds |
//! |---|---|
//! | `command.rs` | [`Command`]: a program and its limits, read from JSON |
//! | `exchange.rs` | lines to a program and back, with a deadline |
//! | `linux.rs` | what confines a process, before it becomes the program |
//! | `rlimits.rs` | limits that every Unix has |
//! | `filter.rs` | the system calls it may not make |

mod command;
mod exchange;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod filter;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod linux;

#[cfg(unix)]
mod rlimits;

use mmx_converters::{Error, Result};
use serde_json::Value;

pub use command::{Command, Limits};

/// Runs commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Runs commands that cannot be confined all the same, with what limits the system has.
    pub allow_unsandboxed: bool,
}

impl Sandbox {
    /// Whether commands can be confined here.
    ///
    /// # Errors
    /// What is missing.
    pub fn check() -> Result<()> {
        #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
        let found = linux::check();
        #[cfg(not(all(
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )))]
        let found: std::result::Result<(), String> =
            Err("expected Linux on x86-64 or aarch64, found another system".to_owned());
        found.map_err(|why| {
            Error::failed_with_hint(
                format!("a command cannot be confined here: {why}"),
                "`allow_unsandboxed` runs it all the same, with your rights",
            )
        })
    }

    /// Starts a command, writes lines and reads a JSON value for each.
    ///
    /// # Errors
    /// A command that cannot be confined or started, that takes too long, fails, or writes
    /// something else than one JSON value a line.
    pub fn exchange(&self, command: &Command, lines: &[String]) -> Result<Vec<Value>> {
        self.attempt(command, lines)?
    }

    /// [`Sandbox::exchange`] with two kinds of errors: the outer one is of what cannot be run at
    /// all, the inner one of a program that failed.
    ///
    /// # Errors
    /// A command that cannot be confined or started.
    pub fn attempt(&self, command: &Command, lines: &[String]) -> Result<Result<Vec<Value>>> {
        if !self.allow_unsandboxed {
            Self::check()?;
        }
        exchange::exchange(command, lines)
    }
}
