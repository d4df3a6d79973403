//! Which ggml and llama.cpp are linked.
#![expect(unsafe_code, reason = "ggml tells its version in C")]

use std::ffi::{CStr, c_char};

use llama_cpp_sys_2 as sys;

/// The crate that llama.cpp and ggml come from, pinned in the workspace's Cargo.toml.
pub const LLAMA_CPP_SYS: &str = "0.1.161";

/// The linked library's version, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// ggml's version.
    pub version: String,
    /// The commit it was built from, if it knows: a packed source does not.
    pub commit: Option<String>,
}

/// Asks ggml for its version.
#[must_use]
pub fn ggml() -> Library {
    let text = |text: *const c_char| {
        // SAFETY: ggml returns static strings.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    // SAFETY: functions without arguments or state.
    let (version, commit) = unsafe { (text(sys::ggml_version()), text(sys::ggml_commit())) };
    Library { version, commit: Some(commit).filter(|commit| commit != "unknown") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_named_is_the_one_that_is_pinned() {
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let text = fs_err::read_to_string(workspace).unwrap();
        let pin = format!("llama-cpp-sys-2 = {{ version = \"={LLAMA_CPP_SYS}\"");
        assert!(text.contains(&pin), "expected {pin} in {workspace}");
    }

    #[test]
    fn the_library_says_its_version() {
        let found = ggml();
        let numbers: Vec<&str> = found.version.split('.').collect();
        assert!(numbers.len() == 3 && numbers[0].parse::<u32>().is_ok(), "{found:?}");
        assert!(found.commit.is_none_or(|commit| !commit.is_empty()));
    }
}
