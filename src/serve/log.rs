//! A line of the log for every request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use super::errors::ErrorDetail;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_ID: usize = 128;

/// Written when the last of those who answer the request lets go of it.
pub struct Line {
    id: String,
    method: String,
    path: String,
    start: Instant,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    status: Option<StatusCode>,
    /// The longest that one of its pictures waited.
    queued: Option<Duration>,
    pictures: usize,
    error: Option<String>,
    broken_off: bool,
}

impl Line {
    fn say(&self, what: impl FnOnce(&mut Said)) {
        what(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A picture was painted after it waited so long.
    pub fn painted(&self, queued: Duration) {
        self.say(|said| {
            said.pictures += 1;
            said.queued = said.queued.max(Some(queued));
        });
    }

    pub fn failed(&self, error: &ErrorDetail) {
        self.say(|said| said.error = Some(error.message.clone()));
    }

    /// Whether the client went before its answer was whole.
    pub fn broken_off(&self, broken_off: bool) {
        self.say(|said| said.broken_off = broken_off);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Line { id, method, path, start, said } = self;
        let said = said.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (id, method, path) = (id.as_str(), method.as_str(), path.as_str());
        let seconds = |time: Duration| (time.as_secs_f64() * 1e3).round() / 1e3;
        let (pictures, error) = (said.pictures, said.error.as_deref());
        let (took, queue_seconds) = (seconds(start.elapsed()), said.queued.map(seconds));
        match said.status.filter(|_| !said.broken_off) {
            Some(status) if method == "POST" => {
                let status = status.as_u16();
                tracing::info!(
                    id,
                    method,
                    path,
                    status,
                    seconds = took,
                    queue_seconds,
                    pictures,
                    error,
                    "request"
                );
            }
            Some(status) => {
                tracing::debug!(id, method, path, status = status.as_u16(), seconds = took, error, "request");
            }
            None => tracing::info!(
                id,
                method,
                path,
                seconds = took,
                queue_seconds,
                pictures,
                "the client is gone"
            ),
        }
    }
}

/// Gives a request an id, unless it brings one, and writes its line.
pub async fn log(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let id = id.filter(|id| !id.is_empty() && id.len() <= LONGEST_ID).map(String::from);
    let line = Arc::new(Line {
        id: id.unwrap_or_else(|| Uuid::new_v4().simple().to_string()),
        method: request.method().to_string(),
        path: request.uri().path().to_string(),
        start: Instant::now(),
        said: Mutex::default(),
    });
    request.extensions_mut().insert(line.clone());
    let mut response = next.run(request).await;
    let status = response.status();
    let error = response.extensions().get::<ErrorDetail>().map(|error| error.message.clone());
    line.say(|said| {
        said.status = Some(status);
        said.error = error;
    });
    if let Ok(id) = HeaderValue::from_str(&line.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
