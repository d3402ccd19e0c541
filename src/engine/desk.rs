//! What comes before and after the steps: prompts, pictures to start from, the VAE.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::job::{Event, Failure, Finished, Painting};
use super::settings::Batching;
use super::shared::{Arrival, Shared, Task};
use crate::pipeline::{Canvas, Picture, Prepared, SharedPipeline};

/// Pictures of a size that are begun beyond those that fit a batch, so that a place never waits for a prompt.
pub(super) const AHEAD: usize = 2;

/// How long the desk sleeps at most: deadlines pass without an event.
const NAP: Duration = Duration::from_millis(250);

pub(super) struct Desk<'a> {
    pub pipeline: SharedPipeline,
    pub shared: &'a Arc<Shared>,
}

enum Next {
    Task(Box<Task>),
    Begin(Arc<Painting>),
    Stop,
}

impl Desk<'_> {
    pub fn run(&mut self) {
        loop {
            match self.next() {
                Next::Task(task) => self.work(*task),
                Next::Begin(painting) => self.begin(painting),
                Next::Stop => return,
            }
            self.shared.desk_bytes.store(self.pipeline.bytes(), Ordering::Relaxed);
        }
    }

    /// Waits for something to do. Pictures that are nearly done come before new ones.
    fn next(&self) -> Next {
        let shared = self.shared;
        let settings = &shared.settings;
        let room = match settings.batching {
            Batching::Step => settings.max_batch + AHEAD,
            Batching::Request { .. } => 2 * settings.max_batch,
        };
        loop {
            let mut guard = shared.lock();
            let state = &mut *guard;
            if let Some(task) = state.tasks.pop_front() {
                return Next::Task(Box::new(task));
            }
            if state.stopped {
                return Next::Stop;
            }
            let late = state.queue.take_late(Instant::now());
            if !late.is_empty() {
                drop(guard);
                late.iter().for_each(|painting| shared.fail(painting, Failure::DeadlinePassed));
                continue;
            }
            let begun = &mut state.begun;
            let has_room = |painting: &Painting| begun.get(&painting.size).is_none_or(|&n| n < room);
            if let Some(painting) = state.queue.take(has_room) {
                *begun.entry(painting.size).or_default() += 1;
                return Next::Begin(painting);
            }
            drop(shared.changed.wait_timeout(guard, NAP));
        }
    }

    fn work(&mut self, task: Task) {
        match task {
            Task::Preview { painting, canvas, done, sample } => {
                let Some(wanted) = painting.previews.filter(|_| !painting.is_cancelled()) else { return };
                match self.pipeline.preview(&painting.request, canvas, wanted.method, &sample) {
                    Ok(pictures) => painting.tell(Event::Preview { done, picture: the_one(pictures) }),
                    Err(error) => self.shared.failed(&painting, error),
                }
            }
            Task::Denoised { painting, pass, canvas, latents } => {
                if pass + 1 < painting.evaluations.len() {
                    self.begin_pass(&painting, pass + 1, Some(latents));
                } else {
                    self.finish(&painting, canvas, &latents);
                }
            }
        }
    }

    fn begin(&mut self, painting: Arc<Painting>) {
        let queued = painting.submitted.elapsed();
        painting.note(|progress| progress.times.queued = queued);
        self.shared.observer.queued(queued);
        painting.tell(Event::Started);
        self.begin_pass(&painting, 0, None);
    }

    fn begin_pass(&mut self, painting: &Arc<Painting>, pass: usize, before: Option<Vec<f32>>) {
        let start = Instant::now();
        let before = before.as_ref().map(std::slice::from_ref);
        let Prepared { mut states, warnings, .. } =
            match self.pipeline.prepare(&painting.request, pass, before) {
                Ok(prepared) => prepared,
                Err(error) => {
                    self.shared.leaves(painting);
                    return self.shared.failed(painting, error);
                }
            };
        let time = start.elapsed();
        painting.note(|progress| {
            progress.times.encode += time;
            for warning in warnings {
                if !progress.warnings.contains(&warning) {
                    progress.warnings.push(warning);
                }
            }
        });
        self.shared.observer.encoded(time);
        let state = states.pop().expect("a request for one image");
        let arrival = Arrival { painting: painting.clone(), pass, state, since: Instant::now() };
        self.shared.lock().ready.push(arrival);
        self.shared.interrupt();
    }

    fn finish(&mut self, painting: &Painting, canvas: Canvas, latents: &[f32]) {
        if painting.is_cancelled() {
            return self.shared.fail(painting, Failure::Cancelled);
        }
        let start = Instant::now();
        let decoded = self.pipeline.decode(&painting.request, canvas, latents);
        let time = start.elapsed();
        let picture = match decoded {
            Ok(pictures) => the_one(pictures),
            Err(error) => return self.shared.failed(painting, error),
        };
        self.shared.observer.decoded(time);
        let (times, warnings) = painting.note(|progress| {
            progress.times.decode = time;
            progress.times.evaluations = progress.done;
            (progress.times, std::mem::take(&mut progress.warnings))
        });
        if let Some(painting) = self.shared.end(painting) {
            self.shared.observer.painted();
            painting.tell(Event::Done(Box::new(Finished { picture, warnings, times })));
        }
    }
}

fn the_one(pictures: Vec<Picture>) -> Picture {
    pictures.into_iter().next().expect("a request for one image")
}
