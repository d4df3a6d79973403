//! Ctrl-C within an answer.

use std::sync::atomic::AtomicBool;

/// True while an answer is written: Ctrl-C then ends the answer, and otherwise the program.
pub(super) static ANSWERING: AtomicBool = AtomicBool::new(false);
/// True once Ctrl-C came while an answer was written.
pub(super) static STOPPED: AtomicBool = AtomicBool::new(false);
