//! The header is what the crate says, and C programs over both libraries do what Rust does.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped here is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mmx_converters::chat;
use mmx_ggml::run::random_model::tiny_gguf;
use mmx_ggml::run::{Generation, LoadOptions, Model, Sampling, Session, SessionOptions, generate};

fn crate_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn header_is_made_from_the_crate() {
    let config = cbindgen::Config::from_file(crate_file("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for module in ["status", "model", "session", "generate", "generation"] {
        builder = builder.with_src(crate_file(&format!("{module}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = crate_file("include/mmx.h");
    if std::env::var_os("MMX_UPDATE_HEADER").is_some() {
        fs_err::write(&path, &made).unwrap();
    }
    let kept = fs_err::read_to_string(&path).unwrap();
    assert!(kept == made, "MMX_UPDATE_HEADER=1 writes {} anew:\n{made}", path.display());
}

/// Declarations of a header, one a line, without comments.
fn declarations(header: &str) -> Vec<String> {
    let lines = header.lines().filter(|line| !line.starts_with('#'));
    let code: Vec<&str> = lines.map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join(" ");
    let code = code.split_once("*/").map_or(code.as_str(), |(_, code)| code);
    let code = code.replace("extern \"C\" {", "");
    let mut all = Vec::new();
    let mut depth = 0_usize;
    let mut one = String::new();
    for c in code.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == ';' && depth == 0 {
            all.push(one.split_whitespace().collect::<Vec<_>>().join(" "));
            one.clear();
        } else {
            one.push(c);
        }
    }
    all
}

/// What programs that are linked with libmmx.so.0 rely on is still there, unchanged.
#[test]
fn nothing_that_the_library_once_had_is_gone_or_changed() {
    let header = fs_err::read_to_string(crate_file("include/mmx.h")).unwrap();
    let found = declarations(&header);
    let kept = fs_err::read_to_string(crate_file("tests/mmx-0.txt")).unwrap();
    let kept: Vec<&str> = kept.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(kept.len() > 30);
    for line in &kept {
        assert!(found.iter().any(|one| one == line), "gone or changed: {line}");
    }
    let added: Vec<_> = found.iter().filter(|one| !kept.contains(&one.as_str())).collect();
    assert!(added.is_empty(), "to be added to tests/mmx-0.txt: {added:#?}");
}

/// Runs a program, which must succeed.
fn succeed(command: &mut Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdout, stderr) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", out.status);
    out
}

/// A folder with libmmx.so (under the name it gives itself, too) and libmmx.a, as cargo has just
/// built them.
fn libraries(folder: &Path) {
    let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    for (from, to) in [("so", "libmmx.so"), ("so", "libmmx.so.0"), ("a", "static/libmmx.a")] {
        let from = built.join(format!("libmmx_capi.{from}"));
        let to = folder.join(to);
        fs_err::create_dir_all(to.parent().unwrap()).unwrap();
        fs_err::os::unix::fs::symlink(from, to).unwrap();
    }
}

fn compiler() -> Command {
    let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
    cc.args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    cc.arg("-I").arg(crate_file("include"));
    cc
}

/// Compiles a program against the shared and against the static library.
fn programs(folder: &Path, source: &str) -> [PathBuf; 2] {
    let stem = Path::new(source).file_stem().unwrap().to_str().unwrap();
    let [shared, alone] = ["shared", "static"].map(|kind| folder.join(format!("{stem}-{kind}")));
    let source = crate_file(source);
    succeed(
        compiler()
            .args([&source, Path::new("-o"), &shared, Path::new("-L"), folder])
            .args(["-lmmx", "-lpthread"])
            .arg(format!("-Wl,-rpath,{}", folder.display())),
    );
    succeed(
        compiler()
            .args([&source, Path::new("-o"), &alone, &folder.join("static/libmmx.a")])
            .args(["-lstdc++", "-lm", "-lpthread", "-ldl"]),
    );
    [shared, alone]
}

/// What `examples/ask.c` does, in Rust.
fn answer(bytes: Vec<u8>, question: &str, max_tokens: usize) -> (String, usize, usize) {
    let model = Model::from_bytes(bytes, "tiny.gguf", LoadOptions::default()).unwrap();
    let messages = [chat::message("user", question)];
    let options = chat::Options::generation();
    let prompt = model.tokenizer().unwrap().encode_chat(&messages, &options).unwrap().ids;
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    // as there: read at once, then the last id again
    session.prefill(&prompt).unwrap();
    session.truncate(prompt.len() - 1);
    let request = Generation {
        max_tokens,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_end: false,
        speculate: 0,
    };
    let last = &prompt[prompt.len() - 1..];
    let out = generate(&mut session, last, &request, |_| true).unwrap();
    (out.text, prompt.len(), out.ids.len())
}

#[test]
fn c_programs_do_what_rust_does_over_both_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    libraries(folder);
    let bytes = tiny_gguf(3).unwrap();
    let model = folder.join("tiny.gguf");
    fs_err::write(&model, &bytes).unwrap();
    let question = "好 \"quoted\"\n<|im_end|>";
    let (text, read, written) = answer(bytes, question, 40);
    assert!(written > 1);
    for program in programs(folder, "examples/ask.c") {
        let out = succeed(Command::new(&program).arg(&model).args([question, "40"]));
        assert_eq!(String::from_utf8(out.stdout).unwrap(), text, "{}", program.display());
        let said = String::from_utf8(out.stderr).unwrap();
        let expected =
            format!("{read} tokens read, 1 of them again, {written} written, {} bytes", text.len());
        assert!(said.contains(&expected), "{said}\nexpected: {expected}");
        let missing = Command::new(&program).args(["no-such.gguf", "a"]).output().unwrap();
        assert_eq!(missing.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such.gguf"));
    }
    for program in programs(folder, "tests/misuse.c") {
        let out = succeed(Command::new(&program).arg(&model));
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "ok\n", "{}", program.display());
    }
}

#[test]
fn the_header_serves_cxx_programs_too() {
    let mut cxx = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()));
    cxx.args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++"]);
    succeed(cxx.arg(crate_file("include/mmx.h")));
}

/// Neither libtorch nor anything else that a plain system lacks.
#[test]
fn the_shared_library_needs_the_system_only() {
    let folder = tempfile::tempdir().unwrap();
    libraries(folder.path());
    let out = succeed(Command::new("readelf").arg("-d").arg(folder.path().join("libmmx.so")));
    let dynamic = String::from_utf8(out.stdout).unwrap();
    let needed: Vec<&str> = dynamic.lines().filter(|l| l.contains("(NEEDED)")).collect();
    assert!(!needed.is_empty() && dynamic.contains("libmmx.so.0"), "{dynamic}");
    for line in needed {
        let known = [
            "libstdc++.so",
            "libgcc_s.so",
            "libm.so",
            "libc.so",
            "ld-linux",
            "libpthread",
            "libdl",
        ];
        assert!(known.iter().any(|name| line.contains(name)), "{line}");
    }
}
