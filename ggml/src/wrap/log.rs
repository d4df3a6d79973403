//! The log of ggml and llama.cpp: kept per thread instead of printed, so that an error can carry
//! it.
//!
//! The C libraries report a failure as a null pointer or a number and say the reason in their log.
//! [`capture`] runs a call and gives back what this thread's C code said meanwhile.
#![expect(unsafe_code, reason = "the callback receives a C string")]

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use crate::error::Error;

/// Lines kept per thread; a loader says a few hundred before it fails.
const KEPT_LINES: usize = 64;

thread_local! {
    /// `(level, text)`; a line that is being continued has no line end yet.
    static LINES: RefCell<Vec<(sys::ggml_log_level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Receives every message of ggml and llama.cpp.
unsafe extern "C" fn keep(level: sys::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: the library passes a string that ends in zero and lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // the log of a thread that is being torn down is not needed any more
    let _ = LINES.try_with(|lines| {
        let mut lines = lines.borrow_mut();
        match lines.last_mut() {
            Some((_, last)) if level == sys::GGML_LOG_LEVEL_CONT || !last.ends_with('\n') => {
                last.push_str(&text);
            }
            _ => lines.push((level, text.into_owned())),
        }
        if lines.len() > 2 * KEPT_LINES {
            let surplus = lines.len() - KEPT_LINES;
            lines.drain(..surplus);
        }
    });
}

/// Sends the libraries' logs here, once per process. Nothing is printed from then on.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: `keep` is a function for the whole life of the process and uses no user data.
        // llama_log_set sets ggml's callback as well.
        unsafe { sys::llama_log_set(Some(keep), std::ptr::null_mut()) }
    });
}

/// Runs `call` and returns its value with what the C libraries said on this thread meanwhile:
/// warnings and errors if there were any, else the last lines.
pub(crate) fn capture<T>(call: impl FnOnce() -> T) -> (T, String) {
    install();
    LINES.with(|lines| lines.borrow_mut().clear());
    let value = call();
    let lines = LINES.with(|lines| std::mem::take(&mut *lines.borrow_mut()));
    let grave: Vec<_> = lines
        .iter()
        .filter(|(level, _)| [sys::GGML_LOG_LEVEL_WARN, sys::GGML_LOG_LEVEL_ERROR].contains(level))
        .collect();
    let chosen = if grave.is_empty() { lines.iter().rev().take(3).rev().collect() } else { grave };
    let text: Vec<_> =
        chosen.into_iter().map(|(_, line)| line.trim()).filter(|line| !line.is_empty()).collect();
    let last = text.len().saturating_sub(4);
    (value, text[last..].join("; "))
}

/// An error of the library with its last words.
pub(crate) fn library_error(doing: impl Into<String>, said: String) -> Error {
    let message = if said.is_empty() { "it failed without a word".to_owned() } else { said };
    Error::Library { doing: doing.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_what_the_library_said() {
        let missing = c"no-such-file.gguf";
        // SAFETY: a valid path string and default parameters; the result is checked for null only.
        let (model, said) = capture(|| unsafe {
            sys::llama_model_load_from_file(missing.as_ptr(), sys::llama_model_default_params())
        });
        assert!(model.is_null());
        assert!(said.contains("no-such-file.gguf"), "{said}");
    }
}
