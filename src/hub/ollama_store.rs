//! A model in the store of the Ollama on this machine: its manifest, and the GGUF that this names.
//!
//! ```text
//! manifests/HOST/NAMESPACE/MODEL/TAG    {"layers": [{"mediaType", "digest": "sha256:...", "size"}]}
//! blobs/sha256-...                      contents
//! ```
//!
//! Source: Ollama 0.33, `types/model/name.go`, `manifest`, `envconfig`; the peers open what a real
//! one made.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::environment::{expanded, user_folder, variable};
use mmx_converters::{Error, Result};

/// What a name means that says no more than a model.
const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";
/// The layer that is the model.
const MODEL: &str = "application/vnd.ollama.image.model";
/// Where Ollama's installer for Linux lets the service keep its models. Source: its install.sh.
const SERVICE: &str = "/usr/share/ollama/.ollama/models";

/// The GGUF of a model, by its name as `ollama run` takes it (`[HOST/][NAMESPACE/]MODEL[:TAG]`), in
/// the store of `OLLAMA_MODELS`, else of the user's own Ollama or of the service's.
///
/// # Errors
/// A name that is none, no such model (those that are there are named), a model of another kind
/// than one GGUF, a content that is missing.
pub fn find(name: &str) -> Result<PathBuf> {
    let (parts, tag) = read(name)?;
    let stores: Vec<PathBuf> = match variable("OLLAMA_MODELS") {
        Some(folder) => vec![expanded(&folder)],
        None => {
            let own = user_folder().map(|home| home.join(".ollama").join("models"));
            own.into_iter().chain([PathBuf::from(SERVICE)]).collect()
        }
    };
    for store in &stores {
        let manifest = parts.iter().fold(store.join("manifests"), |path, part| path.join(part));
        // Windows has no colon in names: the tag is a file in the model's folder everywhere
        if let Ok(text) = fs_err::read(manifest.join(&tag)) {
            return gguf(store, &manifest.join(&tag), &text);
        }
    }
    let there: Vec<String> = stores.iter().flat_map(|store| names(store)).collect();
    let there = match there.is_empty() {
        true => "no model".to_owned(),
        false => there.join(", "),
    };
    let places: Vec<_> = stores.iter().map(|store| store.display().to_string()).collect();
    Err(Error::failed_with_hint(
        format!("ollama:{name}: expected a model in {}, found {there}", places.join(" or ")),
        "OLLAMA_MODELS names another store; `ollama pull` fetches a model into it",
    ))
}

/// Host, namespace and model, and the tag.
fn read(name: &str) -> Result<([String; 3], String)> {
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag), // else the colon is a port's
        _ => (name, TAG),
    };
    let parts: Vec<&str> = path.split('/').collect();
    let parts = match *parts.as_slice() {
        [model] => [HOST, NAMESPACE, model],
        [namespace, model] => [HOST, namespace, model],
        [host, namespace, model] => [host, namespace, model],
        _ => [""; 3],
    };
    let fit = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c))
    };
    match parts.iter().all(|part| fit(part)) && fit(tag) {
        true => Ok((parts.map(str::to_owned), tag.to_owned())),
        false => Err(Error::misuse(format!(
            "ollama:{name}: expected [HOST/][NAMESPACE/]MODEL[:TAG] of letters, digits, - _ and ."
        ))),
    }
}

/// The content that a manifest calls the model.
fn gguf(store: &Path, manifest: &Path, text: &[u8]) -> Result<PathBuf> {
    let value: Value = serde_json::from_slice(text)
        .map_err(|e| Error::format(manifest, format!("expected JSON: {e}")))?;
    let layers = value["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let models: Vec<&Value> = layers.iter().filter(|layer| layer["mediaType"] == MODEL).collect();
    let [model] = models.as_slice() else {
        let message = format!("expected one layer {MODEL}, found {}", models.len());
        return Err(Error::format(manifest, message));
    };
    if let Some(other) = layers
        .iter()
        .filter_map(|layer| layer["mediaType"].as_str())
        .find(|kind| kind.ends_with(".adapter") || kind.ends_with(".tensor"))
    {
        let message = format!("expected a model in one GGUF, found a layer {other} besides");
        return Err(Error::format(manifest, message));
    }
    let digest = model["digest"].as_str().and_then(|text| text.strip_prefix("sha256:"));
    let digest = digest.filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    let Some(digest) = digest else {
        let message = format!("expected a digest sha256:..., found {}", model["digest"]);
        return Err(Error::format(manifest, message));
    };
    let blob = store.join("blobs").join(format!("sha256-{digest}"));
    let bytes = fs_err::metadata(&blob).map_err(|e| Error::io(&blob, e))?.len();
    match model["size"].as_u64() {
        Some(expected) if expected != bytes => {
            Err(Error::format(&blob, format!("expected {expected} bytes, found {bytes}")))
        }
        _ => Ok(blob),
    }
}

/// The models of a store, as `ollama list` spells them.
fn names(store: &Path) -> Vec<String> {
    let manifests = store.join("manifests");
    let files = super::snapshot::walk(&manifests).unwrap_or_default();
    let name = |path: &str| {
        let (rest, tag) = path.rsplit_once('/')?;
        let own = rest.strip_prefix(HOST).and_then(|rest| rest.strip_prefix('/'));
        let rest = own.map_or(rest, |rest| rest.strip_prefix("library/").unwrap_or(rest));
        Some(format!("{rest}:{tag}"))
    };
    files.iter().filter_map(|file| name(&file.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_ollama_reads_them() {
        for (name, path, tag) in [
            ("tiny", "registry.ollama.ai/library/tiny", "latest"),
            ("tiny:0.6b-q4_K_M", "registry.ollama.ai/library/tiny", "0.6b-q4_K_M"),
            ("me/tiny", "registry.ollama.ai/me/tiny", "latest"),
            ("hf.co/me/tiny:Q8_0", "hf.co/me/tiny", "Q8_0"),
            ("box:5000/me/tiny", "box:5000/me/tiny", "latest"),
        ] {
            let (parts, found) = read(name).expect(name);
            assert_eq!((parts.join("/").as_str(), found.as_str()), (path, tag), "{name}");
        }
        for bad in ["", "a//b", "../x", "a/b/c/d", "a:", "a b"] {
            assert!(read(bad).expect_err(bad).is_misuse(), "{bad}");
        }
    }

    #[test]
    fn the_models_content_is_found_and_what_is_there_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = dir.path();
        let folder = store.join("manifests/registry.ollama.ai/library/tiny");
        fs_err::create_dir_all(&folder).expect("a folder");
        fs_err::create_dir_all(store.join("blobs")).expect("a folder");
        let manifest = |layers: &str| {
            let text = format!("{{\"schemaVersion\":2,\"layers\":[{layers}]}}");
            gguf(store, &folder.join("latest"), text.as_bytes())
        };
        let model = format!("{{\"mediaType\":\"{MODEL}\",\"digest\":\"sha256:ab12\",\"size\":3}}");
        assert!(manifest(&model).expect_err("no content").to_string().contains("sha256-ab12"));
        let blob = store.join("blobs/sha256-ab12");
        fs_err::write(&blob, "abc").expect("a file");
        assert_eq!(manifest(&model).expect("a model"), blob);
        let adapter = "{\"mediaType\":\"application/vnd.ollama.image.adapter\",\"digest\":\"x\"}";
        let error = manifest(&format!("{model},{adapter}")).expect_err("two").to_string();
        assert!(error.contains("image.adapter"), "{error}");
        assert!(manifest("").is_err());
        assert!(manifest(&model.replace("ab12", "../x")).is_err());
        fs_err::write(folder.join("latest"), "{}").expect("a file");
        assert_eq!(names(store), ["tiny:latest"]);
    }
}
