//! What is being painted for clients of this interface, which has one progress for all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};

use super::super::App;
use super::super::errors::{ApiError, ErrorBody};
use super::super::pictures::encode_preview;
use crate::engine::Event;
use crate::image::Format;
use crate::pipeline::Picture;

/// All jobs that run, the oldest first.
#[derive(Default)]
pub struct Jobs(Arc<Mutex<Vec<Arc<Job>>>>);

struct Job {
    start: Instant,
    /// Evaluations of each picture.
    evaluations: usize,
    done: Mutex<Done>,
    interrupt: watch::Sender<bool>,
}

struct Done {
    /// Evaluations of each picture.
    evaluations: Vec<usize>,
    preview: Option<Picture>,
}

/// A job while it runs.
pub struct Running {
    jobs: Arc<Mutex<Vec<Arc<Job>>>>,
    job: Arc<Job>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    pub fn begin(&self, pictures: usize, evaluations: usize) -> Running {
        let done = Mutex::new(Done { evaluations: vec![0; pictures], preview: None });
        let interrupt = watch::Sender::new(false);
        let job = Arc::new(Job { start: Instant::now(), evaluations, done, interrupt });
        lock(&self.0).push(job.clone());
        Running { jobs: self.0.clone(), job }
    }
}

impl Running {
    pub fn see(&self, index: usize, event: &Event) {
        let mut so_far = lock(&self.job.done);
        match event {
            Event::Step { done, .. } => so_far.evaluations[index] = *done,
            Event::Preview { picture, .. } => so_far.preview = Some(picture.clone()),
            Event::Done(_) => so_far.evaluations[index] = self.job.evaluations,
            _ => {}
        }
    }

    /// Returns once somebody interrupts.
    pub async fn interrupted(&self) {
        let mut interrupt = self.job.interrupt.subscribe();
        // The sender lives as long as the job does.
        let _ = interrupt.wait_for(|interrupted| *interrupted).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.jobs).retain(|job| !Arc::ptr_eq(job, &self.job));
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ProgressQuery {
    /// Leaves the picture out.
    #[serde(default)]
    skip_current_image: bool,
}

/// How far the oldest request of this interface is.
#[derive(Serialize, ToSchema)]
pub struct Progress {
    /// From 0 to 1.
    progress: f64,
    /// Seconds.
    eta_relative: f64,
    state: ProgressState,
    /// A PNG in Base64: what the picture will be, of models whose latents are quickly seen.
    current_image: Option<String>,
    textinfo: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct ProgressState {
    skipped: bool,
    interrupted: bool,
    job: String,
    /// Requests.
    job_count: usize,
    job_timestamp: String,
    job_no: usize,
    sampling_step: usize,
    sampling_steps: usize,
}

/// How far the oldest request of this interface is.
#[utoipa::path(get, path = "/sdapi/v1/progress", tag = "A1111", params(ProgressQuery), responses(
    (status = 200, body = Progress),
    (status = 400, description = "A parameter cannot be used", body = ErrorBody),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody)
))]
pub async fn progress(
    State(app): State<Arc<App>>,
    query: Result<Query<ProgressQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Progress>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
    let (oldest, job_count) = {
        let jobs = lock(&app.a1111.0);
        (jobs.first().cloned(), jobs.len())
    };
    let (mut progress, mut eta, mut preview, mut interrupted) = (0.0, 0.0, None, false);
    let (mut sampling_step, mut sampling_steps, mut job_no) = (0, 0, 0);
    if let Some(job) = oldest {
        let so_far = lock(&job.done);
        let all = so_far.evaluations.len() * job.evaluations;
        progress = so_far.evaluations.iter().sum::<usize>() as f64 / all.max(1) as f64;
        if progress > 0.0 {
            eta = job.start.elapsed().as_secs_f64() * (1.0 / progress - 1.0);
        }
        job_no = so_far.evaluations.iter().filter(|done| **done == job.evaluations).count();
        sampling_step =
            so_far.evaluations.iter().copied().filter(|done| *done < job.evaluations).max().unwrap_or(0);
        sampling_steps = job.evaluations;
        preview = so_far.preview.clone().filter(|_| !query.skip_current_image);
        interrupted = *job.interrupt.borrow();
    }
    let current_image = match preview {
        Some(preview) => Some(BASE64_STANDARD.encode(encode_preview(preview, Format::Png).await)),
        None => None,
    };
    let state = ProgressState {
        skipped: false,
        interrupted,
        job: String::new(),
        job_count,
        job_timestamp: String::new(),
        job_no,
        sampling_step,
        sampling_steps,
    };
    Ok(Json(Progress { progress, eta_relative: eta, state, current_image, textinfo: None }))
}

/// Ends all requests of this interface: each is answered with the pictures that are done.
#[utoipa::path(post, path = "/sdapi/v1/interrupt", tag = "A1111", responses(
    (status = 200, description = "They end", body = serde_json::Value),
    (status = 401, description = "The API key is missing or wrong", body = ErrorBody),
    (status = 403, description = "The page that asks is not this server's own", body = ErrorBody)
))]
pub async fn interrupt(State(app): State<Arc<App>>) -> Json<serde_json::Value> {
    for job in lock(&app.a1111.0).iter() {
        job.interrupt.send_replace(true);
    }
    Json(serde_json::json!({}))
}
