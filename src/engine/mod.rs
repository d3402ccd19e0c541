//! Many pictures at once: a batch that pictures join and leave between any two steps.
//!
//! ```text
//! submit -> queue -> [desk: text encoder, VAE encoder] -> ready -> [denoiser: U-Net] -> [desk: VAE] -> event
//! ```
//! Two threads, each with a stream of its own on the machine: what the desk does overlaps the denoiser's steps. A
//! request never waits until somebody else's picture is done, only until there is a place in its batch.

mod denoiser;
mod desk;
mod job;
mod observer;
mod pace;
mod queue;
mod settings;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::denoiser::Denoiser;
use self::desk::{Desk, Task};
use self::job::Painting;
pub use self::job::{Event, Failure, Finished, Job, JobTimes, Refusal, Ticket, Wanted};
pub use self::observer::Observer;
use self::pace::Pace;
use self::queue::Queue;
pub use self::settings::{Batching, Settings};
use crate::device::Device;
use crate::error::{Error, Invalid, Result};
use crate::ops::{Backend, DType};
use crate::parameter::Parameter;
use crate::pipeline::{BatchKey, Description, Loop, Model, Pass, Ready, Request, Shape};

/// Shortest and longest time after which somebody who was refused is asked to try again.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// A handle on an engine; clones are of the same.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
}

/// Ends the engine with its last handle.
struct Threads {
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

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

/// Where a picture that waits is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Pictures in front of it in the queue.
    pub ahead: usize,
    /// Until it is done, if it is known how fast the engine is.
    pub predicted: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub waiting: usize,
    /// Pictures that are being painted.
    pub running: usize,
    /// Of weights, activations and pictures.
    pub memory_bytes: usize,
    /// Whether the engine can paint.
    pub alive: bool,
}

/// What the threads and the handles share.
struct Shared {
    settings: Settings,
    description: Description,
    defaults: Request,
    machine: Machine,
    observer: Arc<dyn Observer>,
    state: Mutex<State>,
    /// Something in `state` has changed.
    changed: Condvar,
    /// Breaks off the denoiser after its step.
    interrupt: AtomicBool,
    next_id: AtomicU64,
    desk_bytes: AtomicUsize,
    denoiser_bytes: AtomicUsize,
}

#[derive(Default)]
struct State {
    queue: Queue,
    tasks: VecDeque<Task>,
    ready: Vec<Arrival>,
    /// By size: pictures that have been begun and are not denoised yet.
    begun: HashMap<[usize; 2], usize>,
    /// Jobs that have not come to their end.
    active: HashMap<u64, Arc<Painting>>,
    pace: Pace,
    /// No new jobs.
    closed: bool,
    /// Nothing more at all.
    stopped: bool,
    /// Why the engine cannot go on.
    dead: Option<String>,
}

/// A picture in front of its batch.
struct Arrival {
    painting: Arc<Painting>,
    /// Which of its passes.
    pass: usize,
    ready: Ready,
    since: Instant,
}

impl Engine {
    /// Loads a model; returns when it can paint.
    ///
    /// # Errors
    /// Those of the model and of the machine.
    pub fn start(
        model: Model,
        device: Device,
        dtype: Option<DType>,
        settings: Settings,
        observer: Arc<dyn Observer>,
    ) -> Result<Engine> {
        let open = move || {
            let opened = device.open(dtype)?;
            Ok((opened.backend, opened.notice))
        };
        Self::start_on(model, open, settings, observer)
    }

    /// The same on a machine that `open` opens, on the engine's own thread.
    pub fn start_on(
        model: Model,
        open: impl FnOnce() -> Result<(Box<dyn Backend>, Option<String>)> + Send + 'static,
        settings: Settings,
        observer: Arc<dyn Observer>,
    ) -> Result<Engine> {
        assert!(settings.max_batch > 0, "a batch is of at least one picture");
        let (started, heard) = mpsc::channel();
        let desk = std::thread::Builder::new().name("desk".into()).spawn(move || {
            let load = || {
                let (mut backend, notice) = open()?;
                backend.keep_alike();
                let machine = Machine {
                    name: backend.name(),
                    describe: backend.describe(),
                    dtype: backend.dtype(),
                    notice,
                };
                let mut pipeline = model.load(backend, &mut |_, _| {})?;
                pipeline.cache_prompts(settings.cached_prompts);
                let shared = Arc::new(Shared {
                    description: pipeline.description().clone(),
                    defaults: pipeline.defaults()?,
                    machine,
                    observer,
                    settings,
                    state: Mutex::default(),
                    changed: Condvar::new(),
                    interrupt: AtomicBool::new(false),
                    next_id: AtomicU64::new(1),
                    desk_bytes: AtomicUsize::new(pipeline.bytes()),
                    denoiser_bytes: AtomicUsize::new(0),
                });
                Ok((pipeline, shared))
            };
            let (pipeline, shared) = match load() {
                Ok(loaded) => loaded,
                Err(error) => return drop(started.send(Err(error))),
            };
            let (loop_, defaults) = (pipeline.detach_loop(), shared.defaults.clone());
            let key =
                pipeline.batch_key(&defaults).ok().filter(|_| defaults.is_guided(&shared.description.config));
            let _ = started.send(Ok((shared.clone(), loop_, key)));
            drop(started);
            shared.guard(|| Desk { pipeline, shared: &shared }.run());
        });
        let died = |_| Error::internal("the engine's thread ended while it loaded the model");
        let desk = desk.map_err(|error| Error::internal(format!("the engine has no thread: {error}")))?;
        let (shared, loop_, warm) = heard.recv().map_err(died)??;

        let (warmed, heard) = mpsc::channel();
        let of_denoiser = shared.clone();
        let denoiser = std::thread::Builder::new().name("denoiser".into()).spawn(move || {
            let shared = of_denoiser;
            shared.guard(|| match open_denoiser(loop_, &shared, warm) {
                Ok(mut denoiser) => {
                    let _ = warmed.send(Ok(()));
                    denoiser.run();
                }
                Err(error) => drop(warmed.send(Err(error))),
            });
        });
        let denoiser =
            denoiser.map_err(|error| Error::internal(format!("the engine has no thread: {error}")))?;
        let threads = Threads { shared: shared.clone(), handles: Mutex::new(vec![desk, denoiser]) };
        let engine = Engine { shared, threads: Arc::new(threads) };
        match heard.recv().map_err(died).and_then(|opened| opened) {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.shut_down(Duration::ZERO);
                Err(error)
            }
        }
    }

    pub fn description(&self) -> &Description {
        &self.shared.description
    }

    /// The request that the model suggests, for an empty prompt.
    pub fn defaults(&self) -> Request {
        self.shared.defaults.clone()
    }

    pub fn machine(&self) -> &Machine {
        &self.shared.machine
    }

    /// Takes a job, whose ticket cancels it when dropped.
    ///
    /// # Errors
    /// A request that cannot be painted, or one too many.
    pub fn submit(&self, job: Job) -> Result<Ticket, Refusal> {
        Ok(self.submit_together(vec![job])?.remove(0))
    }

    /// Queues all of the jobs or none: no image starts while another of its request may still be rejected. They are
    /// queued if there is room for the first.
    ///
    /// # Errors
    /// A request that cannot be painted, or one too many.
    pub fn submit_together(&self, jobs: Vec<Job>) -> Result<Vec<Ticket>, Refusal> {
        let shared = &self.shared;
        let count = jobs.len();
        let paintings = jobs.into_iter().map(|job| shared.painting(job)).collect::<Result<Vec<_>>>();
        let taken = paintings.map_err(Refusal::from).and_then(|paintings| shared.take(paintings));
        if taken.is_err() {
            (0..count).for_each(|_| shared.observer.refused());
        }
        let tickets = taken?.into_iter().map(|painting| Ticket { painting, shared: Arc::downgrade(shared) });
        shared.changed.notify_all();
        Ok(tickets.collect())
    }

    /// Where a picture is while it waits.
    pub fn position(&self, ticket: &Ticket) -> Option<Place> {
        let state = self.shared.lock();
        let painting = &ticket.painting;
        let ahead = state.queue.place(painting.id)?;
        let before: f64 = state.queue.before(painting.priority).take(ahead).map(|p| p.cost).sum();
        let cost = state.cost_of_begun() + before + painting.cost;
        Some(Place { ahead, predicted: state.pace.predict(cost) })
    }

    pub fn load(&self) -> Load {
        let shared = &self.shared;
        let state = shared.lock();
        let bytes = [&shared.desk_bytes, &shared.denoiser_bytes];
        Load {
            waiting: state.queue.len(),
            running: state.active.len() - state.queue.len(),
            memory_bytes: bytes.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum(),
            alive: state.dead.is_none(),
        }
    }

    /// Takes no new jobs and waits until those that are there have come to their end, or fails them after `grace`.
    /// Returns how many it failed.
    pub fn shut_down(&self, grace: Duration) -> usize {
        self.threads.end(grace)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl Threads {
    fn end(&self, grace: Duration) -> usize {
        let shared = &self.shared;
        let mut state = shared.lock();
        state.closed = true;
        let until = Instant::now() + grace;
        while !state.active.is_empty() && state.dead.is_none() {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.stopped = true;
        let unfinished = state.end_all();
        drop(state);
        shared.interrupt();
        for painting in &unfinished {
            painting.cancel();
            painting.tell(Event::Failed(Failure::ShutDown));
        }
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        // A thread that panicked has said so.
        handles.into_iter().for_each(|thread| drop(thread.join()));
        unfinished.len()
    }
}

fn open_denoiser(loop_: Loop, shared: &Arc<Shared>, warm: Option<BatchKey>) -> Result<Denoiser<'_>> {
    let mut denoiser = Denoiser::new(loop_.open()?, shared);
    if let Some(key) = warm {
        denoiser.prepare(key)?;
    }
    Ok(denoiser)
}

impl State {
    /// Work of the pictures that have been begun.
    fn cost_of_begun(&self) -> f64 {
        let begun = self.active.values().filter(|painting| self.queue.place(painting.id).is_none());
        begun.map(|painting| painting.cost_left()).sum()
    }

    /// Work in front of a job of this priority that would come now.
    fn cost_before(&self, priority: i32) -> f64 {
        self.cost_of_begun() + self.queue.before(priority).map(|painting| painting.cost).sum::<f64>()
    }

    fn cost_left(&self) -> f64 {
        self.active.values().map(|painting| painting.cost_left()).sum()
    }

    /// Ends all jobs; whoever calls tells them.
    fn end_all(&mut self) -> Vec<Arc<Painting>> {
        self.queue.drain();
        self.active.drain().map(|(_, painting)| painting).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that a job asks for, checked but not queued.
    ///
    /// # Errors
    /// A request that cannot be painted.
    fn painting(&self, job: Job) -> Result<Painting> {
        let config = &self.description.config;
        let request = &job.request;
        if request.images != 1 || !request.controls.is_empty() {
            return Err(Error::invalid("a job is one picture, without ControlNets"));
        }
        if let Some(previews) = job.previews {
            previews.method.check(config)?;
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
        let rows = if request.is_guided(config) { 2 } else { 1 };
        let pixels = |pass: &Pass| rows * (pass.width / scale) * (pass.height / scale);
        let costs = passes.iter().zip(&evaluations).map(|(pass, n)| (pixels(pass) * n) as f64);
        let (cost, size) = (costs.sum(), [passes[0].width, passes[0].height]);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Ok(Painting::new(id, job, size, evaluations, cost))
    }

    /// Queues images: all of them or none.
    fn take(&self, paintings: Vec<Painting>) -> Result<Vec<Arc<Painting>>, Refusal> {
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

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks off the denoiser after its step, and wakes whoever waits.
    fn interrupt(&self) {
        self.interrupt.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Takes a job off the list; `None` if it has come to its end before.
    fn end(&self, painting: &Painting) -> Option<Arc<Painting>> {
        let ended = self.lock().active.remove(&painting.id);
        self.changed.notify_all();
        ended
    }

    fn fail(&self, painting: &Painting, failure: Failure) {
        let Some(painting) = self.end(painting) else { return };
        match failure {
            Failure::Cancelled => self.observer.cancelled(),
            _ => self.observer.failed(),
        }
        painting.tell(Event::Failed(failure));
    }

    fn cancel(&self, painting: &Painting) {
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
    fn failed(&self, painting: &Painting, error: Error) {
        let error = Arc::new(error);
        self.fail(painting, Failure::Error(error.clone()));
        if error.is_fatal() {
            self.die(error);
        }
    }

    fn die(&self, error: Arc<Error>) {
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
    fn leaves(&self, painting: &Painting) {
        if let Some(begun) = self.lock().begun.get_mut(&painting.size) {
            *begun -= 1;
        }
        self.changed.notify_all();
    }

    fn put_back(&self, ready: Ready) {
        self.lock().tasks.push_back(Task::PutBack(ready));
        self.changed.notify_all();
    }

    /// Has a preview made, instead of one that the desk has not come to yet.
    fn preview(&self, painting: Arc<Painting>, shape: Shape, done: usize, sample: Option<Vec<f32>>) {
        let Some(sample) = sample else { return };
        let mut state = self.lock();
        let id = painting.id;
        state.tasks.retain(|task| !matches!(task, Task::Preview { painting, .. } if painting.id == id));
        state.tasks.push_back(Task::Preview { painting, shape, done, sample });
        drop(state);
        self.changed.notify_all();
    }

    /// Runs a thread's work; a bug in it stops the engine and says so.
    fn guard(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.die(Arc::new(Error::internal("a thread of the engine panicked; the log says where")));
        }
    }
}
