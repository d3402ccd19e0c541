//! The description of the interfaces, for programs.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{Modify, OpenApi};

use super::painting::LONGEST_PROMPT;
use super::{a1111, metrics, openai, operation, store};
use crate::parameter::{Field, Interface, Parameter, Range};
use crate::pipeline::{Kind, RequestPatch};

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

static JSON: LazyLock<String> = LazyLock::new(|| {
    let mut document = serde_json::to_value(Document::openapi()).expect("a document of strings and numbers");
    let schemas = &mut document["components"]["schemas"];
    for (schema, interface) in
        [("Fields", Interface::OpenAi), ("EditForm", Interface::OpenAi), ("Common", Interface::A1111)]
    {
        for parameter in Parameter::ALL {
            if let (Field::Plain(field), Some(kind)) =
                (parameter.field(interface), RequestPatch::kind(*parameter))
            {
                schemas[schema]["properties"][field] = property(*parameter, kind, interface);
            }
        }
    }
    document.to_string()
});

/// The schema of a parameter, with the limits and the help of the table.
fn property(parameter: Parameter, kind: Kind, interface: Interface) -> Value {
    let kind = match kind {
        Kind::Text => "string",
        Kind::Whole => "integer",
        Kind::Number => "number",
    };
    let mut schema = json!({ "type": [kind, "null"], "description": parameter.help(interface) });
    let range = parameter.row().range;
    let (first, last) = range.ends();
    // As whole numbers where they are: some readers take no others.
    let limit = |number: f64| if number.fract() == 0.0 { json!(number as i64) } else { json!(number) };
    if let Range::Above { above, .. } = range {
        schema["exclusiveMinimum"] = limit(above);
    }
    if let Range::Whole { multiple_of: step @ 2.., .. } = range {
        schema["multipleOf"] = json!(step);
    }
    if let Some(first) = first {
        schema["minimum"] = limit(first);
    }
    if let Some(last) = last {
        schema["maximum"] = limit(last);
    }
    if matches!(parameter, Parameter::Prompt | Parameter::NegativePrompt) {
        schema["maxLength"] = json!(LONGEST_PROMPT);
    }
    schema
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", responses(
    (status = 200, body = serde_json::Value)
))]
pub async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], JSON.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_limits_and_the_help_of_the_table() {
        let document: Value = serde_json::from_str(&JSON).unwrap();
        let schemas = &document["components"]["schemas"];
        for (schema, field, limits) in [
            ("Fields", "num_inference_steps", json!({ "type": ["integer", "null"], "minimum": 1 })),
            ("Fields", "guidance_start", json!({ "type": ["number", "null"], "minimum": 0, "maximum": 1 })),
            ("EditForm", "strength", json!({ "exclusiveMinimum": 0, "maximum": 1 })),
            ("EditForm", "sampler", json!({ "type": ["string", "null"] })),
            ("Common", "guidance_end", json!({ "minimum": 0, "maximum": 1 })),
            ("Common", "width", json!({ "minimum": 8, "maximum": 16384, "multipleOf": 8 })),
            ("Common", "negative_prompt", json!({ "maxLength": 4000 })),
        ] {
            let property = &schemas[schema]["properties"][field];
            for (key, limit) in limits.as_object().unwrap() {
                assert_eq!(property[key], *limit, "{schema} {field} {key}");
            }
        }
        let help = &schemas["EditForm"]["properties"]["strength"]["description"];
        assert!(help.as_str().unwrap().starts_with("How much of image is generated anew"), "{help}");
        // The bodies of A1111's requests have the common fields by reference.
        for body in ["Txt2ImgBody", "Img2ImgBody"] {
            let parts = schemas[body]["allOf"].as_array().unwrap();
            assert!(parts.iter().any(|part| part["$ref"] == "#/components/schemas/Common"), "{body}");
        }
    }
}
