//! `mmx inspect`: the contents of a model's files.

use std::path::{Path, PathBuf};

use mmx_converters::Model;
use mmx_converters::arch::{Config, Layout};
use mmx_converters::file::Bytes;
use mmx_converters::gguf::{GgmlType, Gguf, Value};
use mmx_converters::model::adapter;
use mmx_converters::pth::{Pth, PthTensor};
use mmx_converters::safetensors::{Described, SafeTensors};
use mmx_converters::tensor::{Dtype, TensorView};
use mmx_converters::words::counted;
use mmx_ggml::FileType;
use serde_json::json;

use crate::error::{Error, Result};
use crate::format::{self, line};
use crate::talk::warning;
use mmx_converters::digest;

/// Show what a model's files hold: keys, tensors, sizes, digests
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A tensor's digest is the sha256 of its values as little-endian float32, row by row: the same for the
same values in any format that holds a tensor whole and in the same order.

Examples:
  mmx inspect runs/first
  mmx inspect minimind-26M-q4_0.gguf --tensors
  mmx inspect minimind-26M-q4_0.gguf --keys --json")]
pub(crate) struct InspectArgs {
    /// A checkpoint or Transformers folder, a .gguf, a .safetensors or a .pth
    model: PathBuf,
    /// List the tensors, with digests of their values
    #[arg(long)]
    tensors: bool,
    /// List the keys; with --json the arrays in full
    #[arg(long)]
    keys: bool,
}

/// A model's contents as they are shown, whatever the format.
struct Shown {
    format: &'static str,
    config: Option<Config>,
    files: Vec<PathBuf>,
    file_type: Option<String>,
    keys: Vec<(String, serde_json::Value, String)>,
    tensors: Vec<Tensor>,
    notes: Vec<String>,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    ty: &'static str,
    bytes: usize,
    digest: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be opened.
pub(crate) fn run(args: &InspectArgs, json: bool) -> Result<()> {
    let path = &mmx_hub::resolve(&args.model)?;
    let shown = if path.is_dir() {
        folder(path, args)?
    } else {
        let bytes = Bytes::map(path)?;
        match bytes.get(..4) {
            Some(b"GGUF") => gguf(path, args)?,
            Some(b"PK\x03\x04") => pth(path, args)?,
            _ => safetensors(path, args)?,
        }
    };
    let files = shown.files.iter().map(|file| Ok((file, size_and_digest(file)?)));
    let files: Vec<_> = files.collect::<Result<_>>()?;
    shown.notes.iter().for_each(|note| warning!("{note}"));
    if json {
        return print_json(path, args, &shown, &files);
    }
    format::print(&text(path, args, &shown, &files))
}

type Files<'a> = Vec<(&'a PathBuf, (u64, String))>;

fn size_and_digest(path: &Path) -> Result<(u64, String)> {
    let bytes = Bytes::map(path)?;
    Ok((bytes.len() as u64, digest::of_bytes(&bytes)))
}

fn values_digest(dtype: Dtype, data: &[u8]) -> String {
    let single =
        mmx_converters::tensor::convert(std::borrow::Cow::Borrowed(data), dtype, Dtype::F32);
    digest::of_bytes(&single)
}

fn gguf(path: &Path, args: &InspectArgs) -> Result<Shown> {
    let file = Gguf::open(path)?;
    let mut notes = Vec::new();
    // other architectures, adapters and importance matrices are shown too; the latter two are no
    // models
    let kind = file.metadata().string("general.type").unwrap_or("model");
    let is_model = kind == "model";
    let config = match Config::from_gguf(&file) {
        Ok(config) => {
            if is_model && let Err(error) = Model::open(path) {
                notes.push(error.to_string());
            }
            Some(config)
        }
        Err(error) => {
            notes.extend(is_model.then(|| error.to_string()));
            None
        }
    };
    let config = config.filter(|_| is_model);
    let mut tensors = Vec::new();
    for tensor in file.tensors() {
        let digest =
            args.tensors.then(|| digest_as_f32(tensor.ty, file.data(tensor), tensor.elements()));
        tensors.push(Tensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ty: tensor.ty.name(),
            bytes: tensor.bytes,
            digest: digest.transpose()?.flatten(),
        });
    }
    let file_type = file.metadata().get("general.file_type").and_then(Value::as_u64);
    let file_type = file_type.and_then(|id| FileType::from_id(u32::try_from(id).ok()?));
    let keys = file
        .metadata()
        .iter()
        .map(|(key, value)| (key.to_owned(), value_json(value, args.keys), value.describe()))
        .collect();
    Ok(Shown {
        format: "gguf",
        config,
        files: file.files().map(|(path, _)| path.to_owned()).collect(),
        file_type: file_type.map(|ty| ty.to_string()),
        keys,
        tensors,
        notes,
    })
}

/// Nothing for integers, which have no digest of float values.
fn digest_as_f32(ty: GgmlType, data: &[u8], elements: usize) -> Result<Option<String>> {
    match ty.dtype() {
        Some(Dtype::I32 | Dtype::I64) => Ok(None),
        Some(dtype) => Ok(Some(values_digest(dtype, data))),
        None if mmx_ggml::quant::is_quantizable(ty) => {
            let values = mmx_ggml::quant::dequantize_rows(ty, data, elements)?;
            let bytes = mmx_converters::tensor::encode_f32(&values, Dtype::F32);
            Ok(Some(values_digest(Dtype::F32, &bytes)))
        }
        None => Ok(None),
    }
}

fn folder(path: &Path, args: &InspectArgs) -> Result<Shown> {
    let path = &mmx_hub::resolve(path)?;
    let model = Model::open(path)?;
    // of adapters what the folder itself holds, not the model they are for
    let adapters = match model.adapters() {
        Some(_) => Some(SafeTensors::open(path.join(adapter::WEIGHTS_NAME))?),
        None => None,
    };
    let Some(file) = adapters.as_ref().or(model.safetensors()) else {
        return Err(Error::failed(format!(
            "{}: expected safetensors, found another form",
            path.display()
        )));
    };
    let config_path = path.join(match adapters {
        Some(_) => adapter::CONFIG_NAME,
        None => "config.json",
    });
    let text = fs_err::read_to_string(&config_path).map_err(|e| Error::io(&config_path, e))?;
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)
        .map_err(|e| Error::failed(format!("{}: {e}", config_path.display())))?;
    let own = object
        .get("model_type")
        .and_then(|t| t.as_str())
        .is_none_or(|name| name.starts_with("minimind"));
    let keys = object
        .into_iter()
        .map(|(key, value)| {
            let text = value.to_string();
            (key, value, text)
        })
        .collect();
    let format = match (&adapters, own || model.layout == Layout::Reference) {
        (Some(_), _) => "peft",
        (None, true) => "minimind",
        (None, false) => "transformers",
    };
    let dtype = mmx_models::export::dtype_name(model.dtype()).to_owned();
    Ok(Shown {
        format,
        files: file.files().map(Path::to_owned).collect(),
        file_type: adapters.is_none().then_some(dtype),
        keys,
        tensors: safetensors_tensors(file, args),
        notes: model.warnings.clone(),
        config: Some(model.config),
    })
}

fn safetensors(path: &Path, args: &InspectArgs) -> Result<Shown> {
    let file = SafeTensors::open(path)?;
    let keys = file
        .metadata()
        .iter()
        .map(|(key, text)| (key.clone(), json!(text), format!("{text:?}")))
        .collect();
    Ok(Shown {
        format: "safetensors",
        config: None,
        files: vec![path.to_owned()],
        file_type: None,
        keys,
        tensors: safetensors_tensors(&file, args),
        notes: Vec::new(),
    })
}

fn pth(path: &Path, args: &InspectArgs) -> Result<Shown> {
    let file = Pth::open(path)?;
    let of = |tensor: &PthTensor| {
        let elements: usize = tensor.shape.iter().product();
        Tensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ty: tensor.dtype.safetensors_name(),
            bytes: elements * tensor.dtype.size(),
            digest: args.tensors.then(|| values_digest(tensor.dtype, &file.data(tensor))),
        }
    };
    let mut notes = file.notes().to_vec();
    let others: Vec<String> = file.others().map(|(name, ty)| format!("{name} ({ty})")).collect();
    if !others.is_empty() {
        notes.push(format!(
            "{}: tensors of types that mmx does not compute with: {}",
            path.display(),
            others.join(", ")
        ));
    }
    let model = Model::open(path).ok();
    let said = model.iter().flat_map(|model| &model.warnings);
    notes.extend(said.filter(|warning| !file.notes().contains(warning)).cloned());
    Ok(Shown {
        format: "pth",
        config: model.map(|model| model.config),
        files: vec![path.to_owned()],
        file_type: None,
        keys: Vec::new(),
        tensors: file.tensors().iter().map(of).collect(),
        notes,
    })
}

fn safetensors_tensors(file: &SafeTensors, args: &InspectArgs) -> Vec<Tensor> {
    // one of a type that mmx does not compute with has no digest
    let digest = |view: TensorView<'_>| values_digest(view.dtype, view.data);
    let of = |(name, tensor): (&str, Described<'_>)| Tensor {
        name: name.to_owned(),
        shape: tensor.shape.to_vec(),
        ty: tensor.dtype,
        bytes: tensor.bytes,
        digest: file.get(name).filter(|_| args.tensors).map(digest),
    };
    file.names().filter_map(|name| Some((name, file.describe(name)?))).map(of).collect()
}

/// A value as JSON; long arrays as their length unless `full`.
fn value_json(value: &Value, full: bool) -> serde_json::Value {
    /// Arrays up to this length are always given.
    const SHORT: usize = 16;
    if value.array_len().is_some_and(|n| n > SHORT) && !full {
        return json!({ "array": value.array_len() });
    }
    match value {
        Value::U8(n) => json!(n),
        Value::I8(n) => json!(n),
        Value::U16(n) => json!(n),
        Value::I16(n) => json!(n),
        Value::U32(n) => json!(n),
        Value::I32(n) => json!(n),
        Value::F32(x) => json!(x),
        Value::Bool(b) => json!(b),
        Value::String(text) => json!(text),
        Value::U64(n) => json!(n),
        Value::I64(n) => json!(n),
        Value::F64(x) => json!(x),
        Value::Strings(list) => json!(list),
        Value::I32s(list) => json!(list),
        Value::U32s(list) => json!(list),
        Value::F32s(list) => json!(list),
        Value::Array(list) => list.iter().map(|v| value_json(v, full)).collect(),
    }
}

fn print_json(path: &Path, args: &InspectArgs, shown: &Shown, files: &Files<'_>) -> Result<()> {
    let keys: serde_json::Map<_, _> =
        shown.keys.iter().map(|(key, value, _)| (key.clone(), value.clone())).collect();
    let tensors = shown.tensors.iter().map(|t| {
        let mut entry = json!({"name": t.name, "shape": t.shape, "type": t.ty, "bytes": t.bytes});
        if args.tensors {
            entry["sha256_f32"] = json!(t.digest);
        }
        entry
    });
    let config = shown.config.as_ref();
    let parameters = config.map(Config::parameters);
    format::print_json(&json!({
        "path": path.to_string_lossy(),
        "format": shown.format,
        "family": config.map(|c| c.family.name()),
        "architecture": architecture(shown),
        "parameters": parameters.map(|p| p.0),
        "active_parameters": parameters.map(|p| p.1),
        "type": shown.file_type,
        "bytes": files.iter().map(|(_, (bytes, _))| bytes).sum::<u64>(),
        "files": files.iter().map(|(file, (bytes, digest))| {
            json!({"path": file.to_string_lossy(), "bytes": bytes, "sha256": digest})
        }).collect::<Vec<_>>(),
        "keys": keys,
        "tensors": tensors.collect::<Vec<_>>(),
        "warnings": shown.notes,
    }))
}

/// The architecture's name in the format at hand.
fn architecture(shown: &Shown) -> Option<String> {
    let key = if shown.format == "gguf" { "general.architecture" } else { "architectures" };
    let found = shown.keys.iter().find(|(name, _, _)| name == key).map(|(_, value, _)| value);
    let named = found.and_then(|v| v.as_str().or_else(|| v.get(0)?.as_str())).map(str::to_owned);
    named.or_else(|| shown.config.as_ref().map(|c| c.family.transformers_class().to_owned()))
}

fn text(path: &Path, args: &InspectArgs, shown: &Shown, files: &Files<'_>) -> String {
    let mut text = String::new();
    line!(text, "{}", path.display());
    let mut row = |name: &str, value: String| line!(text, "  {name:<13} {value}");
    row("format", shown.format.to_owned());
    if let Some(architecture) = architecture(shown) {
        row("architecture", architecture);
    }
    if let Some(config) = &shown.config {
        let (total, active) = config.parameters();
        let active = if active == total {
            String::new()
        } else {
            format!(", {} per token", format::count(active))
        };
        row("family", config.family.name().to_owned());
        row("parameters", format!("{}{active}", format::count(total)));
        row(
            "dimensions",
            format!(
                "{}, hidden {}, ffn {}, {} of {}, {}, vocab {}, context {}",
                counted(config.num_hidden_layers, "layer"),
                config.hidden_size,
                config.intermediate_size,
                counted(config.num_attention_heads, "head"),
                config.head_dim,
                counted(config.num_key_value_heads, "kv head"),
                config.vocab_size,
                config.max_position_embeddings
            ),
        );
        if let Some(moe) = &config.moe {
            row(
                "experts",
                format!(
                    "{} routed, {} per token, {} shared",
                    moe.num_experts, moe.num_experts_per_tok, moe.shared_experts
                ),
            );
        }
        row("head", if config.tie_word_embeddings { "tied" } else { "its own" }.to_owned());
    }
    if let Some(ty) = &shown.file_type {
        row("type", ty.clone());
    }
    row("tensors", by_type(&shown.tensors));
    for (file, (bytes, digest)) in files {
        row("file", format!("{} ({})", file.display(), format::bytes(*bytes)));
        row("sha256", digest.clone());
    }
    if args.keys {
        line!(text, "\n{}", counted(shown.keys.len(), "key"));
        shown.keys.iter().for_each(|(key, _, value)| line!(text, "  {key} = {value}"));
    }
    if args.tensors {
        line!(text, "\n{}", counted(shown.tensors.len(), "tensor"));
        for tensor in &shown.tensors {
            let digest = tensor.digest.as_deref().map_or("", |d| &d[..16]);
            line!(
                text,
                "  {:<52} {:<16} {:<5} {:>10}  {digest}",
                tensor.name,
                format!("{:?}", tensor.shape),
                tensor.ty,
                format::bytes(tensor.bytes as u64)
            );
        }
    }
    text
}

/// `74 in all: 57 Q4_0 (14.3 MB), 17 F32 (35.0 kB)`.
fn by_type(tensors: &[Tensor]) -> String {
    let mut types: Vec<(&str, usize, u64)> = Vec::new();
    for tensor in tensors {
        match types.iter_mut().find(|(ty, _, _)| *ty == tensor.ty) {
            Some((_, count, bytes)) => {
                *count += 1;
                *bytes += tensor.bytes as u64;
            }
            None => types.push((tensor.ty, 1, tensor.bytes as u64)),
        }
    }
    types.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
    let parts: Vec<String> = types
        .iter()
        .map(|(ty, count, bytes)| format!("{count} {ty} ({})", format::bytes(*bytes)))
        .collect();
    format!("{} in all: {}", tensors.len(), parts.join(", "))
}
