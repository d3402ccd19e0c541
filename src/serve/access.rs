//! Who may ask, and how much may be sent.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use subtle::ConstantTimeEq;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};
use tower_http::csrf::CsrfLayer;

use super::App;
use super::errors::ApiError;
use crate::error::{Error, Invalid, Result};
use crate::parameter::{Interface, Parameter};

/// Every origin.
const ANY: &str = "*";

/// Refuses what comes without the API key, where there is one: a bearer token, as OpenAI's clients send it, or the
/// password of Basic authentication, as A1111's do.
pub async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = &app.settings.api_key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(key_of).filter(|given| bool::from(given.ct_eq(key.as_bytes()))) {
        Some(_) => next.run(request).await,
        None => {
            let message = match given {
                Some(_) => "the API key is wrong",
                None => "the API key is missing; send it as `Authorization: Bearer KEY`",
            };
            ApiError::refused(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
        }
    }
}

fn key_of(authorization: &str) -> Option<Vec<u8>> {
    let (scheme, value) = authorization.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().into());
    }
    let basic = scheme.eq_ignore_ascii_case("basic").then(|| BASE64_STANDARD.decode(value.trim()).ok())??;
    let colon = basic.iter().position(|&byte| byte == b':')?;
    Some(basic[colon + 1..].to_vec())
}

/// Takes the whole body in before anything else happens: one that is too large or too slow costs nothing more.
pub async fn receive(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let most = app.settings.limits.body;
    let too_large = || {
        let message = format!("the body is larger than {most} bytes, the most that this server takes");
        refuse(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length.and_then(|length| length.parse().ok()).is_some_and(|length: usize| length > most) {
        return too_large();
    }
    let (parts, body) = request.into_parts();
    match tokio::time::timeout(app.settings.timeouts.body, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(error)) if is_limit(&error) => too_large(),
        Ok(Err(_)) => refuse(StatusCode::BAD_REQUEST, "body_broken_off", "the body ended too early"),
        Err(_) => {
            let seconds = app.settings.timeouts.body.as_secs_f64();
            let message = format!("the body did not arrive within {seconds} s");
            refuse(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message)
        }
    }
}

/// Nothing more is read on this connection.
fn refuse(status: StatusCode, code: &'static str, message: impl std::fmt::Display) -> Response {
    let mut response = ApiError::refused(status, code, message).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn is_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// Pages of these origins may ask and read the answers.
///
/// # Errors
/// What is no origin.
pub fn cors(origins: &[String]) -> Result<CorsLayer> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        // `*` would leave Authorization out.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, "x-request-id".parse().expect("a name")]);
    if origins.iter().any(|origin| origin == ANY) {
        return Ok(layer.allow_origin(Any));
    }
    let origins = origins.iter().map(|origin| origin.parse().map_err(|_| no_origin(origin)));
    Ok(layer.allow_origin(AllowOrigin::list(origins.collect::<Result<Vec<HeaderValue>>>()?)))
}

/// Pages of other origins may not ask: browsers send some requests without waiting for a permission to read the
/// answer. `None` where all may.
///
/// # Errors
/// What is no origin.
pub fn same_origin(origins: &[String]) -> Result<Option<CsrfLayer>> {
    if origins.iter().any(|origin| origin == ANY) {
        return Ok(None);
    }
    let mut layer = CsrfLayer::new();
    for origin in origins {
        layer = layer.add_trusted_origin(origin).map_err(|_| no_origin(origin))?;
    }
    Ok(Some(layer))
}

/// To a page of another origin.
pub fn other_origin() -> Response {
    let cors = Parameter::Cors.name(Interface::CommandLine);
    let message =
        format!("pages of other origins may not ask; start the server with {cors} ORIGIN to let one");
    ApiError::refused(StatusCode::FORBIDDEN, "other_origin", message).into_response()
}

fn no_origin(origin: &str) -> Error {
    Invalid::value(Parameter::Cors, origin).expected("an origin such as https://example.com, or *").error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_as_a_token_or_as_a_password() {
        for given in ["Bearer a key", "bearer  a key ", "Basic bWU6YSBrZXk="] {
            assert_eq!(key_of(given).as_deref(), Some(&b"a key"[..]), "{given}");
        }
        for given in ["", "Bearer", "Basic ?", "Basic bWU=", "Digest a"] {
            assert_eq!(key_of(given), None, "{given}");
        }
    }

    #[test]
    fn origins_are_checked() {
        for (origins, fine) in [
            (vec![], true),
            (vec!["*"], true),
            (vec!["https://example.com", "http://localhost:3000"], true),
            (vec!["example"], false),
        ] {
            let origins: Vec<String> = origins.into_iter().map(String::from).collect();
            assert_eq!(cors(&origins).is_ok() && same_origin(&origins).is_ok(), fine, "{origins:?}");
        }
    }
}
