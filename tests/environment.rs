//! docs/environment.md lists every environment variable that the sources read, and no other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Functions, and what is like one, whose first text names a variable.
const READERS: [&str; 5] = ["var(", "var_os(", "variable(", "set(", "env = "];
/// What variables of mmx and of those it reads begin with, wherever they stand.
const PREFIXES: [&str; 9] =
    ["MMX_", "HF_", "OLLAMA_", "XDG_", "OMP_", "GOMP_", "RAYON_", "MODELSCOPE_", "HUGGING_FACE_"];
/// Set by cargo for a build, for the build itself, or of tests alone.
const OF_BUILDS: [&str; 4] = ["CARGO_", "DEP_", "OUT_DIR", "TARGET"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir()
            && path.file_name().is_some_and(|name| name != "tests" && name != "examples")
        {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The sources of the Python module.
fn python(root: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(root.join("python/mmx")).expect("a folder").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "py") {
            found.push(entry.path());
        }
    }
}

/// The names of variables in a source.
fn read_by(text: &str) -> BTreeSet<String> {
    let is_name = |text: &str| {
        text.len() > 2
            && text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    let mut names = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices('"') {
            let before = line[..at].trim_end_matches('(');
            let Some((name, _)) = line[at + 1..].split_once('"') else { continue };
            let is_read = READERS.iter().any(|reader| line[..at].ends_with(reader));
            let prefixed = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            // env! and option_env! are the compiler's
            let of_compiler = before.ends_with("env!");
            let of_build = OF_BUILDS.iter().any(|prefix| name.starts_with(prefix));
            if is_name(name) && (is_read || prefixed) && !of_compiler && !of_build {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[test]
fn variables_are_found_in_sources() {
    let text = "let a = std::env::var(\"MMX_A\");\nconst B: &str = \"MMX_B\";\n// \"MMX_C\"\nvar_os(\"PATH\"); \
                env!(\"MMX_D\"); env = \"KEY_E\", set(\"F_G\"), \"PATH_H\"";
    let found: Vec<String> = read_by(text).into_iter().collect();
    assert_eq!(found, ["F_G", "KEY_E", "MMX_A", "MMX_B", "PATH"]);
}

#[test]
fn every_variable_that_is_read_is_on_the_page_and_every_one_on_the_page_is_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("build.rs")];
    for folder in ["src", "ggml", "converters"] {
        sources(&root.join(folder), &mut files);
    }
    python(root, &mut files);
    let mut read = BTreeSet::new();
    for path in files {
        let text = fs_err::read_to_string(&path).expect("a source");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(&text);
        read.extend(read_by(code));
        // the standard library's own way to it
        if code.contains("env::home_dir()") {
            read.insert("HOME".to_owned());
        }
    }
    // in unit tests alone, or set by build scripts
    read.remove("MMX_TEST_TOKENIZERS");
    let page = fs_err::read_to_string(root.join("docs/environment.md")).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let mut listed = BTreeSet::new();
    for row in rows {
        let cell = row.split('|').nth(1).unwrap_or_default();
        listed.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    assert!(read.len() > 15, "{read:?}");
    let missing: Vec<&String> = read.difference(&listed).collect();
    let unread: Vec<&String> = listed.difference(&read).collect();
    assert!(
        missing.is_empty() && unread.is_empty(),
        "not on the page: {missing:?}; not read: {unread:?}"
    );
}
