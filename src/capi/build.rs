//! Names the shared library as programs will look for it, whatever cargo calls the file.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmmx.so.0");
        if cfg!(feature = "dynamic") {
            // ggml's libraries lie beside it (scripts/release); DT_RPATH, so that it holds for
            // theirs, too
            println!("cargo::rustc-cdylib-link-arg=-Wl,--disable-new-dtags,-rpath,$ORIGIN");
        }
    }
}
