//! Gives the binary an rpath to libtorch, so that it runs without LD_LIBRARY_PATH.
//! torch-sys links libtorch but emits no rpath; it tells its direct dependents where the libraries are. The
//! same path is where the CUDA part is found when a CUDA device is asked for (src/model/device.rs).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
