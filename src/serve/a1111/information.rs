//! What there is, and what a picture says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::App;
use super::super::body;
use super::super::errors::{ApiError, ErrorBody, Refusals};
use super::super::openai;
use super::fields::from_base64;
use crate::image::{Parameters, read_text};
use crate::parameter::Interface;
use crate::sampler::{Sampler, Schedule};

#[derive(Serialize, ToSchema)]
pub struct SamplerItem {
    name: &'static str,
    aliases: [&'static str; 1],
    options: BTreeMap<&'static str, String>,
}

/// Samplers under A1111's names.
#[utoipa::path(get, path = "/sdapi/v1/samplers", tag = "A1111", responses(
    (status = 200, body = Vec<SamplerItem>),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody)
))]
pub async fn samplers() -> Json<Vec<SamplerItem>> {
    let item = |sampler: Sampler| SamplerItem {
        name: sampler.label(),
        aliases: [sampler.name()],
        options: BTreeMap::new(),
    };
    Json(Sampler::ALL.map(item).into())
}

#[derive(Serialize, ToSchema)]
pub struct SchedulerItem {
    name: &'static str,
    label: &'static str,
}

/// Schedules under A1111's names.
#[utoipa::path(get, path = "/sdapi/v1/schedulers", tag = "A1111", responses(
    (status = 200, body = Vec<SchedulerItem>),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody)
))]
pub async fn schedulers() -> Json<Vec<SchedulerItem>> {
    let item = |schedule: Schedule| match schedule {
        // Here it goes by the sampler.
        Schedule::Model => SchedulerItem { name: "automatic", label: schedule.label() },
        _ => SchedulerItem { name: schedule.name(), label: schedule.label() },
    };
    Json(Schedule::ALL.map(item).into())
}

#[derive(Serialize, ToSchema)]
pub struct SdModel {
    title: String,
    model_name: String,
    hash: Option<String>,
    sha256: Option<String>,
    filename: String,
}

/// The model that is served.
#[utoipa::path(get, path = "/sdapi/v1/sd-models", tag = "A1111", responses(
    (status = 200, body = Vec<SdModel>),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody)
))]
pub async fn sd_models(State(app): State<Arc<App>>) -> Json<Vec<SdModel>> {
    let name = || app.settings.model.clone();
    let model = SdModel { title: name(), model_name: name(), hash: None, sha256: None, filename: name() };
    Json(vec![model])
}

#[derive(Serialize, ToSchema)]
pub struct Options {
    sd_model_checkpoint: String,
    samples_format: &'static str,
    randn_source: &'static str,
    #[serde(rename = "CLIP_stop_at_last_layers")]
    clip_skip: usize,
}

/// What requests have that say nothing else.
#[utoipa::path(get, path = "/sdapi/v1/options", tag = "A1111", responses(
    (status = 200, body = Options),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody)
))]
pub async fn options(State(app): State<Arc<App>>) -> Json<Options> {
    Json(Options {
        sd_model_checkpoint: app.settings.model.clone(),
        samples_format: "png",
        randn_source: "GPU",
        clip_skip: 1,
    })
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOptions {
    sd_model_checkpoint: Option<String>,
}

/// Takes the model that is served, and no other; options are said in each request's `override_settings`.
#[utoipa::path(post, path = "/sdapi/v1/options", tag = "A1111", request_body = NewOptions, responses(
    (status = 200, description = "It is so", body = Value), Refusals
))]
pub async fn set_options(
    State(app): State<Arc<App>>,
    body::Json(options): body::Json<NewOptions>,
) -> Result<Json<Value>, ApiError> {
    openai::check(&app, options.sd_model_checkpoint.as_deref())?;
    Ok(Json(json!({})))
}

#[derive(Deserialize, ToSchema)]
pub struct PngInfo {
    /// A PNG, JPEG or WebP in Base64 or as a data URL.
    image: String,
}

#[derive(Serialize, ToSchema)]
pub struct PictureInfo {
    /// How it was painted, as A1111 writes it.
    info: String,
    items: BTreeMap<String, String>,
    /// The same by keys.
    parameters: BTreeMap<String, String>,
}

/// How a picture says that it was painted.
#[utoipa::path(post, path = "/sdapi/v1/png-info", tag = "A1111", request_body = PngInfo, responses(
    (status = 200, body = PictureInfo), Refusals
))]
pub async fn png_info(body::Json(request): body::Json<PngInfo>) -> Result<Json<PictureInfo>, ApiError> {
    let bytes = from_base64("image", &request.image)?;
    let text =
        read_text(&bytes).map_err(|message| ApiError::field("image", message.say(Interface::A1111)))?;
    let Parameters { prompt, negative_prompt, settings } = Parameters::parse(&text);
    let prompts = [("Prompt".to_string(), prompt), ("Negative prompt".to_string(), negative_prompt)];
    let items = BTreeMap::from([("parameters".to_string(), text.clone())]);
    Ok(Json(PictureInfo { info: text, items, parameters: prompts.into_iter().chain(settings).collect() }))
}

/// Scripts, of which there are none.
#[utoipa::path(get, path = "/sdapi/v1/scripts", tag = "A1111", responses(
    (status = 200, body = Value),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody)
))]
pub async fn scripts() -> Json<Value> {
    Json(json!({ "txt2img": [], "img2img": [] }))
}
