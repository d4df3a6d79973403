//! Gives the binary an rpath to libtorch, so that it runs without LD_LIBRARY_PATH, and compiles src/bridge.cpp.
//! With the feature `dynamic`, the rpath is that of a release.
//! torch-sys links libtorch but emits no rpath; it tells its direct dependents where the libraries are. The
//! same path is where the CUDA part is found when a CUDA device is asked for (src/model/device.rs).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
