//! For those who run the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::errors::{ApiError, ErrorBody};

#[derive(Serialize, ToSchema)]
pub struct Status {
    status: &'static str,
    version: &'static str,
    model: String,
    device: String,
    /// Pictures.
    waiting: usize,
    running: usize,
}

impl Status {
    fn new(app: &App) -> Result<Self, ApiError> {
        let load = app.engine.load();
        if !load.alive {
            return Err(ApiError::dead());
        }
        Ok(Status {
            status: "ok",
            version: env!("CARGO_PKG_VERSION"),
            model: app.settings.model.clone(),
            device: app.engine.machine().describe.clone(),
            waiting: load.waiting,
            running: load.running,
        })
    }
}

/// Whether the server lives: where not, it wants to be started anew.
#[utoipa::path(get, path = "/health", tag = "operation", responses(
    (status = 200, body = Status), (status = 503, description = "The engine has stopped", body = ErrorBody)
))]
pub async fn health(State(app): State<Arc<App>>) -> Result<Json<Status>, ApiError> {
    Status::new(&app).map(Json)
}

/// Whether requests may be sent here.
#[utoipa::path(get, path = "/ready", tag = "operation", responses(
    (status = 200, body = Status),
    (status = 503, description = "The server shuts down, or its engine has stopped", body = ErrorBody)
))]
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Status>, ApiError> {
    if app.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::shutting_down());
    }
    Status::new(&app).map(Json)
}
