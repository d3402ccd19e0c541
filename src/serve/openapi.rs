//! The description of the interfaces, for programs.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{Modify, OpenApi};

use super::{a1111, metrics, openai, operation, store};

#[derive(OpenApi)]
#[openapi(
    info(title = "sdrt", description = "Stable Diffusion over HTTP", license(name = "MIT OR Apache-2.0")),
    paths(
        openai::generations, openai::edits, openai::models, openai::model, store::picture,
        a1111::txt2img, a1111::img2img, a1111::progress, a1111::interrupt, a1111::samplers, a1111::schedulers,
        a1111::sd_models, a1111::options, a1111::set_options, a1111::png_info, a1111::scripts,
        operation::health, operation::ready, metrics::metrics, document,
    ),
    modifiers(&Key, &Form),
)]
struct Document;

struct Key;

impl Modify for Key {
    /// Whether a key is asked for, this server decides when it starts.
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        for (path, item) in &mut document.paths.paths {
            if path.starts_with("/v1/") || path.starts_with("/sdapi/") {
                for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
                    let requirements =
                        [SecurityRequirement::default(), SecurityRequirement::new("key", [""; 0])];
                    operation.security = Some(requirements.into());
                }
            }
        }
    }
}

/// Gives the form of edits all fields of generations.
struct Form;

impl Modify for Form {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let schemas = &mut document.components.get_or_insert_default().schemas;
        let object = |schema: Option<&RefOr<Schema>>| match schema {
            Some(RefOr::T(Schema::Object(object))) => object.clone(),
            _ => panic!("fields are an object"),
        };
        let (fields, files) = (object(schemas.get("Fields")), object(schemas.get("EditForm")));
        let mut form = fields;
        form.description = files.description;
        form.properties.extend(files.properties);
        form.required.extend(files.required);
        schemas.insert("EditForm".into(), RefOr::T(Schema::Object(form)));
    }
}

static JSON: LazyLock<String> =
    LazyLock::new(|| Document::openapi().to_json().expect("a document of strings and numbers"));

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", responses(
    (status = 200, body = serde_json::Value)
))]
pub async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], JSON.as_str()).into_response()
}
