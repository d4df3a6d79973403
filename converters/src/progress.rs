//! Progress of long work, and the sentences it has for the user. Libraries print nothing: whoever
//! starts the work listens.

use std::fmt::Debug;

/// A listener: hears sentences and sees how far work is. Every method may be called by any thread.
pub trait Listener: Debug + Send + Sync {
    /// A sentence for the user.
    fn say(&self, sentence: &str);

    /// Something that is not as it should be, and that the work goes on with.
    fn warn(&self, warning: &str) {
        self.say(&format!("warning: {warning}"));
    }

    /// How far the work is.
    fn progress(&self, progress: Progress<'_>) {
        let _ = progress;
    }
}

/// How far work is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// Bytes of a file, which has taken a while so far.
    Bytes {
        /// The work on these bytes, as a participle: `tokenizing`.
        doing: &'a str,
        /// Bytes done; of packed files they may be more than the file has.
        done: u64,
        /// The file's size.
        total: u64,
    },
    /// Steps of a training run.
    Steps {
        /// Optimizer steps done.
        done: usize,
        /// Optimizer steps of the whole run.
        total: usize,
        /// The last step's numbers; empty before the first one.
        message: &'a str,
    },
    /// The work is done: nothing more is to be seen of it.
    Finished,
}

/// A listener that hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Listener for Silent {
    fn say(&self, _sentence: &str) {}
}
