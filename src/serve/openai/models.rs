//! `/v1/models`: the models that are served, and one of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::served_model::ServedModel;

fn model_json(served: &ServedModel) -> Value {
    json!({
        "id": served.id,
        "object": "model",
        "created": served.created,
        "owned_by": "mmx",
        "meta": served.meta(),
    })
}

/// Answers `GET /v1/models`.
pub(crate) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app.allowed().map(|m| model_json(m)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// Answers `GET /v1/models/{id}`.
pub(crate) async fn model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = app.allowed().find(|m| m.is_called(&id));
    let text = || format!("model: expected one of the served ones, found {id:?}");
    match found {
        Some(served) => Ok(Json(model_json(served))),
        None => Err(ApiError::new(StatusCode::NOT_FOUND, text()).coded("model_not_found")),
    }
}
