//! The interface of A1111's web UI, as far as it is about pictures from prompts and from pictures.

mod fields;
mod information;
mod jobs;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use self::fields::*;
pub use self::information::*;
pub use self::jobs::*;
use super::App;
use super::body;
use super::errors::{ApiError, Refusals};
use super::log::Line;
use super::painting::{Order, Painting};
use crate::engine::Event;

pub fn routes() -> Router<Arc<App>> {
    use axum::routing::{get, post};
    Router::new()
        .route("/sdapi/v1/txt2img", post(txt2img))
        .route("/sdapi/v1/img2img", post(img2img))
        .route("/sdapi/v1/progress", get(progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/samplers", get(samplers))
        .route("/sdapi/v1/schedulers", get(schedulers))
        .route("/sdapi/v1/sd-models", get(sd_models))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/png-info", post(png_info))
        .route("/sdapi/v1/scripts", get(scripts))
}

/// The answer to a request for pictures.
#[derive(Serialize, ToSchema)]
pub struct Painted {
    /// PNG files in Base64; those that were done, where somebody interrupted.
    images: Vec<String>,
    /// The request.
    parameters: Value,
    /// JSON as a text: prompts, seeds and settings of the pictures.
    info: String,
}

/// Paints pictures from a prompt.
///
/// Prompts are in A1111's style, and seeds give the noise of its GPU. What is left out is the model's own.
#[utoipa::path(post, path = "/sdapi/v1/txt2img", tag = "A1111", request_body = Txt2ImgBody, responses(
    (status = 200, body = Painted), Refusals
))]
pub async fn txt2img(
    State(app): State<Arc<App>>,
    Extension(line): Extension<Arc<Line>>,
    headers: HeaderMap,
    body::Json(parameters): body::Json<Value>,
) -> Result<Json<Painted>, ApiError> {
    let (common, own): (Common, Txt2Img) = (Common::of_json(&parameters)?, body::from_json(&parameters)?);
    let order = own.order(&common, &app, &headers)?;
    paint(&app, order, parameters, line).await
}

/// Paints a picture anew, as a whole or where a mask is light.
#[utoipa::path(post, path = "/sdapi/v1/img2img", tag = "A1111", request_body = Img2ImgBody, responses(
    (status = 200, body = Painted), Refusals
))]
pub async fn img2img(
    State(app): State<Arc<App>>,
    Extension(line): Extension<Arc<Line>>,
    headers: HeaderMap,
    body::Json(mut parameters): body::Json<Value>,
) -> Result<Json<Painted>, ApiError> {
    let (common, own): (Common, Img2Img) = (Common::of_json(&parameters)?, body::from_json(&parameters)?);
    let order = own.order(&common, &app, &headers).await?;
    for pictures in ["init_images", "mask"] {
        parameters[pictures] = Value::Null;
    }
    paint(&app, order, parameters, line).await
}

async fn paint(
    app: &Arc<App>,
    mut order: Order,
    parameters: Value,
    line: Arc<Line>,
) -> Result<Json<Painted>, ApiError> {
    let format = order.format;
    let evaluations = order.check(app)?.iter().map(|pass| pass.table.evaluations()).sum();
    let mut painting = app.submit(order, &line).await?;
    let job = app.a1111.begin(painting.len(), evaluations);
    let mut files = vec![None; painting.len()];
    let mut warnings = Vec::new();
    loop {
        let (index, event) = tokio::select! {
            next = painting.next() => match next? {
                Some(next) => next,
                None => break,
            },
            () = job.interrupted() => break,
        };
        job.see(index, &event);
        let Event::Done(finished) = event else { continue };
        warnings.extend(finished.warnings.iter().filter(|_| index == 0).cloned());
        files[index] = Some(app.encode(finished.picture, painting.request(index), format).await);
    }
    let done: Vec<usize> = (0..files.len()).filter(|&i| files[i].is_some()).collect();
    let info = info(app, &painting, &done, &warnings).to_string();
    let images = files.iter().flatten().map(|file| BASE64_STANDARD.encode(file)).collect();
    Ok(Json(Painted { images, parameters, info }))
}

/// What A1111 says of the pictures that are done.
fn info(app: &App, painting: &Painting, done: &[usize], warnings: &[String]) -> Value {
    let request = painting.request(0);
    let seeds: Vec<u64> = done.iter().map(|&i| painting.request(i).seed).collect();
    let texts = done.iter().map(|&i| app.origin.parameters(painting.request(i), 0).to_string());
    let strength = request.init.as_ref().map(|init| init.strength);
    json!({
        "prompt": request.prompt,
        "all_prompts": vec![&request.prompt; done.len()],
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": vec![&request.negative_prompt; done.len()],
        "seed": request.seed,
        "all_seeds": seeds,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler.label(),
        "scheduler": request.schedule.label(),
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": painting.len(),
        "denoising_strength": strength.or(request.hires.map(|hires| hires.strength)),
        "clip_skip": request.clip_skip,
        "sd_model_name": app.settings.model,
        "index_of_first_image": 0,
        "infotexts": texts.collect::<Vec<_>>(),
        "warnings": warnings,
    })
}
