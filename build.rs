//! Gives the programs the paths where their shared libraries are found without LD_LIBRARY_PATH: `mmx-train` (and the
//! tests and examples that train) an rpath to libtorch, of which src/train/build.rs tells; with the feature
//! `dynamic`, `mmx` that of a release.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if cfg!(feature = "dynamic") {
        // ggml's libraries lie in lib beside bin (scripts/release); DT_RPATH, so that it holds for theirs, too
        println!("cargo::rustc-link-arg-bins=-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib");
    }
    if let Ok(lib) = std::env::var("DEP_MMX_TRAINING_LIBTORCH") {
        println!("cargo::rustc-link-arg-bin=mmx-train=-Wl,-rpath,{lib}");
        println!("cargo::rustc-link-arg-tests=-Wl,-rpath,{lib}");
        println!("cargo::rustc-link-arg-examples=-Wl,-rpath,{lib}");
    }
}
