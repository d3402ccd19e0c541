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
mod shared;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::denoiser::Denoiser;
use self::desk::{AHEAD, Desk};
pub use self::job::{Event, Failure, Finished, Job, JobTimes, Refusal, Wanted};
pub use self::observer::Observer;
pub use self::settings::{Batching, Settings};
use self::shared::Shared;
pub use self::shared::{Machine, Ticket};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::{Backend, DType};
use crate::pipeline::{BatchKey, Description, Init, Model, Request, SharedPipeline, SpawnDenoise};

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
                pipeline.cache_texts(settings.cached_prompts);
                pipeline.expect_images(settings.max_batch + AHEAD, settings.max_evaluations);
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
            let (mut pipeline, spawn) = SharedPipeline::new(pipeline);
            let init = Init::wanted(&shared.description);
            let expected = Request { init, ..shared.defaults.clone() };
            let warm = Some(expected).filter(|expected| expected.is_guided(&shared.description.config));
            let keys = warm.and_then(|expected| pipeline.batch_keys(&expected).ok()).unwrap_or_default();
            let _ = started.send(Ok((shared.clone(), spawn, keys)));
            drop(started);
            shared.guard(|| Desk { pipeline, shared: &shared }.run());
        });
        let died = |_| Error::internal("the engine's thread ended while it loaded the model");
        let desk = desk.map_err(|error| Error::internal(format!("the engine has no thread: {error}")))?;
        let (shared, spawn, warm) = heard.recv().map_err(died)??;

        let (warmed, heard) = mpsc::channel();
        let of_denoiser = shared.clone();
        let denoiser = std::thread::Builder::new().name("denoiser".into()).spawn(move || {
            let shared = of_denoiser;
            shared.guard(|| match open_denoiser(spawn, &shared, warm) {
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

fn open_denoiser(spawn: SpawnDenoise, shared: &Arc<Shared>, warm: Vec<BatchKey>) -> Result<Denoiser<'_>> {
    let mut denoiser = Denoiser::new(spawn.open()?, shared);
    for key in warm {
        denoiser.prepare(key)?;
    }
    Ok(denoiser)
}
