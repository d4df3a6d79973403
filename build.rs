//! Gives the binary an rpath to libtorch, so that it runs without LD_LIBRARY_PATH, and compiles src/bridge.cpp.
//! With the feature `dynamic`, the rpath is that of a release. Tells the program its commit and target.
//! torch-sys links libtorch but emits no rpath; it tells its direct dependents where the libraries are. The
//! same path is where the CUDA part is found when a CUDA device is asked for (src/model/device.rs).

#![expect(clippy::disallowed_methods, reason = "a build script without dependencies")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=MMX_COMMIT={}", commit().unwrap_or_default());
    println!("cargo::rustc-env=MMX_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    if cfg!(feature = "dynamic") {
        // ggml's libraries lie in lib beside bin (scripts/release); DT_RPATH, so that it holds for theirs, too
        println!("cargo::rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib");
    }
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
        #[cfg(feature = "train")]
        compile_bridge(std::path::Path::new(&lib));
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

/// `lib`: libtorch's libraries; its headers lie beside them, unless LIBTORCH_INCLUDE says where.
#[cfg(feature = "train")]
fn compile_bridge(lib: &std::path::Path) {
    const SOURCE: &str = "src/bridge.cpp";
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    let home = std::env::var_os("LIBTORCH_INCLUDE").map(std::path::PathBuf::from);
    let include = home.as_deref().or(lib.parent()).unwrap_or(lib).join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag("-fopenmp") // at::parallel_for is a template: without it the calls of this file run on one thread
        .file(SOURCE)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .warnings(false) // of libtorch's headers
        .compile("mmx_bridge");
    println!("cargo::rustc-link-lib=dylib=gomp"); // the one that libtorch has loaded
}
