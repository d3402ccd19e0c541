//! Pictures from pictures, which come as a form.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use utoipa::ToSchema;

use super::super::App;
use super::super::body::Form;
use super::super::errors::{ApiError, Refusals};
use super::super::log::Line;
use super::super::pictures::Role;
use super::fields::{Fields, StartPicture};
use super::stream::Kind;

/// The fields of `/v1/images/generations` as texts, and files.
#[derive(ToSchema)]
#[allow(dead_code)] // For /openapi.json, which puts the other fields beside them.
pub struct EditForm {
    /// PNG, JPEG or WebP.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
    /// As OpenAI's: what is transparent is painted anew, what is opaque is kept. A mask without transparency is
    /// painted where it is light.
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
}

/// Paints a picture anew, as a whole or where a mask says.
///
/// Streams as `/v1/images/generations`, with events `image_edit.partial_image` and `image_edit.completed`.
#[utoipa::path(post, path = "/v1/images/edits", tag = "OpenAI",
    request_body(content = EditForm, content_type = "multipart/form-data"),
    params(
        ("X-Deadline-Seconds" = Option<f64>, Header, description = "As the field `deadline`", minimum = 0.001)
    ),
    responses(
        (status = 200, description = "The pictures", content(
            (super::ImagesResponse = "application/json"), (String = "text/event-stream")
        )),
        Refusals
    )
)]
pub async fn edits(
    State(app): State<Arc<App>>,
    Extension(line): Extension<Arc<Line>>,
    headers: HeaderMap,
    Form(parts): Form,
) -> Result<Response, ApiError> {
    let (mut texts, mut image, mut mask) = (Vec::new(), None, None);
    for part in parts {
        // OpenAI's client names the pictures of a list so.
        let name = part.name.strip_suffix("[]").unwrap_or(&part.name);
        let place = match name {
            "image" => &mut image,
            "mask" => &mut mask,
            _ if part.is_file => return Err(ApiError::field(name, "no such file; expected image and mask")),
            _ => {
                let text =
                    std::str::from_utf8(&part.bytes).map_err(|_| ApiError::field(name, "is no UTF-8"))?;
                texts.push((part.name, text.to_string()));
                continue;
            }
        };
        if place.replace(part.bytes).is_some() {
            return Err(ApiError::field(name, "is there twice; one picture is painted at a time"));
        }
    }
    let fields = Fields::of_texts(texts)?;
    let image =
        image.ok_or_else(|| ApiError::field("image", "is missing; expected a PNG, JPEG or WebP file"))?;
    let picture = app.decode("image", image, Role::Start).await?;
    let mask = match mask {
        Some(mask) => Some(app.decode("mask", mask, Role::Holes).await?),
        None => None,
    };
    super::answer(app, line, &headers, &fields, Some(StartPicture { picture, mask }), Kind::Edit).await
}
