//! Compiles kernel/bridge.cpp and distributed/c10d.cpp, and tells the programs' build script where
//! libtorch lies (DEP_MMX_TRAINING_LIBTORCH): torch-sys links libtorch but emits no rpath, and tells
//! its direct dependents only. The path is also where the CUDA part is found when a CUDA device is
//! asked for (model/device.rs).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::metadata=LIBTORCH={lib}");
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
        compile(std::path::Path::new(&lib));
    }
}

/// `lib`: libtorch's libraries; its headers lie beside them, unless LIBTORCH_INCLUDE says where.
fn compile(lib: &std::path::Path) {
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    let home = std::env::var_os("LIBTORCH_INCLUDE").map(std::path::PathBuf::from);
    let include = home.as_deref().or(lib.parent()).unwrap_or(lib).join("include");
    let of = |source: &str| {
        println!("cargo::rerun-if-changed={source}");
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .file(source)
            .include(&include)
            .include(include.join("torch/csrc/api/include"))
            .warnings(false); // of libtorch's headers
        build
    };
    // at::parallel_for is a template: without it the calls of this file run on one thread
    of("kernel/bridge.cpp").flag("-fopenmp").compile("mmx_bridge");
    println!("cargo::rustc-link-lib=dylib=gomp"); // the one that libtorch has loaded
    println!("cargo::rerun-if-changed=distributed/gloo_types");
    of("distributed/c10d.cpp").include("distributed/gloo_types").compile("mmx_c10d");
}
