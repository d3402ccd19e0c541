//! The interface of OpenAI for pictures, with more fields.

mod edits;
mod fields;
mod models;
mod stream;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

pub use self::edits::*;
pub use self::fields::*;
pub use self::models::*;
use self::stream::Kind;
use super::App;
use super::body;
use super::errors::{ApiError, Refusals};
use super::log::Line;
use super::painting::Painting;
use super::pictures::OutputFormat;
use crate::engine::Event;

/// The answer to a request for pictures.
#[derive(Serialize, ToSchema)]
pub struct ImagesResponse {
    /// Seconds since 1970.
    created: u64,
    data: Vec<Image>,
    output_format: OutputFormat,
    /// As `WIDTHxHEIGHT`.
    size: String,
    /// What did not go as the request says, such as words of the prompt that were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Default, Serialize, ToSchema)]
struct Image {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    /// For an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// Asked for again, it gives the same picture.
    seed: u64,
}

pub fn routes() -> Router<Arc<App>> {
    use axum::routing::{get, post};
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
}

/// Paints pictures from a prompt.
///
/// With `stream`, the answer is a stream of server-sent events: `image_generation.partial_image`,
/// `image_generation.completed` once for each picture, `error`, and where `progress` asks for them
/// `sdrt.progress`.
#[utoipa::path(post, path = "/v1/images/generations", tag = "OpenAI", request_body = Fields, params(
    ("X-Deadline-Seconds" = Option<f64>, Header, description = "As the field `deadline`", minimum = 0.001)
), responses(
    (status = 200, description = "The pictures", content(
        (ImagesResponse = "application/json"), (String = "text/event-stream")
    )),
    Refusals
))]
pub async fn generations(
    State(app): State<Arc<App>>,
    Extension(line): Extension<Arc<Line>>,
    headers: HeaderMap,
    body::Json(fields): body::Json<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let fields = Fields::of_json(&fields)?;
    if fields.parameters.strength.is_some() {
        return Err(ApiError::field("strength", "is for /v1/images/edits, which start from a picture"));
    }
    answer(app, line, &headers, &fields, None, Kind::Generation).await
}

async fn answer(
    app: Arc<App>,
    line: Arc<Line>,
    headers: &HeaderMap,
    fields: &Fields,
    picture: Option<StartPicture>,
    kind: Kind,
) -> Result<Response, ApiError> {
    let order = fields.order(&app, headers, picture)?;
    let response = Answer {
        form: fields.response_format.unwrap_or_default(),
        output: fields.output_format.unwrap_or_default(),
        format: order.format,
        address: address(headers),
    };
    let painting = app.submit(order, &line).await?;
    if fields.stream == Some(true) {
        let stream =
            stream::Settings { kind, progress: fields.progress == Some(true), previews: fields.previews() };
        return Ok(stream::events(app, painting, response, stream, line));
    }
    Ok(Json(whole(&app, painting, &response).await?).into_response())
}

/// How pictures are answered.
struct Answer {
    form: ResponseFormat,
    output: OutputFormat,
    format: crate::image::Format,
    /// Of this server, as the client has it.
    address: String,
}

async fn whole(app: &Arc<App>, mut painting: Painting, answer: &Answer) -> Result<ImagesResponse, ApiError> {
    let mut data: Vec<Image> = Vec::new();
    data.resize_with(painting.len(), Image::default);
    let (mut warnings, mut size) = (Vec::new(), String::new());
    while let Some((index, event)) = painting.next().await? {
        let Event::Done(finished) = event else { continue };
        size = format!("{}x{}", finished.picture.width, finished.picture.height);
        for warning in finished.warnings {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        let seed = finished.picture.seed;
        let picture = app.encode(finished.picture, painting.request(index), answer.format).await;
        data[index] = match answer.form {
            ResponseFormat::B64Json => {
                Image { b64_json: Some(BASE64_STANDARD.encode(picture)), url: None, seed }
            }
            ResponseFormat::Url => {
                let id = app.store.keep(picture, answer.output.content_type());
                Image { url: Some(format!("{}/pictures/{id}", answer.address)), b64_json: None, seed }
            }
        };
    }
    Ok(ImagesResponse { created: now(), data, output_format: answer.output, size, warnings })
}

/// The address that the client asked, also behind a proxy that says so.
fn address(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = text("x-forwarded-proto").filter(|scheme| *scheme == "https").unwrap_or("http");
    let host = text("x-forwarded-host").or(text(header::HOST.as_str())).unwrap_or("localhost");
    format!("{scheme}://{host}")
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
