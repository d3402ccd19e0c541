//! The one model that is served.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::App;
use super::super::errors::{ApiError, ErrorBody};
use crate::sampler::Sampler;

#[derive(Serialize, ToSchema)]
pub struct Models {
    object: &'static str,
    data: Vec<ModelObject>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
pub struct ModelObject {
    id: String,
    object: &'static str,
    /// When the server started, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    sdrt: Suggestions,
}

/// What the model suggests, and what there is.
#[derive(Serialize, ToSchema)]
struct Suggestions {
    family: String,
    default_size: String,
    default_steps: usize,
    default_guidance_scale: f32,
    default_sampler: &'static str,
    samplers: Vec<&'static str>,
    device: String,
    dtype: String,
}

impl ModelObject {
    fn new(app: &App) -> Self {
        let (defaults, machine) = (app.engine.defaults(), app.engine.machine());
        ModelObject {
            id: app.settings.model.clone(),
            object: "model",
            created: app.started,
            owned_by: "sdrt",
            sdrt: Suggestions {
                family: app.engine.description().family.to_string(),
                default_size: format!("{}x{}", defaults.width, defaults.height),
                default_steps: defaults.steps,
                default_guidance_scale: defaults.guidance_scale,
                default_sampler: defaults.sampler.name(),
                samplers: Sampler::ALL.map(Sampler::name).into(),
                device: machine.name.clone(),
                dtype: machine.dtype.to_string(),
            },
        }
    }
}

/// # Errors
/// Another model than the one that is served.
pub fn check(app: &App, model: Option<&str>) -> Result<(), ApiError> {
    let served = &app.settings.model;
    let Some(other) = model.filter(|model| model != served) else { return Ok(()) };
    let message = format!("model: there is no {other:?} here; this server has {served:?}");
    let error = ApiError::refused(StatusCode::NOT_FOUND, "model_not_found", message);
    Err(error.of_param(Some("model".into())))
}

/// The model that is served.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses(
    (status = 200, body = Models), (status = 401, description = "The API key is missing or wrong", body = ErrorBody)
))]
pub async fn models(State(app): State<Arc<App>>) -> Json<Models> {
    Json(Models { object: "list", data: vec![ModelObject::new(&app)] })
}

/// The model of this id.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "OpenAI", params(
    ("model" = String, Path, description = "As `/v1/models` has it")
), responses(
    (status = 200, body = ModelObject),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody)
))]
pub async fn model(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    check(&app, Some(&model))?;
    Ok(Json(ModelObject::new(&app)))
}
