//! The addresses that tell about models: `/api/tags`, `/api/ps`, `/api/show`, `/api/version` and
//! `/api/status`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::wire::{end, model};
use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::request::chat::thinks;
use crate::served_model::{ServedModel, parameters};

/// The version of Ollama whose API is answered.
const VERSION: &str = "0.33.0";

/// The capabilities of a model, in Ollama's words. Every model here has embeddings too, but
/// Ollama's clients take a model that says so for one that has nothing else: its command line would
/// answer `run` with a vector.
fn capabilities(served: &ServedModel) -> Vec<&'static str> {
    let tools = served.model.tokenizer().is_ok_and(|t| t.shows_tools());
    let all = [("completion", true), ("tools", tools), ("thinking", thinks(served))];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

/// Answers `GET /api/version`.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

/// Answers `GET /api/status`, which asks for Ollama's own cloud only.
pub(crate) async fn status() -> Json<Value> {
    Json(json!({"cloud": {"disabled": true, "source": "none"}}))
}

/// Answers `GET /api/tags`.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"models": app.allowed().map(|m| listed(m)).collect::<Vec<_>>()}))
}

/// Answers `GET /api/ps`: all models are loaded as long as the server runs.
pub(crate) async fn running(State(app): State<Arc<App>>) -> Json<Value> {
    let one = |served: &Arc<ServedModel>| {
        let mut value = listed(served);
        value["expires_at"] = "9999-12-31T23:59:59Z".into();
        value["size_vram"] = 0.into();
        value["context_length"] = served.n_ctx.into();
        value
    };
    Json(json!({"models": app.allowed().map(one).collect::<Vec<_>>()}))
}

fn listed(served: &ServedModel) -> Value {
    let time = chrono::DateTime::from_timestamp(served.created as i64, 0).unwrap_or_default();
    json!({
        "name": served.id,
        "model": served.id,
        "modified_at": time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        "size": served.model.gguf().size(),
        "digest": served.digest(),
        "details": details(served),
        "capabilities": capabilities(served),
    })
}

fn details(served: &ServedModel) -> Value {
    let family = served.model.config().family.gguf_arch();
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": format!("{:.1}M", parameters(&served.model) as f64 / 1e6),
        "quantization_level": served.quantization(),
        "context_length": served.n_ctx,
        "embedding_length": served.model.config().hidden_size,
    })
}

/// Answers `POST /api/show`.
pub(crate) async fn show(state: State<Arc<App>>, body: Bytes) -> Response {
    show_model(&state.0, &body).unwrap_or_else(ApiError::ollama)
}

fn show_model(app: &App, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = model(&mut fields)?;
    let verbose = fields.flag("verbose")?.unwrap_or(false);
    for name in ["system", "template"] {
        if fields.filled(name)?.is_some() {
            return Err(fields.fault(name, "a model is shown as it is: expected nothing"));
        }
    }
    end(fields.within("options")?)?;
    end(fields)?;
    let served = app.find(model.as_deref())?;
    let tokenizer = served.tokenizer()?;
    let template = tokenizer.template().map_or("", |t| t.source());
    let config = served.model.config();
    let arch = config.family.gguf_arch();
    let mut info = Map::new();
    for (key, value) in [
        ("general.architecture".to_owned(), json!(arch)),
        ("general.parameter_count".to_owned(), json!(parameters(&served.model))),
        (format!("{arch}.context_length"), json!(config.max_position_embeddings)),
        (format!("{arch}.embedding_length"), json!(config.hidden_size)),
        (format!("{arch}.block_count"), json!(config.num_hidden_layers)),
        (format!("{arch}.attention.head_count"), json!(config.num_attention_heads)),
        (format!("{arch}.attention.head_count_kv"), json!(config.num_key_value_heads)),
    ] {
        info.insert(key, value);
    }
    let s = &served.sampling;
    let parameters = [
        format!("temperature {}", s.temperature),
        format!("top_k {}", s.top_k),
        format!("top_p {}", s.top_p),
        format!("num_ctx {}", served.n_ctx),
    ];
    let time = chrono::DateTime::from_timestamp(served.created as i64, 0).unwrap_or_default();
    let mut shown = json!({
        "modelfile": format!("FROM {}\n", served.id),
        "parameters": parameters.join("\n"),
        "template": template,
        "details": details(&served),
        "model_info": info,
        "capabilities": capabilities(&served),
        "modified_at": time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    });
    let gguf = served.model.gguf();
    if let Some(license) = gguf.metadata().get("general.license").and_then(|l| l.as_str()) {
        shown["license"] = license.into();
    }
    if verbose {
        let tensor = |t: &mmx_converters::gguf::TensorInfo| {
            // the file's order, as Ollama gives it
            let shape: Vec<usize> = t.shape.iter().rev().copied().collect();
            json!({"name": t.name, "type": t.ty.name().to_uppercase(), "shape": shape})
        };
        shown["tensors"] = gguf.tensors().iter().map(tensor).collect();
    }
    Ok(Json(shown).into_response())
}
