//! Pictures on their way through the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::spawn_blocking;

use super::App;
use super::errors::ApiError;
use super::log::Line;
use crate::engine::{Event, Job, Place, Ticket, Wanted};
use crate::error::{Invalid, Result};
use crate::image::Format;
use crate::parameter::{Interface, Parameter};
use crate::pipeline::{Init, Pass, Request};
use crate::text::{LoraTag, extract_loras};

/// Characters of a prompt, as OpenAI's DALL-E 3 takes them. Every 75 tokens are another chunk of the U-Net's context.
pub const LONGEST_PROMPT: usize = 4000;

const DEADLINE: &str = "x-deadline-seconds";

/// What a client asks for.
pub struct Order {
    /// Its `images` are jobs of their own.
    pub request: Request,
    pub format: Format,
    pub priority: i32,
    pub deadline: Option<Instant>,
    pub previews: Option<Wanted>,
    pub interface: Interface,
}

/// The pictures of one order. Dropped, it cancels those that are not done.
pub struct Painting {
    /// Of each picture, what is asked for and, until it is done, its ticket.
    jobs: Vec<(Request, Option<Ticket>)>,
    /// Endless in theory; but a job has only as many events as steps and previews.
    events: UnboundedReceiver<(usize, Event)>,
    interface: Interface,
    line: Arc<Line>,
}

impl Order {
    /// Checks the request against the server's limits and the model; returns its passes.
    pub fn check(&mut self, app: &App) -> Result<Vec<Pass>, ApiError> {
        let most = app.settings.limits.images;
        let images = std::mem::replace(&mut self.request.images, 1);
        let checked = match images {
            n if (1..=most).contains(&n) => self.check_picture(app),
            _ => Err(Invalid::value(Parameter::NumImages, images).expected(format!("1 to {most}")).error()),
        };
        self.request.images = images;
        checked.map_err(|error| ApiError::of_error(&error, self.interface))
    }

    fn check_picture(&self, app: &App) -> Result<Vec<Pass>> {
        let Order { request, format, .. } = self;
        let negative = (Parameter::NegativePrompt, &request.negative_prompt);
        for (parameter, prompt) in [(Parameter::Prompt, &request.prompt), negative] {
            let length = prompt.chars().count();
            if length > LONGEST_PROMPT {
                return Err(Invalid::of([parameter])
                    .problem(format!("has {length} characters"))
                    .expected(format!("at most {LONGEST_PROMPT}"))
                    .error());
            }
        }
        if let Some(LoraTag { name, .. }) = extract_loras(&request.prompt)?.1.first() {
            return Err(Invalid::of([Parameter::Prompt])
                .problem(format!("<lora:{name}>: LoRAs are not served"))
                .advice("leave the tag out")
                .error());
        }
        let passes = request.check(app.engine.description())?;
        let most = app.settings.limits.pixels;
        if let Some(Pass { width, height, .. }) = passes.iter().find(|pass| pass.width * pass.height > most) {
            return Err(Invalid::of([Parameter::Width, Parameter::Height])
                .problem(format!("{width}x{height} is too large"))
                .expected(format!("at most {most} pixels"))
                .error());
        }
        format.check(&app.origin.parameters(request, 0).to_string())?;
        Ok(passes)
    }
}

/// Brings the pictures to start from to size, once for all jobs, where the engine would do it for each.
async fn fit(request: Request) -> Result<Request, ApiError> {
    let Request { width, height, .. } = request;
    let Some(init) = request.init else { return Ok(request) };
    let fitted = spawn_blocking(move || Init {
        picture: init.picture.resized(width, height),
        mask: init.mask.map(|mask| mask.resized(width, height)),
        strength: init.strength,
    });
    Ok(Request { init: Some(fitted.await.map_err(|_| ApiError::internal())?), ..request })
}

impl App {
    /// Sends the jobs of a checked order to the engine.
    pub async fn submit(&self, order: Order, line: &Arc<Line>) -> Result<Painting, ApiError> {
        let Order { request, priority, deadline, previews, interface, .. } = order;
        let request = fit(request).await?;
        let (send, events) = unbounded_channel();
        let requests: Vec<Request> = (0..request.images)
            .map(|i| Request { images: 1, seed: request.seed.wrapping_add(i as u64), ..request.clone() })
            .collect();
        let jobs = requests.iter().enumerate().map(|(i, request)| {
            let send = send.clone();
            Job {
                request: request.clone(),
                priority,
                deadline,
                previews,
                // Nobody listens any more where the client is gone.
                on_event: Box::new(move |event| drop(send.send((i, event)))),
            }
        });
        let tickets = self.engine.submit_together(jobs.collect());
        let tickets = tickets.map_err(|refusal| ApiError::of_refusal(&refusal, interface))?;
        let jobs = requests.into_iter().zip(tickets.into_iter().map(Some)).collect();
        Ok(Painting { jobs, events, interface, line: line.clone() })
    }

    /// Within how many seconds the pictures have to be done: the field's number, or the header's.
    pub fn deadline(field: Option<f64>, headers: &HeaderMap) -> Result<Option<Instant>, ApiError> {
        let header = headers.get(DEADLINE).map(|value| {
            let number = value.to_str().ok().and_then(|text| text.parse::<f64>().ok());
            number.ok_or_else(|| ApiError::field(DEADLINE, "expected a number of seconds"))
        });
        let Some(seconds) = field.map(Ok).or(header).transpose()? else { return Ok(None) };
        let name = if field.is_some() { "deadline" } else { DEADLINE };
        let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero());
        match time.map(|time| Instant::now().checked_add(time)) {
            Some(deadline) => Ok(deadline),
            None => Err(ApiError::field(name, format!("{seconds} is no time; expected seconds above 0"))),
        }
    }
}

impl Painting {
    pub fn request(&self, index: usize) -> &Request {
        &self.jobs[index].0
    }

    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// What happens next to one of the pictures, by its index; `None` once all are done.
    ///
    /// # Errors
    /// One of the pictures failed, so the others are not wanted either.
    pub async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        if self.jobs.iter().all(|(_, ticket)| ticket.is_none()) {
            return Ok(None);
        }
        let (index, event) = self.events.recv().await.ok_or_else(ApiError::internal)?;
        match &event {
            Event::Failed(failure) => return Err(ApiError::of_failure(failure, self.interface)),
            Event::Done(finished) => {
                self.line.painted(finished.times.queued);
                self.jobs[index].1 = None;
            }
            _ => {}
        }
        Ok(Some((index, event)))
    }

    /// The place of a picture in the queue, while it waits.
    pub fn place(&self, app: &App, index: usize) -> Option<Place> {
        app.engine.position(self.jobs[index].1.as_ref()?)
    }
}
