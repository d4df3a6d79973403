//! Gives the binary an rpath to libtorch, so that it runs without LD_LIBRARY_PATH.
//! torch-sys links libtorch but emits no rpath; it tells its direct dependents where the libraries are.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
        // The libraries are found through symbols of their dispatch tables only, so the linker
        // must keep them even where no symbol is named (CUDA kernels register themselves).
        println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo::rustc-link-arg=-ltorch");
    }
}
