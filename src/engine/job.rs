//! What is asked of an engine, and what it tells of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::pipeline::{Picture, PreviewMethod, Request};

/// What to paint, and how much it matters.
pub struct Job {
    /// For one picture.
    pub request: Request,
    /// Higher first.
    pub priority: i32,
    /// Refused at once if it cannot be met, dropped where it passes while the picture waits.
    pub deadline: Option<Instant>,
    pub previews: Option<Wanted>,
    /// Called on the engine's threads, one event after the other; must not block.
    pub on_event: Box<dyn FnMut(Event) + Send>,
}

/// Previews of a job.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Model evaluations from one to the next, at least 1.
    pub every: usize,
    pub method: PreviewMethod,
}

/// What becomes of a job.
pub enum Event {
    /// It has left the queue.
    Started,
    /// Model evaluations, not necessarily each one.
    Step { done: usize, of: usize },
    /// May be left out where the next comes soon.
    Preview { done: usize, picture: Picture },
    /// The last event of a job that has come to its end.
    Done(Box<Finished>),
    /// The last event of another.
    Failed(Failure),
}

#[derive(Clone, Debug)]
pub struct Finished {
    pub picture: Picture,
    /// What the user should know.
    pub warnings: Vec<String>,
    pub times: JobTimes,
}

/// Where the time of a job went.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobTimes {
    pub queued: Duration,
    pub encode: Duration,
    /// In a batch.
    pub denoise: Duration,
    pub decode: Duration,
    /// Model evaluations.
    pub evaluations: usize,
}

/// Why there is no picture.
#[derive(Clone, Debug)]
pub enum Failure {
    Cancelled,
    DeadlinePassed,
    ShutDown,
    Error(Arc<Error>),
}

/// Why a job is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(#[from] Error),
    #[error("too many pictures wait already; try again in {} s", seconds(*.retry_after))]
    Full { retry_after: Duration },
    #[error("the picture would take about {} s, longer than its deadline allows", seconds(*.predicted))]
    TooLate { predicted: Duration, retry_after: Duration },
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the engine has stopped: {0}")]
    Dead(String),
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs_f64().ceil() as u64
}

/// A job that was taken.
pub(super) struct Painting {
    pub id: u64,
    pub request: Request,
    pub priority: i32,
    pub deadline: Option<Instant>,
    pub previews: Option<Wanted>,
    pub submitted: Instant,
    /// Width and height of its first pass.
    pub size: [usize; 2],
    /// Model evaluations of each pass.
    pub evaluations: Vec<usize>,
    /// Latent pixels that the U-Net sees in all evaluations.
    pub cost: f64,
    pub progress: Mutex<Progress>,
    on_event: Mutex<Box<dyn FnMut(Event) + Send>>,
    cancelled: AtomicBool,
}

/// What is known so far.
#[derive(Default)]
pub(super) struct Progress {
    pub times: JobTimes,
    pub warnings: Vec<String>,
    /// Evaluations of all passes.
    pub done: usize,
}

impl Painting {
    pub fn new(id: u64, job: Job, size: [usize; 2], evaluations: Vec<usize>, cost: f64) -> Self {
        let Job { request, priority, deadline, previews, on_event } = job;
        Painting {
            id,
            request,
            priority,
            deadline,
            previews,
            submitted: Instant::now(),
            size,
            evaluations,
            cost,
            progress: Mutex::default(),
            on_event: Mutex::new(on_event),
            cancelled: AtomicBool::new(false),
        }
    }

    pub fn tell(&self, event: Event) {
        let mut on_event = self.on_event.lock().unwrap_or_else(PoisonError::into_inner);
        on_event(event);
    }

    pub fn note<T>(&self, note: impl FnOnce(&mut Progress) -> T) -> T {
        note(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Evaluations of all passes.
    pub fn all_evaluations(&self) -> usize {
        self.evaluations.iter().sum()
    }

    /// What is left of the cost.
    pub fn cost_left(&self) -> f64 {
        let done = self.note(|progress| progress.done) as f64;
        self.cost * (1.0 - done / self.all_evaluations().max(1) as f64)
    }
}
