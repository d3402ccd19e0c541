//! Pictures over HTTP: the interfaces of OpenAI and of A1111, and a page, on top of the [engine](crate::engine).
//!
//! ```text
//! connections -> log -> access -> openai, a1111 -> painting -> engine
//!                                               <- pictures <-
//! ```

mod a1111;
mod access;
mod body;
mod connections;
mod errors;
mod log;
mod metrics;
mod openai;
mod openapi;
mod operation;
mod page;
mod painting;
mod pictures;
mod store;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tower_http::catch_panic::CatchPanicLayer;

pub use self::connections::Timeouts;
use self::errors::ApiError;
pub use self::metrics::Metrics;
use crate::engine::Engine;
use crate::error::{Invalid, Result};
use crate::image::Origin;
use crate::parameter::Parameter;

/// How pictures are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model's name, as requests and pictures have it.
    pub model: String,
    /// The refiner's name, as pictures have it.
    pub refiner: Option<String>,
    /// Asked of everybody who wants pictures.
    pub api_key: Option<String>,
    /// Origins whose pages may ask besides the server's own; `*` for all.
    pub cors: Vec<String>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// For what is in flight when the server is stopped.
    pub grace: Duration,
}

/// What one request may ask.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of its body.
    pub body: usize,
    pub images: usize,
    /// Of each picture.
    pub pixels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { body: 32 << 20, images: 8, pixels: 2048 * 2048 }
    }
}

impl Settings {
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for what is no origin, or an empty key.
    pub fn check(&self) -> Result<()> {
        if self.api_key.as_deref().is_some_and(str::is_empty) {
            return Err(Invalid::of([Parameter::ApiKey])
                .problem("is empty")
                .advice("leave it out to serve requests without a key")
                .error());
        }
        access::cors(&self.cors).and(access::same_origin(&self.cors)).map(drop)
    }
}

/// What the handlers share.
struct App {
    engine: Engine,
    metrics: Arc<Metrics>,
    settings: Settings,
    origin: Origin,
    store: store::Store,
    a1111: a1111::Jobs,
    /// Seconds since 1970.
    started: u64,
    stopping: AtomicBool,
}

/// To write the last answers once the engine has stopped.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Serves until `stop`, then lets what is in flight finish within the grace; returns how many pictures could not.
/// `metrics` is what the engine tells.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for what is no origin.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    metrics: Arc<Metrics>,
    settings: Settings,
    stop: impl Future<Output = ()>,
) -> Result<usize> {
    let machine = engine.machine();
    let origin = Origin {
        model: settings.model.clone(),
        refiner: settings.refiner.clone(),
        device: machine.name.clone(),
        dtype: machine.dtype,
        lora_hashes: Vec::new(),
        loras: Vec::new(),
        controlnets: Vec::new(),
    };
    let (timeouts, grace) = (settings.timeouts, settings.grace);
    let app = Arc::new(App {
        engine,
        metrics,
        settings,
        origin,
        store: store::Store::default(),
        a1111: a1111::Jobs::default(),
        started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        stopping: AtomicBool::new(false),
    });
    let router = router(&app)?;
    let connections = connections::accept(listener, router, timeouts, stop).await;
    app.stopping.store(true, Ordering::Relaxed);
    tracing::info!(grace = grace.as_secs_f64(), "stopping: what is in flight is finished");
    // Idle connections end at once; the others with their answers.
    let ended = tokio::spawn(connections.shutdown());
    let unfinished = spawn_blocking(move || app.engine.shut_down(grace)).await.unwrap_or_default();
    if tokio::time::timeout(LAST_ANSWERS, ended).await.is_err() {
        tracing::warn!("some clients did not take their answers");
    }
    Ok(unfinished)
}

fn router(app: &Arc<App>) -> Result<Router> {
    let cors = &app.settings.cors;
    let guarded = openai::routes()
        .merge(a1111::routes())
        .layer(DefaultBodyLimit::disable())
        .route_layer(from_fn_with_state(app.clone(), access::receive))
        .route_layer(from_fn_with_state(app.clone(), access::authorize));
    let guarded = match access::same_origin(cors)? {
        Some(layer) => guarded.layer(layer.with_rejection_response(|_| access::other_origin())),
        None => guarded,
    };
    let router = Router::new()
        .merge(page::routes())
        .route("/health", get(operation::health))
        .route("/ready", get(operation::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::document))
        .route("/pictures/{id}", get(store::picture))
        .merge(guarded)
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method);
    let router = if cors.is_empty() { router } else { router.layer(access::cors(cors)?) };
    Ok(router.layer(CatchPanicLayer::custom(panicked)).layer(from_fn(log::log)).with_state(app.clone()))
}

async fn not_found(method: Method, uri: Uri) -> ApiError {
    let message = format!("there is no {method} {}; /openapi.json has what there is", uri.path());
    ApiError::refused(StatusCode::NOT_FOUND, "not_found", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} knows no {method}; /openapi.json has what there is", uri.path());
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
    tracing::error!(message, "a request's handler panicked");
    ApiError::internal().into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let broken = || async {
            if true {
                panic!("a bug");
            }
        };
        let router: Router = Router::new()
            .route("/", get(broken))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn(log::log));
        let request = axum::http::Request::get("/").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key("x-request-id"));
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("internal_error"));
    }
}
