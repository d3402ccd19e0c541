//! An image between its prompt and its VAE.

use std::sync::Arc;

use super::models::Models;
use super::slots::{ContextRange, Contexts, Range, Slots};
use crate::sampler::Table;

/// An image in the denoising loop: its place in [`Slots`] and [`Contexts`], and how far it is.
///
/// A [`Pipeline`](super::Pipeline) prepares it, a [`Batch`](super::Batch) denoises it among others, and the pipeline
/// decodes its latents; each may be on a thread of its own. Dropped, it gives its place back, which waits for nothing.
pub struct State {
    pub(super) key: BatchKey,
    pub(super) slot: Range,
    pub(super) prompt: Conditioning,
    /// What guidance leads away from; `None` where no step has guidance.
    pub(super) negative: Option<Conditioning>,
    pub(super) table: Table,
    /// Whether each evaluation has guidance.
    pub(super) guided: Vec<bool>,
    /// Evaluations done.
    pub done: usize,
    /// How it is decoded.
    pub canvas: Canvas,
}

/// What a row of the U-Net's batch is conditioned on.
#[derive(Clone)]
pub(super) struct Conditioning {
    pub context: Arc<ContextRange>,
    /// Which of the image's time tables.
    pub time_table: usize,
}

/// The size that an image is decoded to, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canvas {
    pub(super) height: usize,
    pub(super) width: usize,
    /// Height and width of the largest tile in latent pixels, where it is encoded and decoded tile by tile.
    pub(super) tile: Option<[usize; 2]>,
}

/// What images that are denoised together have in common: their networks, their size, and where their memory is.
#[derive(Clone)]
pub struct BatchKey {
    pub(super) models: Arc<Models>,
    pub(super) slots: Arc<Slots>,
    pub(super) contexts: Arc<Contexts>,
}

impl PartialEq for BatchKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slots, &other.slots) && Arc::ptr_eq(&self.contexts, &other.contexts)
    }
}

impl BatchKey {
    /// Whether a batch of this key keeps its memory when one of another is made: they are of different networks, or both
    /// of one pipeline's present memory, for images of different kinds.
    pub fn stays_beside(&self, other: &Self) -> bool {
        let of_other_kind = !self.slots.room.is_of_kind(&other.slots.room);
        !Arc::ptr_eq(&self.models, &other.models)
            || (of_other_kind && Arc::ptr_eq(&self.contexts, &other.contexts))
    }

    /// Latent pixels of an image.
    pub fn pixels(&self) -> usize {
        self.slots.room.size.iter().product()
    }
}

impl State {
    pub fn key(&self) -> &BatchKey {
        &self.key
    }

    /// Model evaluations of the whole pass.
    pub fn evaluations(&self) -> usize {
        self.table.evaluations()
    }

    /// Model evaluations that are left.
    pub fn left(&self) -> usize {
        self.evaluations() - self.done
    }

    /// Whether the next evaluation has guidance, and so a second row.
    pub fn is_guided(&self) -> bool {
        self.guided.get(self.done).copied().unwrap_or(false)
    }

    /// The row of the sampler's table, the noise and the gains that the next evaluation reads.
    pub(super) fn row(&self) -> usize {
        self.key.slots.first_row(&self.slot) + self.done
    }

    /// The row of the time tables that the next evaluation reads for a text, with so many tables an image.
    pub(super) fn time_row(&self, text: &Conditioning, tables: usize) -> usize {
        self.key.slots.first_time(&self.slot, text.time_table, tables) + self.done
    }

    /// Evaluations up to the next one that differs in guidance from this, or up to the end.
    pub(super) fn until_change(&self) -> usize {
        let left = &self.guided[self.done..];
        left.iter().take_while(|&&guided| guided == left[0]).count()
    }

    /// Evaluations before the one that a preview is made of, where there is one after every `every`; none is made of
    /// the last.
    pub fn until_preview(&self, every: usize) -> Option<usize> {
        let next = self.done + every - 1 - self.done % every;
        (next + 1 < self.evaluations()).then(|| next - self.done)
    }
}
