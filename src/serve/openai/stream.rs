//! Answers as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_stream::stream;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::App;
use super::super::errors::ApiError;
use super::super::log::Line;
use super::super::painting::Painting;
use super::super::pictures::encode_preview;
use super::{Answer, now};
use crate::engine::Event;
use crate::pipeline::Picture;

/// How often those who wait hear of their place.
const PLACES: Duration = Duration::from_secs(1);
/// So that nobody on the way takes the connection for dead.
const ALIVE: Duration = Duration::from_secs(15);

/// Which names the events have.
#[derive(Clone, Copy)]
pub enum Kind {
    Generation,
    Edit,
}

impl Kind {
    fn event(self, name: &str) -> String {
        let kind = match self {
            Kind::Generation => "image_generation",
            Kind::Edit => "image_edit",
        };
        format!("{kind}.{name}")
    }
}

pub struct Settings {
    pub kind: Kind,
    pub progress: bool,
    /// The most of each picture.
    pub previews: usize,
}

/// How far one picture is.
#[derive(Clone, Default)]
struct Progress {
    previews: usize,
    started: Option<Instant>,
    done: usize,
    of: usize,
}

/// Events of all pictures as they come. A client that is slow to read them holds up nobody else.
pub fn events(
    app: Arc<App>,
    mut painting: Painting,
    answer: Answer,
    settings: Settings,
    line: Arc<Line>,
) -> Response {
    // Unless the stream comes to its end.
    line.broken_off(true);
    let stream = stream! {
        let mut pictures = vec![Progress::default(); painting.len()];
        loop {
            let next = match timeout(PLACES, painting.next()).await {
                Ok(next) => next,
                Err(_) if settings.progress => {
                    for (index, picture) in pictures.iter().enumerate() {
                        if picture.started.is_none() {
                            yield sent("sdrt.progress", &picture.event(&app, &painting, index));
                        }
                    }
                    continue;
                }
                Err(_) => continue,
            };
            match next {
                Ok(None) => break,
                Ok(Some((index, event))) => {
                    let picture = &mut pictures[index];
                    picture.see(&event);
                    match event {
                        Event::Started | Event::Step { .. } if settings.progress => {
                            yield sent("sdrt.progress", &picture.event(&app, &painting, index));
                        }
                        Event::Preview { picture: preview, .. } if picture.previews < settings.previews => {
                            let name = settings.kind.event("partial_image");
                            let mut event = answer.event(&name, index, &preview);
                            event["partial_image_index"] = picture.previews.into();
                            event["b64_json"] = base64(&encode_preview(preview, answer.format).await);
                            picture.previews += 1;
                            yield sent(&name, &event);
                        }
                        Event::Done(finished) => {
                            let name = settings.kind.event("completed");
                            let mut event = answer.event(&name, index, &finished.picture);
                            event["usage"] = no_usage();
                            let warnings = finished.warnings.clone();
                            if !warnings.is_empty() {
                                event["warnings"] = warnings.into();
                            }
                            let file = app.encode(finished.picture, painting.request(index), answer.format);
                            event["b64_json"] = base64(&file.await);
                            yield sent(&name, &event);
                        }
                        _ => {}
                    }
                }
                Err(error) => {
                    line.failed(&error.error);
                    yield sent("error", &failed(&error));
                    break;
                }
            }
        }
        line.broken_off(false);
    };
    Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}

impl Progress {
    fn see(&mut self, event: &Event) {
        match event {
            Event::Started => self.started = Some(Instant::now()),
            Event::Step { done, of } => (self.done, self.of) = (*done, *of),
            _ => {}
        }
    }

    fn event(&self, app: &App, painting: &Painting, index: usize) -> Value {
        let place = painting.place(app, index).filter(|_| self.started.is_none());
        let left = match (&place, self.started) {
            (Some(place), _) => place.predicted,
            (None, Some(started)) if self.done > 0 => {
                Some(started.elapsed().div_f64(self.done as f64).mul_f64((self.of - self.done) as f64))
            }
            _ => None,
        };
        json!({
            "type": "sdrt.progress",
            "index": index,
            "step": self.done,
            "steps": self.of,
            "queue_position": place.map_or(0, |place| place.ahead + 1),
            "predicted_seconds": left.map(|left| left.as_secs_f64()),
        })
    }
}

impl Answer {
    /// What all events of pictures have; a preview may be smaller than its picture.
    fn event(&self, name: &str, index: usize, picture: &Picture) -> Value {
        json!({
            "type": name,
            "created_at": now(),
            "size": format!("{}x{}", picture.width, picture.height),
            "quality": "auto",
            "background": "opaque",
            "output_format": self.output,
            "index": index,
            "seed": picture.seed,
        })
    }
}

fn base64(file: &[u8]) -> Value {
    BASE64_STANDARD.encode(file).into()
}

/// Pictures are not counted in tokens.
fn no_usage() -> Value {
    json!({
        "input_tokens": 0,
        "input_tokens_details": { "image_tokens": 0, "text_tokens": 0 },
        "output_tokens": 0,
        "total_tokens": 0,
    })
}

fn failed(error: &ApiError) -> Value {
    let mut event = serde_json::to_value(error.body()).expect("strings");
    event["type"] = "error".into();
    event
}

fn sent(name: &str, data: &Value) -> Result<Sent, Infallible> {
    Ok(Sent::default().event(name).data(data.to_string()))
}
