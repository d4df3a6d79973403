//! Gives the programs the paths where their shared libraries are found without LD_LIBRARY_PATH: `mmx-train` (and the
//! tests and examples that train) an rpath to libtorch, of which src/train/build.rs tells; with the feature
//! `dynamic`, `mmx` that of a release.

#![expect(clippy::disallowed_methods, reason = "a build script without dependencies")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let commit = commit().unwrap_or_default();
    println!("cargo::rustc-env=MMX_COMMIT={commit}");
    // of --version: the commit, short, where it is known
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let of_commit = commit.get(..10).map_or(String::new(), |short| format!(" ({short})"));
    println!("cargo::rustc-env=MMX_VERSION_LINE={version}{of_commit}");
    println!("cargo::rustc-env=MMX_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    if cfg!(feature = "dynamic") {
        // ggml's libraries lie in lib beside bin (scripts/release); DT_RPATH, so that it holds for theirs, too
        println!("cargo::rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib");
    }
    if let Ok(lib) = std::env::var("DEP_MMX_TRAINING_LIBTORCH") {
        // a release goes to machines where libtorch lies elsewhere: LD_LIBRARY_PATH names it there
        if !cfg!(feature = "dynamic") {
            println!("cargo::rustc-link-arg-bin=mmx-train=-Wl,-rpath,{lib}");
        }
        // cargo refuses this of a package without tests, such as the packed one
        if std::path::Path::new("tests").is_dir() {
            println!("cargo::rustc-link-arg-tests=-Wl,-rpath,{lib}");
        }
        println!("cargo::rustc-link-arg-examples=-Wl,-rpath,{lib}");
    }
}

/// The commit of these sources, 40 hexadecimal digits: an archive that git made has it in `.commit`, a package of
/// cargo's in its own file, a checkout in git. Nothing where none of them is there.
fn commit() -> Option<String> {
    let home = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let is_commit = |text: &&str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    for (file, marks) in [(".commit", "\n"), (".cargo_vcs_info.json", "\"")] {
        let Ok(text) = std::fs::read_to_string(home.join(file)) else { continue };
        println!("cargo::rerun-if-changed={file}");
        if let Some(found) = text.split(marks).find(is_commit) {
            return Some(found.to_owned());
        }
    }
    let git = |arguments: &[&str]| {
        // whoever owns the files: nothing of them is run
        let mut command = std::process::Command::new("git");
        let out = command.args(["-c", "safe.directory=*"]).args(arguments).current_dir(&home);
        let out = out.output().ok().filter(|out| out.status.success())?;
        Some(String::from_utf8(out.stdout).ok()?.trim().to_owned())
    };
    // sources that lie within another project's checkout have none of their own
    let top = std::fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()?;
    if top != std::fs::canonicalize(&home).ok()? {
        return None;
    }
    for name in ["HEAD", "logs/HEAD"] {
        let path = home.join(git(&["rev-parse", "--git-path", name])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&["rev-parse", "HEAD"])
}
