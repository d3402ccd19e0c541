//! What a client is told when something is wrong, in OpenAI's form.

use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::engine::{Failure, Refusal};
use crate::error::Error;
use crate::parameter::Interface;

/// An error as it is answered.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub retry_after: Option<Duration>,
    pub error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorDetail {
    /// A sentence: what is wrong, what was expected, what to try.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    pub r#type: &'static str,
    /// The field that is wrong, if it is one.
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

/// What every request for pictures may be answered instead.
#[derive(IntoResponses)]
#[allow(dead_code)] // For /openapi.json alone.
pub enum Refusals {
    /// Something in the request cannot be used; `param` names the field.
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// The API key is missing or wrong.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The page that asks is not this server's own.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such model.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The body did not arrive in time.
    #[response(status = 408)]
    TooSlow(ErrorBody),
    /// The body is larger than the server takes.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is not of the type that is expected.
    #[response(status = 415)]
    UnsupportedMediaType(ErrorBody),
    /// The queue is full, or the deadline cannot be met.
    #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds")))]
    Busy(ErrorBody),
    /// The device failed, or does not have the memory.
    #[response(status = 500)]
    Failed(ErrorBody),
    /// The server shuts down, or its device is gone.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds")))]
    Unavailable(ErrorBody),
}

const INVALID: &str = "invalid_request_error";
const BUSY: &str = "rate_limit_error";
const SERVER: &str = "server_error";

/// To wait where nothing better is known.
const SOON: Duration = Duration::from_secs(1);

impl ApiError {
    fn new(status: StatusCode, r#type: &'static str, message: impl fmt::Display) -> Self {
        let error = ErrorDetail { message: message.to_string(), r#type, param: None, code: None };
        ApiError { status, retry_after: None, error }
    }

    /// A request that cannot be used.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// A field that cannot be used; the sentence begins with its name.
    pub fn field(param: &str, message: impl fmt::Display) -> Self {
        Self::invalid(format!("{param}: {message}")).of_param(Some(param.into()))
    }

    /// A request that is refused for another reason than its fields.
    pub fn refused(status: StatusCode, code: &'static str, message: impl fmt::Display) -> Self {
        Self::new(status, INVALID, message).of_code(code)
    }

    fn busy(code: &'static str, message: impl fmt::Display, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, BUSY, message).of_code(code);
        ApiError { retry_after: Some(retry_after.max(SOON)), ..error }
    }

    fn unavailable(code: &'static str, message: impl fmt::Display) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).of_code(code);
        ApiError { retry_after: Some(SOON), ..error }
    }

    pub fn shutting_down() -> Self {
        Self::unavailable("shutting_down", "the server is shutting down; ask another one, or try again")
    }

    pub fn dead() -> Self {
        Self::unavailable("engine_dead", "the engine has stopped, and the server ends")
    }

    /// A bug: what happened stands in the log.
    pub fn internal() -> Self {
        let message =
            "something went wrong inside the server; its log says what, under the id of this request";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message).of_code("internal_error")
    }

    pub fn of_param(mut self, param: Option<String>) -> Self {
        self.error.param = param;
        self
    }

    fn of_code(mut self, code: &'static str) -> Self {
        self.error.code = Some(code);
        self
    }

    /// An error of the library, in the names of the interface.
    pub fn of_error(error: &Error, interface: Interface) -> Self {
        let message = error.say(interface);
        let failed = |code| Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, &message).of_code(code);
        let field = error.parameter().map(|parameter| match parameter.field(interface).name() {
            Some(field) => field.to_string(),
            None => parameter.name(interface),
        });
        match error {
            Error::Invalid(_) => Self::invalid(&message).of_param(field),
            Error::OutOfMemory { .. } => failed("out_of_memory"),
            Error::Internal(_) => failed("internal_error"),
            _ => failed("device_error"),
        }
    }

    pub fn of_refusal(refusal: &Refusal, interface: Interface) -> Self {
        match refusal {
            Refusal::Invalid(error) => Self::of_error(error, interface),
            Refusal::Full { retry_after } => Self::busy("queue_full", refusal, *retry_after),
            Refusal::TooLate { retry_after, .. } => {
                Self::busy("deadline_cannot_be_met", refusal, *retry_after)
            }
            Refusal::ShuttingDown => Self::shutting_down(),
            Refusal::Dead(_) => Self::unavailable("engine_dead", refusal),
        }
    }

    pub fn of_failure(failure: &Failure, interface: Interface) -> Self {
        match failure {
            Failure::Cancelled => Self::unavailable("cancelled", "the picture was cancelled"),
            Failure::DeadlinePassed => {
                Self::busy("deadline_passed", "the deadline passed while the picture waited", SOON)
            }
            Failure::ShutDown => Self::shutting_down(),
            Failure::Error(error) => Self::of_error(error, interface),
        }
    }

    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.error.clone() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self.error);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Invalid;
    use crate::parameter::Parameter;

    #[test]
    fn errors_have_the_status_and_the_field_of_the_interface() {
        let width = Invalid::value(Parameter::Width, 17).expected("a multiple of 8").error();
        let skip = Invalid::value(Parameter::ClipSkip, 0).expected("1 to 12").error();
        let tiling = Invalid::value(Parameter::VaeTiling, "x").expected("on or off").error();
        for (error, interface, field, message) in [
            (&width, Interface::OpenAi, Some("size"), "width 17: expected a multiple of 8"),
            (&width, Interface::A1111, Some("width"), "width 17: expected a multiple of 8"),
            (
                &skip,
                Interface::A1111,
                Some("override_settings"),
                "CLIP_stop_at_last_layers 0: expected 1 to 12",
            ),
            (&tiling, Interface::OpenAi, Some("vae_tiling"), "vae_tiling x: expected on or off"),
            (&Error::invalid("too many"), Interface::OpenAi, None, "too many"),
        ] {
            let ApiError { status, error, .. } = ApiError::of_error(error, interface);
            assert_eq!((status, error.param.as_deref()), (StatusCode::BAD_REQUEST, field));
            assert_eq!(error.message, message);
        }
        let ApiError { status, error, .. } =
            ApiError::of_error(&Error::internal("a thread is gone"), Interface::OpenAi);
        assert_eq!((status, error.code), (StatusCode::INTERNAL_SERVER_ERROR, Some("internal_error")));
    }
}
