//! The status that a function returns, and the sentence that explains it.
#![expect(unsafe_code, reason = "functions are exported under their C names")]

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The status of a call: how it ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmxStatus {
    /// Done.
    Ok = 0,
    /// The model, the file or the request does not allow it.
    Failed = 1,
    /// An argument that can never be right: a null pointer, text that is not UTF-8, broken JSON.
    InvalidArgument = 2,
    /// The buffer is too small; how much there is was stored.
    TooSmall = 3,
    /// Another thread is using the session.
    Busy = 4,
    /// A fault of mmx itself. The session concerned can only be freed.
    Panic = 5,
}

/// A failure on its way to the caller.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: MmxStatus,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: MmxStatus, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(MmxStatus::InvalidArgument, message)
    }
}

impl From<mmx_ggml::Error> for Failure {
    fn from(error: mmx_ggml::Error) -> Self {
        Self::new(MmxStatus::Failed, error.to_string())
    }
}

impl From<mmx_converters::Error> for Failure {
    fn from(error: mmx_converters::Error) -> Self {
        Self::new(MmxStatus::Failed, error.to_string())
    }
}

thread_local! {
    /// Why the last call of this thread that failed did.
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps a sentence for [`mmx_last_error`]; zero bytes in it, which a path may be quoted with, are
/// dropped.
fn remember(message: &str) {
    let text = CString::new(message.replace('\0', "")).unwrap_or_default();
    // a thread that is being torn down asks no more
    let _ = LAST.try_with(|last| last.replace(text));
}

/// Runs a call: failures and panics become a status.
pub(crate) fn guarded(call: impl FnOnce() -> Result<(), Failure>) -> MmxStatus {
    // what a panic may leave half done is behind a lock that is poisoned then
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => MmxStatus::Ok,
        Ok(Err(failure)) => {
            remember(&failure.message);
            failure.status
        }
        Err(payload) => {
            let said = payload.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| payload.downcast_ref::<&str>().copied());
            remember(&format!("a fault of mmx: {}", said.unwrap_or("it ended without a word")));
            MmxStatus::Panic
        }
    }
}

/// Runs a call that gives a value and has no failure but a panic: `otherwise` then.
pub(crate) fn guarded_value<T>(otherwise: T, call: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(otherwise)
}

/// Why the last call on this thread that failed did: one sentence, empty if none has. Valid until
/// the next failure on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn mmx_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The library's version, `major.minor.patch`.
#[unsafe(no_mangle)]
pub extern "C" fn mmx_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last() -> String {
        // SAFETY: a string that ends in zero, read before the next failure.
        unsafe { CStr::from_ptr(mmx_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn failures_and_panics_become_a_status_and_a_sentence() {
        assert_eq!(guarded(|| Ok(())), MmxStatus::Ok);
        assert_eq!(guarded(|| Err(Failure::invalid("a\0b"))), MmxStatus::InvalidArgument);
        assert_eq!(last(), "ab");
        assert_eq!(guarded(|| panic!("number {}", 7)), MmxStatus::Panic);
        assert_eq!(last(), "a fault of mmx: number 7");
        assert_eq!(guarded_value(3, || panic!("no number")), 3);
        std::thread::spawn(|| assert_eq!(last(), "", "each thread has its own")).join().unwrap();
    }

    #[test]
    fn the_version_is_a_string() {
        // SAFETY: a static string that ends in zero.
        let version = unsafe { CStr::from_ptr(mmx_version()) };
        assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    }
}
