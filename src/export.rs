//! A checkpoint to the files others read: Transformers folders and GGUFs, several from one opening.
//!
//! In: a [`Request`]. Out: a [`Report`] of every file, and of every tensor that did not get the type asked
//! for. Everything that could be refused is looked at before the first file is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mmx_converters::Model;
use mmx_converters::arch::{Layout, Weight, weights};
use mmx_converters::carry::{self, Fallback};
use mmx_converters::chat::{self, Template};
use mmx_converters::folder::{self, Folder};
use mmx_converters::gguf::{GgmlType, Value};
use mmx_converters::modelfile::{self, Modelfile};
use mmx_converters::tensor::Dtype;
use mmx_converters::to_gguf::{ToGguf, size_label};
use mmx_converters::tokenizer::Tokenizer;
use mmx_ggml::FileType;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::{quantizing, runs};

/// What to export.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The model; nothing for the newest checkpoint under `runs/`.
    pub model: Option<PathBuf>,
    /// Where the files go; nothing for `MODEL/export`.
    pub out: Option<PathBuf>,
    /// Where the tokenizer is, if not beside the weights.
    pub tokenizer: Option<PathBuf>,
    /// Transformers folders, by element type.
    pub hf: Vec<Dtype>,
    /// GGUFs, by file type.
    pub gguf: Vec<FileType>,
    /// Nothing was asked for in particular: a Transformers folder in the model's own element type, and a
    /// GGUF of type q8_0.
    pub everything: bool,
    /// A torch checkpoint under MiniMind's own names, in the model's own element type.
    pub pth: bool,
    /// A Modelfile for Ollama beside the GGUFs.
    pub ollama: Option<Ollama>,
    /// A fallback is an error.
    pub strict: bool,
    /// The model's name; nothing for its folder's.
    pub name: Option<String>,
    /// An SPDX licence name.
    pub license: Option<String>,
}

/// What a Modelfile says beyond the GGUF.
#[derive(Clone, Debug, Default)]
pub struct Ollama {
    /// A Go template, for versions of Ollama that do not render the GGUF's own.
    pub template: bool,
    /// The default system prompt.
    pub system: Option<String>,
}

/// What was exported.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model.
    pub model: PathBuf,
    /// The files, in the order written.
    pub files: Vec<Exported>,
    /// Tensors that did not get the type asked for.
    pub fallbacks: Vec<FileFallback>,
    /// Sentences for the user.
    pub warnings: Vec<String>,
}

/// A file written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// The file.
    pub path: PathBuf,
    /// `transformers`, `gguf`, `pth`, `ollama` or `checkpoint`.
    pub format: &'static str,
    /// Element or file type, as on the command line.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its size.
    pub bytes: u64,
    /// Time it took; a folder's time stands at its weights.
    pub seconds: f64,
}

/// A fallback, and the file it is in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileFallback {
    /// The file.
    pub path: PathBuf,
    /// What happened.
    #[serde(flatten)]
    pub fallback: Fallback,
}

/// The name of an element type on the command line.
pub fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        _ => "f32",
    }
}

/// A model open for export or import, with its tokenizer.
pub struct Source {
    /// The model.
    pub model: Model,
    /// Its tokenizer, if there is one.
    pub tokenizer: Option<Tokenizer>,
}

impl Source {
    /// Opens a model; its tokenizer comes from `tokenizer`, else from beside the weights, else from the
    /// GGUF's keys. The tokenizer's end tokens join the model's stop set.
    ///
    /// # Errors
    /// Whatever is wrong with either.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        Self::with_model(Model::open(crate::runs::resolve(path)?)?, tokenizer)
    }

    /// The same for a model that is open.
    ///
    /// # Errors
    /// Whatever is wrong with the tokenizer.
    pub fn with_model(mut model: Model, tokenizer: Option<&Path>) -> Result<Self> {
        let tokenizer = match (tokenizer, model.gguf()) {
            (Some(path), _) => Some(Tokenizer::open(path)?),
            (None, Some(gguf)) => match gguf.metadata().get("tokenizer.ggml.tokens") {
                Some(_) => Some(Tokenizer::from_gguf(gguf.metadata(), gguf.path())?),
                None => None,
            },
            (None, None) => match folder_of(&model.path).join("tokenizer.json") {
                path if path.exists() => Some(Tokenizer::open(path)?),
                _ => None,
            },
        };
        if let Some(tokenizer) = &tokenizer {
            let stops = tokenizer.stop_ids(&model.config.eos_token_id);
            model.config.eos_token_id = stops;
            if tokenizer.vocab_size() > model.config.vocab_size {
                return Err(Error::failed(format!(
                    "{}: expected at most {} tokens (the model's vocab_size), found {}",
                    tokenizer.path().display(),
                    model.config.vocab_size,
                    tokenizer.vocab_size()
                )));
            }
        }
        Ok(Self { model, tokenizer })
    }

    /// A weight as the writers want it.
    ///
    /// # Errors
    /// What the dequantizer returns.
    pub fn weight(
        &self,
        weight: &Weight,
    ) -> mmx_converters::Result<(Dtype, std::borrow::Cow<'_, [u8]>)> {
        self.model.weight_with(weight, &quantizing::dequantize)
    }

    /// Writes a folder.
    ///
    /// # Errors
    /// See [`folder::write`].
    pub fn write_folder(
        &self,
        dir: &Path,
        layout: Layout,
        dtype: Dtype,
        strict: bool,
    ) -> Result<folder::Written> {
        let metadata = BTreeMap::new();
        let save =
            |dir: &Path| self.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.save(dir));
        let folder = Folder {
            config: &self.model.config,
            layout,
            dtype,
            generation: &self.model.generation,
            tokenizer: Some(&save),
            metadata: &metadata,
            strict,
        };
        Ok(folder::write(dir, &folder, &mut |weight| self.weight(weight))?)
    }
}

/// The folder a model lies in: itself, or its file's.
fn folder_of(model: &Path) -> &Path {
    if model.is_dir() { model } else { model.parent().unwrap_or(Path::new(".")) }
}

/// Exports a model.
///
/// # Errors
/// A model or tokenizer that cannot be opened, or that a target cannot carry exactly, with the reason: then
/// nothing has been written. A file that the system refuses.
pub fn export(request: &Request) -> Result<Report> {
    let mut request = request.clone();
    let asked = match &request.model {
        Some(path) => path.clone(),
        None => newest_checkpoint(Path::new("runs"))?,
    };
    let path = runs::resolve(&asked)?;
    let source = Source::open(&path, request.tokenizer.as_deref())?;
    if request.everything {
        request.hf.push(source.model.dtype());
        request.gguf.push(FileType::Q8_0);
    }
    if request.ollama.is_some() && request.gguf.is_empty() {
        request.gguf.push(FileType::Q8_0);
    }
    let config = &source.model.config;
    let out = request.out.clone().unwrap_or_else(|| folder_of(&asked).join("export"));
    let name = request.name.clone().unwrap_or_else(|| model_name(&path));
    let mut warnings = source.model.warnings.clone();

    // what may be refused, before anything is written
    if !request.hf.is_empty() {
        config.check_carried_by(Layout::Transformers)?;
    }
    let tokenizer_keys = match (&source.tokenizer, request.gguf.is_empty()) {
        (Some(tokenizer), false) => tokenizer.to_gguf_keys(config)?,
        _ => Vec::new(),
    };
    if !request.gguf.is_empty() {
        config.check_carried_by(Layout::Gguf)?;
    }
    let tokenizer_keys = match &source.tokenizer {
        Some(_) => tokenizer_keys,
        None => {
            let message = format!(
                "{}: found no tokenizer.json: the files hold no tokenizer and take ids only",
                folder_of(&path).display()
            );
            warnings.push(format!("{message} (--tokenizer DIR says where it is)"));
            ids_only(config)
        }
    };
    let table = weights(config);
    if request.strict {
        for &dtype in &request.hf {
            let layout = Layout::Transformers;
            let fallbacks =
                carry::float_fallbacks(&table, layout, dtype, &mut |w| source.weight(w))?;
            carry::refuse_fallbacks(&format!("--hf {}", dtype_name(dtype)), &fallbacks)?;
        }
    }
    let label = size_label(config, &table);
    let gguf_of = |file_type: FileType| out.join(format!("{name}-{label}-{file_type}.gguf"));
    let mut modelfiles = Vec::new();
    if let Some(ollama) = &request.ollama {
        for (i, &file_type) in request.gguf.iter().enumerate() {
            let gguf = gguf_of(file_type);
            let written = modelfile(&source, ollama, &gguf, request.license.as_deref())?;
            warnings.extend(written.warnings);
            // the first one is what `ollama create` finds by itself
            let name =
                if i == 0 { "Modelfile".to_owned() } else { format!("Modelfile-{file_type}") };
            modelfiles.push((out.join(name), file_type, written.text));
        }
    }
    let recipes: Vec<(FileType, TypeOf<'_>)> = request
        .gguf
        .iter()
        .map(|&file_type| {
            let recipe: TypeOf<'_> =
                Box::new(move |name, shape| quantizing::recipe(file_type, config, name, shape));
            (file_type, recipe)
        })
        .collect();
    let specs = recipes.iter().map(|(file_type, recipe)| {
        let spec = ToGguf {
            config,
            name: &name,
            license: request.license.as_deref(),
            generation: &source.model.generation,
            file_type: file_type.id(),
            tokenizer: &tokenizer_keys,
            recipe,
            quantize: &quantizing::quantize,
            strict: request.strict,
        };
        (*file_type, spec)
    });
    if request.strict {
        for (file_type, spec) in specs.clone() {
            spec.check(&gguf_of(file_type), &mut |w| source.weight(w))?;
        }
    }

    let mut files = Vec::new();
    let mut fallbacks = Vec::new();
    for &dtype in &request.hf {
        let begin = Instant::now();
        let dir = out.join(format!("hf-{}", dtype_name(dtype)));
        let written = source.write_folder(&dir, Layout::Transformers, dtype, request.strict)?;
        let seconds = begin.elapsed().as_secs_f64();
        for (path, bytes) in written.files {
            let weights = path.extension().is_some_and(|e| e == "safetensors");
            files.push(Exported {
                path,
                format: "transformers",
                ty: dtype_name(dtype).to_owned(),
                bytes,
                seconds: if weights { seconds } else { 0.0 },
            });
        }
        let path = dir.join("model.safetensors");
        let of_file = |fallback| FileFallback { path: path.clone(), fallback };
        fallbacks.extend(written.fallbacks.into_iter().map(of_file));
    }
    if !request.gguf.is_empty() || request.pth {
        fs_err::create_dir_all(&out).map_err(|e| Error::io(&out, e))?;
    }
    if request.pth {
        let begin = Instant::now();
        let path = out.join(format!("{name}-{label}.pth"));
        let dtype = source.model.dtype();
        let bytes = mmx_converters::pth::write(&path, config, dtype, &mut |w| source.weight(w))?;
        files.push(Exported {
            path,
            format: "pth",
            ty: dtype_name(dtype).to_owned(),
            bytes,
            seconds: begin.elapsed().as_secs_f64(),
        });
    }
    for (file_type, spec) in specs {
        let begin = Instant::now();
        let path = gguf_of(file_type);
        let (bytes, found) = spec.write(&path, &mut |w| source.weight(w))?;
        let of_file = |fallback| FileFallback { path: path.clone(), fallback };
        fallbacks.extend(found.into_iter().map(of_file));
        files.push(Exported {
            path: path.clone(),
            format: "gguf",
            ty: file_type.to_string(),
            bytes,
            seconds: begin.elapsed().as_secs_f64(),
        });
    }
    for (path, file_type, text) in modelfiles {
        mmx_converters::file::write_bytes(&path, text.as_bytes())?;
        files.push(Exported {
            path,
            format: "ollama",
            ty: file_type.to_string(),
            bytes: text.len() as u64,
            seconds: 0.0,
        });
    }
    Ok(Report { model: path, files, fallbacks, warnings })
}

/// The Modelfile of a GGUF beside it.
fn modelfile(
    source: &Source,
    ollama: &Ollama,
    gguf: &Path,
    license: Option<&str>,
) -> Result<modelfile::Written> {
    let template = source.tokenizer.as_ref().and_then(Tokenizer::template);
    let Some(template) = template else {
        return Err(Error::failed_with_hint(
            "--ollama: expected a chat template, found none: Ollama would send bare text",
            "--tokenizer DIR says where the tokenizer and its template are",
        ));
    };
    let name = gguf.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut file = Modelfile::chat(name, source.model.config.max_position_embeddings);
    let generation = &source.model.generation;
    file.parameters.retain(|(name, _)| name != "temperature" && name != "top_p");
    let settings = [
        ("temperature", generation.temperature.map(|x| x.to_string())),
        ("top_p", generation.top_p.map(|x| x.to_string())),
        ("top_k", generation.top_k.map(|k| k.to_string())),
        ("min_p", generation.min_p.map(|x| x.to_string())),
        ("repeat_penalty", generation.repetition_penalty.map(|x| x.to_string())),
    ];
    let greedy = ("temperature".to_owned(), "0".to_owned());
    if generation.do_sample {
        let given = settings.into_iter().filter_map(|(name, x)| Some((name.to_owned(), x?)));
        file.parameters.extend(given);
    } else {
        file.parameters.push(greedy);
    }
    if ollama.template {
        if !is_minimind2_chat(template) {
            return Err(Error::failed(
                "--ollama-template: expected MiniMind2's chat template, found another one, which has no \
                 Go form here; Ollama renders the GGUF's own",
            ));
        }
        file.template = Some(modelfile::go_template::MINIMIND2.to_owned());
    }
    file.system.clone_from(&ollama.system);
    file.licenses = license.into_iter().map(str::to_owned).collect();
    Ok(file.write()?)
}

/// True for a template that renders what the Go template of MiniMind2 does, tried on two chats.
fn is_minimind2_chat(template: &Template) -> bool {
    let turn = chat::message;
    let opened = |system: &str| {
        format!(
            "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
        )
    };
    let long = format!(
        "{}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
        opened("s")
    );
    let chats = [
        (vec![turn("user", "a")], opened("You are a helpful assistant")),
        (
            vec![turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
            long,
        ),
    ];
    let same = |(messages, expected): &(Vec<serde_json::Value>, String)| {
        template.render(messages, &chat::Options::generation()).is_ok_and(|text| text == *expected)
    };
    chats.iter().all(same)
}

/// A recipe for one file type.
type TypeOf<'a> = Box<dyn Fn(&str, &[usize]) -> (GgmlType, Option<Fallback>) + 'a>;

/// The tokenizer keys of a model without a tokenizer: llama.cpp loads such a file and takes ids.
fn ids_only(config: &mmx_converters::arch::Config) -> Vec<(String, Value)> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let eos = config.eos_token_id.first().copied().unwrap_or(2);
    vec![
        (key("model"), Value::String("none".to_owned())),
        (key("bos_token_id"), Value::U32(config.bos_token_id)),
        (key("eos_token_id"), Value::U32(eos)),
        (key("padding_token_id"), Value::U32(config.pad_token_id)),
    ]
}

/// A model's name from its path, as a file name may hold it: `runs/first` and `runs/first/checkpoint-000100`
/// are `first`.
fn model_name(path: &Path) -> String {
    let full = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
    // a run's checkpoint has the run's name
    let checkpoint = stem.is_some_and(|s| s.as_encoded_bytes().starts_with(b"checkpoint-"));
    let run = full.parent().and_then(Path::file_name).filter(|_| checkpoint);
    let text = run.or(stem).map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let plain: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    let plain = plain.trim_matches(['.', '-']).to_owned();
    if plain.is_empty() { "model".to_owned() } else { plain }
}

/// The folder with config.json and model.safetensors under `runs` whose weights were written last.
/// Exports are not looked at.
///
/// # Errors
/// There is none.
pub fn newest_checkpoint(runs: &Path) -> Result<PathBuf> {
    /// Folders below `runs` that are looked into: runs/NAME/checkpoints/STEP.
    const DEPTH: usize = 4;
    let mut newest: Option<(std::time::SystemTime, PathBuf)> = None;
    let mut folders = vec![(runs.to_owned(), 0)];
    while let Some((dir, depth)) = folders.pop() {
        let weights = dir.join(mmx_converters::safetensors::FILE_NAME);
        if dir.join("config.json").is_file()
            && let Ok(written) = fs_err::metadata(&weights).and_then(|m| m.modified())
            && newest.as_ref().is_none_or(|(time, path)| (written, &dir) > (*time, path))
        {
            newest = Some((written, dir.clone()));
        }
        let Ok(entries) = fs_err::read_dir(&dir) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let hidden = path
                .file_name()
                .is_none_or(|n| n == "export" || n.as_encoded_bytes().starts_with(b"."));
            if depth < DEPTH && !hidden && path.is_dir() {
                folders.push((path, depth + 1));
            }
        }
    }
    newest.map(|(_, path)| path).ok_or_else(|| {
        Error::failed_with_hint(
            format!(
                "{}: expected a checkpoint (config.json and model.safetensors), found none",
                runs.display()
            ),
            "name the model: mmx export MODEL",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_files() {
        assert_eq!(model_name(Path::new("runs/my model (1)")), "my-model--1");
        assert_eq!(model_name(Path::new("/")), "model");
        assert_eq!(model_name(Path::new("a/b/tiny")), "tiny");
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("first/checkpoint-000100");
        fs_err::create_dir_all(&checkpoint).unwrap();
        assert_eq!(model_name(&checkpoint), "first");
    }

    #[test]
    fn the_newest_checkpoint_is_found_and_exports_are_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest_checkpoint(dir.path()).is_err());
        let put = |path: &str, seconds: u64| {
            let folder = dir.path().join(path);
            fs_err::create_dir_all(&folder).unwrap();
            fs_err::write(folder.join("config.json"), "{}").unwrap();
            let weights = folder.join(mmx_converters::safetensors::FILE_NAME);
            fs_err::write(&weights, "").unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            let file = fs_err::OpenOptions::new().write(true).open(&weights).unwrap();
            file.file().set_modified(time).unwrap();
        };
        put("a", 1000);
        put("b/checkpoints/step-2", 3000);
        put("b/checkpoints/step-1", 2000);
        put("b/export/hf-f32", 4000);
        assert_eq!(newest_checkpoint(dir.path()).unwrap(), dir.path().join("b/checkpoints/step-2"));
    }
}
