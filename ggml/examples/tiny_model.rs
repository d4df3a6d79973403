//! Writes the model of random weights that the documentation uses, for trying other programs with.
//!
//! ```text
//! cargo run --release -p mmx-ggml --example tiny_model -- tiny.gguf [SEED]
//! ```

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (path, seed) = match args.as_slice() {
        [path] => (path, Ok(1)),
        [path, seed] => (path, seed.parse()),
        _ => {
            eprintln!("usage: tiny_model FILE.gguf [SEED]");
            return 2.into();
        }
    };
    let Ok(seed) = seed else {
        eprintln!("error: seed: expected a number");
        return 2.into();
    };
    let written = mmx_ggml::run::random_model::tiny_gguf(seed)
        .map_err(|e| e.to_string())
        .and_then(|bytes| fs_err::write(path, bytes).map_err(|e| e.to_string()));
    match written {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("error: {error}");
            1.into()
        }
    }
}
