//! The steps: which pictures are in which batch, and whose turn it is.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::job::{Event, Failure, Painting};
use super::settings::Batching;
use super::shared::{Arrival, Shared, Task};
use crate::error::{Error, Result};
use crate::pipeline::{Batch, BatchKey, DenoiseContext, Member, State};

/// How long a batch runs while others wait for their turn.
const TURN: Duration = Duration::from_millis(100);

/// Pictures of a batch, as the denoiser knows them.
struct Owner {
    painting: Arc<Painting>,
    pass: usize,
    /// Evaluations of the passes before.
    before: usize,
    joined: Instant,
}

/// A batch, and how much of the machine it has had.
struct Turn {
    batch: Batch<Owner>,
    /// Time that it has run, not counting what it missed while it had nothing to do.
    used: Duration,
    /// Of the last step.
    step: Duration,
}

pub(super) struct Denoiser<'a> {
    context: DenoiseContext,
    turns: Vec<Turn>,
    shared: &'a Shared,
}

impl<'a> Denoiser<'a> {
    pub fn new(context: DenoiseContext, shared: &'a Shared) -> Self {
        Denoiser { context, turns: Vec::new(), shared }
    }

    /// Records the graphs of a kind of pictures.
    pub fn prepare(&mut self, key: BatchKey) -> Result<()> {
        let at = self.turn_of(&key)?;
        let capacity = self.turns[at].batch.capacity();
        self.turns[at].batch.prepare(&mut *self.context.backend, 1..=capacity)
    }

    pub fn run(&mut self) {
        while self.wait() {
            self.shared.interrupt.store(false, Ordering::Relaxed);
            self.admit();
            let busy = self.turns.iter().enumerate().filter(|(_, turn)| !turn.batch.members().is_empty());
            let Some((at, _)) = busy.min_by_key(|(_, turn)| turn.used) else { continue };
            if let Err(error) = self.advance(at).and_then(|()| self.release(at)) {
                self.break_up(at, error);
            }
        }
    }

    /// Waits for pictures; returns whether to go on.
    fn wait(&self) -> bool {
        let busy = self.turns.iter().any(|turn| !turn.batch.members().is_empty());
        let mut state = self.shared.lock();
        loop {
            if state.stopped {
                return false;
            }
            if busy || state.ready.iter().any(|arrival| self.is_due(arrival, state.ready.len())) {
                return true;
            }
            // Whole requests wait for one another.
            let nap = Duration::from_millis(20);
            state = match state.ready.is_empty() {
                true => self.shared.wait(state),
                false => {
                    let waited = self.shared.changed.wait_timeout(state, nap);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
            };
        }
    }

    /// Whether a picture has waited long enough for others like it.
    fn is_due(&self, arrival: &Arrival, ready: usize) -> bool {
        match self.shared.settings.batching {
            Batching::Step => true,
            Batching::Request { wait } => {
                ready >= self.shared.settings.max_batch || arrival.since.elapsed() >= wait
            }
        }
    }

    /// Lets pictures join their batches, in the order in which they have become ready.
    fn admit(&mut self) {
        let arrivals = std::mem::take(&mut self.shared.lock().ready);
        let count = arrivals.len();
        let running = self.turns.iter().any(|turn| !turn.batch.members().is_empty());
        let mut staying = Vec::new();
        for arrival in arrivals {
            if arrival.painting.is_cancelled() {
                self.discard(&arrival.painting.clone(), arrival.state, Failure::Cancelled);
                continue;
            }
            let whole = self.shared.settings.batching != Batching::Step;
            if whole && (running || !self.is_due(&arrival, count)) {
                staying.push(arrival);
                continue;
            }
            match self.turn_of(&arrival.state.key().clone()) {
                Ok(at) if self.may_join(at, &arrival) => self.join(at, arrival),
                Ok(_) => staying.push(arrival),
                Err(error) => {
                    let Arrival { painting, state, .. } = arrival;
                    drop(state);
                    self.shared.leaves(&painting);
                    self.shared.failed(&painting, error);
                }
            }
        }
        let mut state = self.shared.lock();
        staying.append(&mut state.ready);
        state.ready = staying;
    }

    fn may_join(&self, at: usize, arrival: &Arrival) -> bool {
        let batch = &self.turns[at].batch;
        let members = batch.members();
        let as_long = |member: &Member<Owner>| member.state.evaluations() == arrival.state.evaluations();
        members.len() < batch.capacity()
            && (self.shared.settings.batching == Batching::Step || members.iter().all(as_long))
    }

    fn join(&mut self, at: usize, arrival: Arrival) {
        let Arrival { painting, pass, state, .. } = arrival;
        // Who has had nothing to do has not saved up for later.
        if self.turns[at].batch.members().is_empty() {
            let others = self.turns.iter().filter(|turn| !turn.batch.members().is_empty());
            let least = others.map(|turn| turn.used).min().unwrap_or_default();
            self.turns[at].used = self.turns[at].used.max(least);
        }
        let before = painting.evaluations[..pass].iter().sum();
        let owner = Owner { painting, pass, before, joined: Instant::now() };
        self.turns[at].batch.join(state, owner);
    }

    /// The batch of a kind of pictures; where memory does not suffice, without those that have nothing to do, or with
    /// room for fewer pictures.
    fn turn_of(&mut self, key: &BatchKey) -> Result<usize> {
        if let Some(at) = self.turns.iter().position(|turn| turn.batch.key() == key) {
            return Ok(at);
        }
        // Those whose memory this one's takes the place of.
        self.turns.retain(|turn| !turn.batch.members().is_empty() || turn.batch.key().stays_beside(key));
        let mut capacity = self.shared.settings.max_batch;
        let batch = loop {
            match self.context.batch(key.clone(), capacity) {
                Err(Error::OutOfMemory { .. })
                    if self.turns.iter().any(|turn| turn.batch.members().is_empty()) =>
                {
                    self.turns.retain(|turn| !turn.batch.members().is_empty());
                    self.context.drop_unused();
                }
                Err(Error::OutOfMemory { needed, .. }) if capacity > 1 => {
                    capacity /= 2;
                    tracing::warn!(needed, capacity, "a batch has less room: memory does not suffice");
                }
                batch => break batch?,
            }
        };
        self.turns.push(Turn { batch, used: Duration::ZERO, step: Duration::ZERO });
        let bytes = self.context.bytes() + self.turns.iter().map(|turn| turn.batch.bytes()).sum::<usize>();
        self.shared.denoiser_bytes.store(bytes, Ordering::Relaxed);
        Ok(self.turns.len() - 1)
    }

    /// Runs a batch until a picture is done, is to be shown, or somebody interrupts; where others wait, for a turn.
    fn advance(&mut self, at: usize) -> Result<()> {
        let others = self.turns.iter().filter(|turn| !turn.batch.members().is_empty()).count() > 1;
        let Turn { batch, used, step } = &mut self.turns[at];
        let shared = self.shared;
        let mut steps = batch.left();
        let until_shown = batch.members().iter().filter_map(steps_to_preview).min();
        steps = until_shown.map_or(steps, |until| steps.min(until));
        if others && !step.is_zero() {
            steps = steps.min((TURN.as_secs_f64() / step.as_secs_f64()).ceil() as usize);
        }

        let start = Instant::now();
        let rows = batch.rows();
        let backend = &mut *self.context.backend;
        let done = if until_shown == Some(0) {
            let shown = batch.run_previewed(backend, |member| steps_to_preview(member) == Some(0))?;
            for (i, sample) in shown {
                let Member { state, owner } = &batch.members()[i];
                let done = owner.before + state.done;
                shared.preview(owner.painting.clone(), state.canvas, done, sample);
            }
            tell_steps(batch.members(), 0);
            1
        } else {
            batch.run(backend, steps, |members, done| {
                tell_steps(members, done);
                // The interruption for one that was cancelled between two runs has been cleared since.
                let cancelled = members.iter().any(|member| member.owner.painting.is_cancelled());
                match cancelled || shared.interrupt.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })?
        };
        let time = start.elapsed();
        *used += time;
        if done > 0 {
            *step = time / done as u32;
            shared.lock().pace.measured((rows * batch.key().pixels() * done) as f64, time);
            (0..done).for_each(|_| shared.observer.stepped(rows));
        }
        Ok(())
    }

    /// Hands on the pictures that are done, and those that nobody wants any more.
    fn release(&mut self, at: usize) -> Result<()> {
        let backend = &mut *self.context.backend;
        let batch = &mut self.turns[at].batch;
        let leaves =
            |member: &Member<Owner>| member.state.left() == 0 || member.owner.painting.is_cancelled();
        for (Member { state, owner }, latents) in batch.leave(backend, leaves)? {
            let canvas = state.canvas;
            // Its slot is free before somebody is told that there is room.
            drop(state);
            let Owner { painting, pass, joined, .. } = owner;
            let time = joined.elapsed();
            painting.note(|progress| progress.times.denoise += time);
            if painting.is_cancelled() {
                self.shared.leaves(&painting);
                self.shared.fail(&painting, Failure::Cancelled);
                continue;
            }
            self.shared.observer.denoised(time);
            if pass + 1 == painting.evaluations.len() {
                self.shared.leaves(&painting);
            }
            self.shared.lock().tasks.push_back(Task::Denoised { painting, pass, canvas, latents });
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// A batch that failed: so have its pictures.
    fn break_up(&mut self, at: usize, error: Error) {
        tracing::error!(%error, "a batch failed");
        let error = Arc::new(error);
        if error.is_fatal() {
            self.shared.die(error.clone());
        }
        let mut turn = self.turns.swap_remove(at);
        for Member { state, owner } in turn.batch.abandon() {
            self.discard(&owner.painting, state, Failure::Error(error.clone()));
        }
    }

    fn discard(&self, painting: &Painting, state: State, failure: Failure) {
        drop(state);
        self.shared.leaves(painting);
        self.shared.fail(painting, failure);
    }
}

/// Steps in front of the one that a member is to be shown after; none is shown of the last.
fn steps_to_preview(member: &Member<Owner>) -> Option<usize> {
    let every = member.owner.painting.previews?.every.max(1);
    member.state.until_preview(every)
}

/// `done` steps beyond those that the members know of.
fn tell_steps(members: &[Member<Owner>], done: usize) {
    for Member { state, owner } in members {
        let done = owner.before + state.done + done;
        owner.painting.note(|progress| progress.done = done);
        owner.painting.tell(Event::Step { done, of: owner.painting.all_evaluations() });
    }
}
