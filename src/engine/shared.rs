//! State of an engine that its handles and threads share.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::job::{Event, Failure, Job, Painting, Refusal};
use super::observer::Observer;
use super::pace::Pace;
use super::queue::Queue;
use super::settings::Settings;
use crate::error::{Error, Invalid, Result};
use crate::ops::DType;
use crate::parameter::Parameter;
use crate::pipeline::{Canvas, Description, Pass, Request, State as ImageState};

/// Shortest and longest time after which somebody who was refused is asked to try again.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// What the engine runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    /// In words.
    pub describe: String,
    pub dtype: DType,
    /// Why it is not a GPU, where nothing was said.
    pub notice: Option<String>,
}

/// What the threads and the handles share.
pub(super) struct Shared {
    pub settings: Settings,
    pub description: Description,
    pub defaults: Request,
    pub machine: Machine,
    pub observer: Arc<dyn Observer>,
    pub state: Mutex<State>,
    /// Something in `state` has changed.
    pub changed: Condvar,
    /// Breaks off the denoiser after its step.
    pub interrupt: AtomicBool,
    pub next_id: AtomicU64,
    pub desk_bytes: AtomicUsize,
    pub denoiser_bytes: AtomicUsize,
}

#[derive(Default)]
pub(super) struct State {
    pub queue: Queue,
    pub tasks: VecDeque<Task>,
    pub ready: Vec<Arrival>,
    /// By size: pictures that have been begun and are not denoised yet.
    pub begun: HashMap<[usize; 2], usize>,
    /// Jobs that have not come to their end.
    pub active: HashMap<u64, Arc<Painting>>,
    pub pace: Pace,
    /// No new jobs.
    pub closed: bool,
    /// Nothing more at all.
    pub stopped: bool,
    /// Why the engine cannot go on.
    pub dead: Option<String>,
}

/// A picture in front of its batch.
pub(super) struct Arrival {
    pub painting: Arc<Painting>,
    /// Which of its passes.
    pub pass: usize,
    pub state: ImageState,
    pub since: Instant,
}

/// What the denoiser leaves to the desk.
pub(super) enum Task {
    /// A pass is done.
    Denoised {
        painting: Arc<Painting>,
        pass: usize,
        canvas: Canvas,
        latents: Vec<f32>,
    },
    Preview {
        painting: Arc<Painting>,
        canvas: Canvas,
        done: usize,
        sample: Vec<f32>,
    },
}

/// Cancels its job when dropped, within one step.
pub struct Ticket {
    pub(super) painting: Arc<Painting>,
    pub(super) shared: Weak<Shared>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.cancel(&self.painting);
        }
    }
}

impl State {
    /// Work of the pictures that have been begun.
    pub fn cost_of_begun(&self) -> f64 {
        let begun = self.active.values().filter(|painting| self.queue.place(painting.id).is_none());
        begun.map(|painting| painting.cost_left()).sum()
    }

    /// Work in front of a job of this priority that would come now.
    pub fn cost_before(&self, priority: i32) -> f64 {
        self.cost_of_begun() + self.queue.before(priority).map(|painting| painting.cost).sum::<f64>()
    }

    pub fn cost_left(&self) -> f64 {
        self.active.values().map(|painting| painting.cost_left()).sum()
    }

    /// Ends all jobs; whoever calls tells them.
    pub fn end_all(&mut self) -> Vec<Arc<Painting>> {
        self.queue.drain();
        self.active.drain().map(|(_, painting)| painting).collect()
    }
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that a job asks for, checked but not queued.
    ///
    /// # Errors
    /// A request that cannot be painted.
    pub fn painting(&self, job: Job) -> Result<Painting> {
        let config = &self.description.config;
        let request = &job.request;
        if request.images != 1 {
            return Err(Error::invalid("a job is one image"));
        }
        if let Some(previews) = job.previews {
            previews.method.check(&self.description)?;
        }
        let passes = request.check(&self.description)?;
        let evaluations: Vec<usize> = passes.iter().map(|pass| pass.table.evaluations()).collect();
        let (all, most) = (evaluations.iter().sum::<usize>(), self.settings.max_evaluations);
        if all > most {
            return Err(Invalid::value(Parameter::Steps, request.steps)
                .problem(format!("{all} model evaluations"))
                .expected(format!("at most {most} of one image here"))
                .error());
        }
        let scale = config.vae.scale_factor();
        let more = request.rows(config) - 1;
        let guided = |pass: &Pass| pass.guided(request, config).into_iter().filter(|&guided| guided).count();
        let rows = |pass: &Pass| pass.table.evaluations() + more * guided(pass);
        let pixels = |pass: &Pass| (pass.width / scale) * (pass.height / scale);
        let costs = passes.iter().map(|pass| (pixels(pass) * rows(pass)) as f64);
        let (cost, size) = (costs.sum(), [passes[0].width, passes[0].height]);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Ok(Painting::new(id, job, size, evaluations, cost))
    }

    /// Queues images: all of them or none.
    pub fn take(&self, paintings: Vec<Painting>) -> Result<Vec<Arc<Painting>>, Refusal> {
        let mut state = self.lock();
        if let Some(why) = &state.dead {
            return Err(Refusal::Dead(why.clone()));
        }
        if state.closed {
            return Err(Refusal::ShuttingDown);
        }
        let retry_after = || {
            let half = state.pace.predict(state.cost_left() / 2.0).unwrap_or(RETRY[0]);
            half.clamp(RETRY[0], RETRY[1])
        };
        if state.queue.len() >= self.settings.max_queue {
            return Err(Refusal::Full { retry_after: retry_after() });
        }
        let mut cost = 0.0;
        for painting in &paintings {
            cost += painting.cost;
            if let Some(deadline) = painting.deadline
                && let Some(predicted) = state.pace.predict(state.cost_before(painting.priority) + cost)
                && Instant::now() + predicted > deadline
            {
                return Err(Refusal::TooLate { predicted, retry_after: retry_after() });
            }
        }
        let paintings: Vec<_> = paintings.into_iter().map(Arc::new).collect();
        for painting in &paintings {
            state.active.insert(painting.id, painting.clone());
            state.queue.push(painting.clone());
        }
        Ok(paintings)
    }

    pub fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks off the denoiser after its step, and wakes whoever waits.
    pub fn interrupt(&self) {
        self.interrupt.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Takes a job off the list; `None` if it has come to its end before.
    pub fn end(&self, painting: &Painting) -> Option<Arc<Painting>> {
        let ended = self.lock().active.remove(&painting.id);
        self.changed.notify_all();
        ended
    }

    pub fn fail(&self, painting: &Painting, failure: Failure) {
        let Some(painting) = self.end(painting) else { return };
        match failure {
            Failure::Cancelled => self.observer.cancelled(),
            _ => self.observer.failed(),
        }
        painting.tell(Event::Failed(failure));
    }

    pub fn cancel(&self, painting: &Painting) {
        let mut state = self.lock();
        if !state.active.contains_key(&painting.id) {
            return;
        }
        painting.cancel();
        let waited = state.queue.remove(painting.id);
        drop(state);
        if waited {
            self.fail(painting, Failure::Cancelled);
        } else {
            self.interrupt();
        }
    }

    /// Fails one picture. An error of the device fails all: nothing on it can be trusted any more.
    pub fn failed(&self, painting: &Painting, error: Error) {
        let error = Arc::new(error);
        if error.is_fatal() {
            return self.die(error);
        }
        self.fail(painting, Failure::Error(error));
    }

    /// Stops the engine, then fails all: whoever hears of it finds the engine stopped.
    pub fn die(&self, error: Arc<Error>) {
        tracing::error!(%error, "the engine has stopped");
        let mut state = self.lock();
        state.dead.get_or_insert_with(|| error.to_string());
        state.stopped = true;
        let all = state.end_all();
        drop(state);
        self.interrupt();
        for painting in all {
            painting.cancel();
            self.observer.failed();
            painting.tell(Event::Failed(Failure::Error(error.clone())));
        }
    }

    /// A picture needs no place in a batch any more.
    pub fn leaves(&self, painting: &Painting) {
        if let Some(begun) = self.lock().begun.get_mut(&painting.size) {
            *begun -= 1;
        }
        self.changed.notify_all();
    }

    /// Has a preview made, instead of one that the desk has not come to yet.
    pub fn preview(&self, painting: Arc<Painting>, canvas: Canvas, done: usize, sample: Option<Vec<f32>>) {
        let Some(sample) = sample else { return };
        let mut state = self.lock();
        let id = painting.id;
        state.tasks.retain(|task| !matches!(task, Task::Preview { painting, .. } if painting.id == id));
        state.tasks.push_back(Task::Preview { painting, canvas, done, sample });
        drop(state);
        self.changed.notify_all();
    }

    /// Runs a thread's work; a bug in it stops the engine and says so.
    pub fn guard(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.die(Arc::new(Error::internal("a thread of the engine panicked; the log says where")));
        }
    }
}
