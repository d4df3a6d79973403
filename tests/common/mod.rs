//! What the tests that run the binary share. In: arguments. Out: exit code, stdout, stderr.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The seven models with the reference's numbers.
pub const GOLDEN: [&str; 7] = [
    "golden/minimind2",
    "golden/minimind2-moe",
    "golden/minimind3",
    "golden/minimind3-moe",
    "golden-2026/minimind3",
    "golden-2026/minimind3-moe",
    "golden-2026/minimind3-moe-top2",
];

/// A file of the fixtures beside the checkout; a missing one fails the test.
pub fn shared(path: &str) -> PathBuf {
    let full = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")).join(path);
    assert!(full.exists(), "{}: the fixtures belong beside the checkout", full.display());
    full
}

/// Runs mmx with colours and progress off.
pub fn mmx(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmx")).args(args).output().expect("mmx starts")
}

/// Runs mmx, which must succeed; its stdout.
pub fn mmx_ok(args: &[&str]) -> String {
    let out = mmx(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "mmx {args:?} failed:\n{stderr}");
    String::from_utf8(out.stdout).expect("stdout is UTF-8")
}

/// Runs mmx with `--json`, which must succeed; the one object on stdout.
pub fn mmx_json(args: &[&str]) -> serde_json::Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let out = mmx_ok(&args);
    serde_json::from_str(&out)
        .unwrap_or_else(|e| panic!("mmx {args:?}: not one JSON object ({e}): {out}"))
}

/// Runs mmx, which must fail with exit code 1 and exactly one `error:` line on stderr; that line.
pub fn mmx_error(args: &[&str]) -> String {
    let out = mmx(args);
    let stderr = String::from_utf8(out.stderr).expect("stderr is UTF-8");
    assert_eq!(out.status.code(), Some(1), "mmx {args:?}: {stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error:")).collect();
    assert_eq!(errors.len(), 1, "mmx {args:?}: expected one error line, found: {stderr}");
    assert!(!stderr.contains("panicked"), "mmx {args:?}: {stderr}");
    errors[0].to_owned()
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
