//! Bodies of requests as values.

use axum::body::Bytes;
use axum::extract::multipart::{Multipart, MultipartError};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::errors::ApiError;

/// A body in JSON.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        expect_type(request.headers(), "application/json")?;
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut json).map_err(of_field)?;
        json.end().map_err(|error| ApiError::invalid(format!("the body is no JSON: {error}")))?;
        Ok(Json(value))
    }
}

/// A part of a form: text, or a file.
pub struct Part {
    pub name: String,
    pub bytes: Bytes,
    pub is_file: bool,
}

/// The parts of a `multipart/form-data` body.
pub struct Form(pub Vec<Part>);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        expect_type(request.headers(), "multipart/form-data")?;
        let form = Multipart::from_request(request, state).await;
        let mut form = form.map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
        let broken = |error: MultipartError| ApiError::invalid(format!("the form is broken: {error}"));
        let mut parts = Vec::new();
        while let Some(field) = form.next_field().await.map_err(broken)? {
            let (name, is_file) = (field.name().unwrap_or_default().to_string(), field.file_name().is_some());
            parts.push(Part { name, is_file, bytes: field.bytes().await.map_err(broken)? });
        }
        Ok(Form(parts))
    }
}

/// The text parts of a form as a value.
///
/// # Errors
/// A field that is unknown, there twice, or not of its type.
pub fn from_texts<T: DeserializeOwned>(texts: &[(String, String)]) -> Result<T, ApiError> {
    let pairs = serde_urlencoded::to_string(texts).map_err(ApiError::invalid)?;
    let pairs = serde_urlencoded::Deserializer::new(form_urlencoded::parse(pairs.as_bytes()));
    serde_path_to_error::deserialize(pairs).map_err(of_field)
}

/// A value of JSON as a value of a type.
pub fn from_json<T: DeserializeOwned>(json: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(json).map_err(of_field)
}

/// A sentence that begins with the field, without serde's line and column.
fn of_field<E: std::fmt::Display>(error: serde_path_to_error::Error<E>) -> ApiError {
    let (field, message) = (error.path().to_string(), error.inner().to_string());
    let message = message.split(" at line ").next().unwrap_or_default();
    match message.strip_prefix("unknown field ") {
        Some(named) => ApiError::invalid(format!("there is no field {named}")).of_param(Some(field)),
        None if [".", "?"].contains(&field.as_str()) => ApiError::invalid(message),
        None => ApiError::field(&field, message),
    }
}

fn expect_type(headers: &HeaderMap, expected: &str) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let message = format!("the Content-Type is {given:?}; expected {expected}");
    Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}
