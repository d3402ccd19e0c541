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

#[cfg(test)]
mod tests {
    use crate::parameter::{Parameter, Range};

    /// The page is a file of its own, which a browser and its tests read as it is.
    #[test]
    fn inputs_have_the_limits_of_the_table() {
        let html = include_str!("page/index.html");
        for (name, parameter, own) in [
            ("width", Parameter::Width, None),
            ("height", Parameter::Height, None),
            ("num_inference_steps", Parameter::Steps, None),
            ("strength", Parameter::Strength, Some("min")),
            ("guidance_scale", Parameter::GuidanceScale, Some("min")),
            ("seed", Parameter::Seed, Some("min")),
            ("n", Parameter::NumImages, None),
        ] {
            let input = html.lines().find(|line| line.contains(&format!("name=\"{name}\" type="))).unwrap();
            let shown = |attribute: &str| {
                let (_, value) = input.split_once(&format!(" {attribute}=\""))?;
                value.split_once('"')?.0.parse::<f64>().ok()
            };
            let range = parameter.row().range;
            let (first, last) = range.ends();
            if own != Some("min") {
                assert_eq!(shown("min"), first, "{input}");
            }
            if last.is_some() {
                assert_eq!(shown("max"), last, "{input}");
            }
            if let Range::Whole { multiple_of: step @ 2.., .. } = range {
                assert_eq!(shown("step"), Some(step as f64), "{input}");
            }
        }
    }
}
