//! The page at `/`.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::App;

/// The page asks nobody but this server, and nobody shows it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn routes() -> Router<Arc<App>> {
    let html = include_str!("page/index.html");
    let style = include_str!("page/style.css");
    let script = include_str!("page/page.js");
    Router::new()
        .route("/", get(move || async { file("text/html; charset=utf-8", html) }))
        .route("/style.css", get(move || async { file("text/css; charset=utf-8", style) }))
        .route("/page.js", get(move || async { file("text/javascript; charset=utf-8", script) }))
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // It changes with the binary.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}
