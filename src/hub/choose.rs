//! Which files of a repository a model is: a Transformers folder's own, or one GGUF of many.
//!
//! In: the names and sizes of a repository's files, and what was asked for. Out: the files that are
//! needed, which of them (or which folder) is the model, and a sentence where there was a choice.

use std::collections::BTreeMap;

use super::hub::RemoteFile;
use super::name::Wanted;
use super::snapshot::Choice;
use mmx_converters::{Error, Result};

/// A GGUF, whole or in parts.
struct Whole<'a> {
    /// The path of the first part.
    path: &'a str,
    /// Its type by its name.
    ty: Option<String>,
    bytes: u64,
    files: Vec<usize>,
}

/// Parts of the names of GGUFs that are no model of their own: what vision models bring, importance
/// matrices, vocabularies, adapters.
const ASIDE: [&str; 5] = ["mmproj", "imatrix", "vocab", "lora", "adapter"];
/// Parts of a name that say a type, as llama.cpp's programs and the hub's pages spell it.
const TYPES: [&str; 5] = ["f32", "f16", "bf16", "fp16", "fp32"];
/// The type taken unless another is asked for.
const USUAL: &str = "q4_k_m";

/// Chooses a model's files. `repo` is what messages call the repository.
///
/// # Errors
/// Nothing there that was asked for, or several things that may be meant: what is there is named.
pub(super) fn choose(repo: &str, files: &[RemoteFile], wanted: &Wanted) -> Result<Choice> {
    let path = wanted.path.as_deref().unwrap_or_default().trim_end_matches('/');
    if wanted.path.is_some()
        && let Some(at) = files.iter().position(|file| file.path == path)
    {
        return Ok(named(files, at));
    }
    let below = if path.is_empty() { String::new() } else { format!("{path}/") };
    if !files.iter().any(|file| file.path.starts_with(&below)) {
        return Err(nothing(repo, files, &format!("{path} in it")));
    }
    let inside = |file: &RemoteFile| Some(file.path.strip_prefix(&below)?.to_owned());
    // in this very folder
    let own = |end: &str| {
        files.iter().any(|f| inside(f).is_some_and(|p| !p.contains('/') && p.ends_with(end)))
    };
    let ggufs = ggufs(files, &below);
    if let Some(ty) = &wanted.ty {
        let fit: Vec<_> = ggufs.iter().filter(|g| g.ty.as_ref() == Some(ty)).collect();
        return match fit.as_slice() {
            [one] => Ok(taken(one, None)),
            [] => Err(nothing(repo, files, &format!("a GGUF of type {ty}"))),
            several => Err(ambiguous(repo, several.iter().map(|g| g.path))),
        };
    }
    let is_folder = own("config.json") && own(".safetensors") || own("adapter_config.json");
    if is_folder || ggufs.is_empty() && own("config.json") {
        return Ok(folder(files, path, &below));
    }
    if !ggufs.is_empty() {
        return usual(repo, &ggufs);
    }
    let others: Vec<usize> = (0..files.len())
        .filter(|&i| inside(&files[i]).is_some_and(|p| !p.contains('/') && p.ends_with(".pth")))
        .collect();
    let deeper: Vec<&str> = files
        .iter()
        .filter_map(|file| file.path.strip_suffix("/config.json"))
        .filter(|folder| folder.starts_with(&below))
        .collect();
    match (others.as_slice(), deeper.as_slice()) {
        ([one], []) => Ok(named(files, *one)),
        ([], [one]) => Ok(folder(files, one, &format!("{one}/"))),
        ([], []) => Err(nothing(repo, files, "a model in it")),
        (others, deeper) => {
            let others = others.iter().map(|&i| files[i].path.as_str());
            Err(ambiguous(repo, others.chain(deeper.iter().copied())))
        }
    }
}

/// A file that was named: a GGUF with its other parts, anything else with the small files beside it.
fn named(files: &[RemoteFile], at: usize) -> Choice {
    let path = files[at].path.as_str();
    if let Some(whole) = ggufs(files, "").into_iter().find(|whole| whole.files.contains(&at)) {
        return taken(&whole, None);
    }
    let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let mut needed: Vec<usize> =
        (0..files.len()).filter(|&i| is_small(&files[i].path, &folder)).collect();
    needed.push(at);
    needed.sort_unstable();
    needed.dedup();
    Choice { files: needed, opened: path.to_owned(), word: None }
}

fn taken(whole: &Whole<'_>, word: Option<String>) -> Choice {
    Choice { files: whole.files.clone(), opened: whole.path.to_owned(), word }
}

/// A Transformers folder: its weights once (some repositories hold them in two or three formats),
/// and what lies beside them.
fn folder(files: &[RemoteFile], path: &str, below: &str) -> Choice {
    let name = |file: &RemoteFile| {
        file.path.strip_prefix(below).filter(|name| !name.contains('/')).map(str::to_owned)
    };
    let has = |one: &str| files.iter().any(|file| name(file).as_deref() == Some(one));
    let is_shard = |name: &str| name.starts_with("model-") && name.contains("-of-");
    let is_weights = |name: &str| match name.strip_suffix(".safetensors") {
        None => false,
        Some(_) if has("model.safetensors.index.json") => is_shard(name),
        Some(stem) if has("model.safetensors") => stem == "model",
        Some(stem) if has("adapter_config.json") => stem == "adapter_model",
        Some(_) => true,
    };
    let needed = |file: &RemoteFile| {
        is_small(&file.path, below) || name(file).is_some_and(|name| is_weights(&name))
    };
    let files = (0..files.len()).filter(|&i| needed(&files[i])).collect();
    Choice { files, opened: path.to_owned(), word: None }
}

/// True for what lies beside weights in a folder: configurations, tokenizers, chat templates.
fn is_small(path: &str, below: &str) -> bool {
    let Some(name) = path.strip_prefix(below) else { return false };
    match name.split_once('/') {
        None => [".json", ".jinja", ".model"].iter().any(|end| name.ends_with(end)),
        // further chat templates, as Transformers 5 keeps them
        Some((folder, name)) => folder == "additional_chat_templates" && name.ends_with(".jinja"),
    }
}

/// The usual type, else the smallest of four bits or more, else the largest of less.
fn usual(repo: &str, ggufs: &[Whole<'_>]) -> Result<Choice> {
    let is_aside = |g: &&Whole<'_>| {
        let name = g.path.to_ascii_lowercase();
        name.split(['-', '_', '.', '/']).any(|part| ASIDE.contains(&part))
    };
    let mut models: Vec<&Whole<'_>> = ggufs.iter().filter(|g| !is_aside(g)).collect();
    if models.is_empty() {
        models = ggufs.iter().collect();
    }
    if let [one] = models.as_slice() {
        return Ok(taken(one, None));
    }
    let typed = || models.iter().filter(|g| g.ty.is_some());
    let bits = |g: &Whole<'_>| g.ty.as_deref().map_or(0, bits);
    let fit: Vec<_> = match typed().filter(|g| g.ty.as_deref() == Some(USUAL)).collect::<Vec<_>>() {
        usual if !usual.is_empty() => usual,
        _ => {
            let least = typed().filter(|g| bits(g) >= 4).map(|g| g.bytes).min();
            let wanted = least.or_else(|| typed().map(|g| g.bytes).max());
            typed().filter(|g| Some(g.bytes) == wanted).collect()
        }
    };
    match fit.as_slice() {
        [one] => {
            let others = models.len() - 1;
            let word = format!("taking {} (one of {} GGUFs)", one.path, others + 1);
            Ok(taken(one, Some(word)))
        }
        [] => Err(ambiguous(repo, models.iter().map(|g| g.path))),
        several => Err(ambiguous(repo, several.iter().map(|g| g.path))),
    }
}

/// The GGUFs below a folder, those in parts as one.
fn ggufs<'a>(files: &'a [RemoteFile], below: &str) -> Vec<Whole<'a>> {
    let mut found: BTreeMap<(&str, Option<&str>), Whole<'a>> = BTreeMap::new();
    for (at, file) in files.iter().enumerate().filter(|(_, file)| file.path.starts_with(below)) {
        let Some(stem) = file.path.strip_suffix(".gguf") else { continue };
        let (stem, count) = part_of(stem).map_or((stem, None), |(stem, n)| (stem, Some(n)));
        let whole = found.entry((stem, count)).or_insert_with(|| {
            let name = stem.rsplit('/').next().unwrap_or(stem);
            Whole { path: &file.path, ty: type_in(name), bytes: 0, files: Vec::new() }
        });
        whole.bytes += file.bytes;
        whole.files.push(at);
        whole.path = whole.path.min(&file.path);
    }
    found.into_values().collect()
}

/// The name and the count of parts in `NAME-00001-of-00003`.
fn part_of(stem: &str) -> Option<(&str, &str)> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(count) && digits(number)).then_some((name, count))
}

/// The type that a file's name says, in small letters: the last part of it that is one.
fn type_in(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let parts = name.rsplit(['-', '.']);
    parts.map(str::to_owned).find(|part| is_type(part))
}

fn is_type(part: &str) -> bool {
    let quant = part.strip_prefix("iq").or(part.strip_prefix("tq")).or(part.strip_prefix('q'));
    let number = quant.or(part.strip_prefix("mxfp"));
    TYPES.contains(&part) || number.is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
}

/// The bits of a type by its name.
fn bits(ty: &str) -> u32 {
    let digits = ty.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn nothing(repo: &str, files: &[RemoteFile], wanted: &str) -> Error {
    let ggufs = ggufs(files, "");
    let there: Vec<String> = match ggufs.is_empty() {
        false => ggufs
            .iter()
            .map(|g| match &g.ty {
                Some(ty) => format!("{ty} ({})", g.path),
                None => g.path.to_owned(),
            })
            .collect(),
        true => files.iter().map(|file| file.path.clone()).collect(),
    };
    const MOST: usize = 24;
    let more = there.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let there = there.into_iter().take(MOST).collect::<Vec<_>>().join(", ");
    let there = if there.is_empty() { "no file".to_owned() } else { there };
    Error::failed(format!("{repo}: expected {wanted}, found {there}{more}"))
}

fn ambiguous<'a>(repo: &str, paths: impl Iterator<Item = &'a str>) -> Error {
    let paths: Vec<String> = paths.map(|path| format!("{repo}/{path}")).collect();
    Error::failed_with_hint(
        format!("{repo}: expected one model, found {}", paths.len()),
        format!("name the one that is meant: {}", paths.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(given: &[(&str, u64)]) -> Vec<RemoteFile> {
        let file = |&(path, bytes): &(&str, u64)| RemoteFile {
            path: path.to_owned(),
            bytes,
            git_id: "x".to_owned(),
            sha256: None,
        };
        given.iter().map(file).collect()
    }

    fn model(given: &[(&str, u64)], path: Option<&str>, ty: Option<&str>) -> Result<Choice> {
        let wanted = Wanted { path: path.map(str::to_owned), ty: ty.map(str::to_owned) };
        choose("hf:me/x", &files(given), &wanted)
    }

    #[test]
    fn one_gguf_is_taken_by_type_else_q4_k_m_else_the_smallest_of_four_bits() {
        let all = [
            ("README.md", 9),
            ("imatrix.gguf", 1),
            ("m-F16.gguf", 160),
            ("m-Q2_K.gguf", 30),
            ("m-Q4_K_M.gguf", 50),
            ("m-Q8_0.gguf", 80),
            ("mmproj-m-F16.gguf", 2),
        ];
        let chosen = model(&all, None, None).expect("one");
        assert_eq!((chosen.opened.as_str(), chosen.files), ("m-Q4_K_M.gguf", vec![4]));
        let word = chosen.word.expect("a word");
        assert_eq!(word, "taking m-Q4_K_M.gguf (one of 4 GGUFs)");
        assert_eq!(model(&all, None, Some("q8_0")).expect("one").opened, "m-Q8_0.gguf");
        let error = model(&all, None, Some("q3_k")).expect_err("none").to_string();
        assert!(error.contains("q3_k") && error.contains("q8_0 (m-Q8_0.gguf)"), "{error}");
        let without: Vec<_> = all.into_iter().filter(|(name, _)| !name.contains("Q4")).collect();
        assert_eq!(model(&without, None, None).expect("one").opened, "m-Q8_0.gguf");
        let small = [("m-iq2_xs.gguf", 20), ("m-q3_k_l.gguf", 30)];
        assert_eq!(model(&small, None, None).expect("one").opened, "m-q3_k_l.gguf");
        assert_eq!(model(&[("m.gguf", 1)], None, None).expect("one").word, None);
    }

    #[test]
    fn a_split_gguf_is_taken_whole() {
        let parts = [
            ("Q8_0/m-Q8_0-00001-of-00002.gguf", 5),
            ("Q8_0/m-Q8_0-00002-of-00002.gguf", 5),
            ("m-Q4_0.gguf", 6),
        ];
        for (path, ty) in [(None, Some("q8_0")), (Some(parts[1].0), None), (Some("Q8_0"), None)] {
            let chosen = model(&parts, path, ty).expect("one");
            assert_eq!((chosen.opened.as_str(), chosen.files), (parts[0].0, vec![0, 1]));
        }
        assert_eq!(model(&parts, None, None).expect("one").opened, "m-Q4_0.gguf");
    }

    #[test]
    fn a_folder_brings_its_weights_once() {
        let all = [
            ("config.json", 1),
            ("consolidated.safetensors", 9),
            ("model-00001-of-00002.safetensors", 5),
            ("model-00002-of-00002.safetensors", 4),
            ("model.safetensors.index.json", 1),
            ("onnx/model.onnx", 9),
            ("pytorch_model.bin", 9),
            ("tokenizer.json", 2),
        ];
        let chosen = model(&all, None, None).expect("a folder");
        assert_eq!((chosen.opened.as_str(), chosen.files), ("", vec![0, 2, 3, 4, 7]));
        let nested = [("hf-bf16/config.json", 1), ("hf-bf16/model.safetensors", 2)];
        assert_eq!(model(&nested, None, None).expect("a folder").opened, "hf-bf16");
        let both = [&nested[..], &[("hf-f32/config.json", 1)]].concat();
        let error = model(&both, None, None).expect_err("two");
        assert!(error.hint().is_some_and(|hint| hint.contains("hf:me/x/hf-f32")));
        assert_eq!(model(&both, Some("hf-f32/"), None).expect("named").opened, "hf-f32");
    }

    #[test]
    fn what_is_not_there_or_may_be_two_things_is_said() {
        let two = [("a-q4_k_m.gguf", 1), ("b-q4_k_m.gguf", 1)];
        assert!(model(&two, None, None).expect_err("two").hint().is_some());
        assert!(
            model(&two, Some("c.gguf"), None).expect_err("none").to_string().contains("c.gguf")
        );
        assert!(model(&[("notes.txt", 1)], None, None).is_err());
        let named = [("m.pth", 5), ("config.json", 1), ("other.bin", 2)];
        let chosen = model(&named, Some("m.pth"), None).expect("named");
        assert_eq!((chosen.opened.as_str(), chosen.files), ("m.pth", vec![0, 1]));
    }
}
