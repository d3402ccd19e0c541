//! What images bring to the denoising loop, in memory that stays where it is while they join and leave batches.
//!
//! [`Slots`] hold the latents of images of one size, and rows of tables for their schedules; [`Contexts`] hold keys
//! and values of prompts. A batch finds all of it by numbers that it writes before it runs: a slot, the first row, the
//! first token. So nothing is copied when somebody joins, and images with long prompts, masks or many steps stand
//! beside others without.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::models::Models;
use crate::error::Result;
use crate::model::conditioned::Conditioned;
use crate::ops::row::ROW_WIDTH;
use crate::ops::*;

/// Numbers 0..n, of which ranges are taken and given back.
struct Ranges {
    n: usize,
    /// First and length of each taken range, in order.
    taken: Mutex<Vec<(usize, usize)>>,
}

/// A range of [`Ranges`]; given back when dropped.
pub(super) struct Range {
    ranges: Arc<Ranges>,
    pub first: usize,
    pub len: usize,
}

impl Ranges {
    fn new(n: usize) -> Arc<Self> {
        Arc::new(Ranges { n, taken: Mutex::default() })
    }

    /// The first gap of `len` numbers.
    fn take(self: &Arc<Self>, len: usize) -> Option<Range> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first = 0;
        let mut at = taken.len();
        for (i, &(start, n)) in taken.iter().enumerate() {
            if start - first >= len {
                at = i;
                break;
            }
            first = start + n;
        }
        if first + len > self.n {
            return None;
        }
        taken.insert(at, (first, len));
        Some(Range { ranges: self.clone(), first, len })
    }

    /// How many numbers are free.
    fn free(&self) -> usize {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.n - taken.iter().map(|(_, len)| len).sum::<usize>()
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let mut taken = self.ranges.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|&(first, _)| first != self.first);
    }
}

/// How much room there is in [`Slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Height and width of the latents.
    pub size: [usize; 2],
    pub images: usize,
    /// Model evaluations of each image.
    pub evaluations: usize,
    /// How many of the model's ControlNets act, the first ones.
    pub controls: usize,
}

/// Memory for images of one size in the denoising loop.
pub(super) struct Slots {
    pub room: Room,
    pub tensors: SlotTensors,
    images: Arc<Ranges>,
    region: Region,
}

/// Tensors by slot, of which the last belongs to nobody, and tables whose rows belong to the evaluations of images.
pub(super) struct SlotTensors {
    pub latents: Tensor, // f32 [slots,h,w,c]
    pub saved: Tensor,   // f32 [slots,h,w,c]
    pub history: Tensor, // f32 [4·slots,h,w,c]
    /// Guidance scale, guidance rescale, image guidance scale.
    pub guidance: Tensor, // f32 [1,1,slots,3]
    /// Of images of which a part is painted, by a model that sees latents only; the mask of the others is 1.
    pub known: Option<Known>,
    /// What the model sees beside the latents: the mask and the masked image of an inpainting model.
    pub beside: Option<Tensor>, // [slots,h,w,channels]
    pub noise: Tensor, // f32 [rows,h,w,c]
    pub table: Tensor, // f32 [1,1,rows,ROW_WIDTH]
    /// Of the U-Net, then of each ControlNet.
    pub times: Vec<Tensor>, // [1,1,time rows,time columns]
    pub controls: Vec<ControlSlots>,
}

/// What a ControlNet reads of images.
pub(super) struct ControlSlots {
    pub embedding: Tensor, // [slots,h,w,c]
    pub gains: Tensor,     // f32 [1,1,rows,1]
}

impl SlotTensors {
    fn new(ops: &mut dyn Ops, models: &Models, room: &Room) -> Self {
        let &Room { size: [h, w], images, evaluations, controls } = room;
        let (config, c) = (&models.config, models.config.vae.latent_channels());
        let (slots, rows) = (images + 1, images * evaluations);
        let nets = &models.controlnets[..controls];
        let columns = std::iter::once(models.backbone.time_columns());
        let columns = columns.chain(nets.iter().map(Conditioned::time_columns));
        let time_rows = rows * models.time_tables();
        let times = columns.map(|columns| ops.alloc([1, 1, time_rows, columns])).collect();
        let beside = config.unet.in_channels - c;
        let beside = (beside > 0).then(|| ops.alloc([slots, h, w, beside]));
        let embeddings: Vec<Tensor> = nets
            .iter()
            .map(|net| ops.alloc([slots, h, w, net.config.encoder.block_out_channels[0]]))
            .collect();
        let mut f32 = |shape| ops.arena().alloc(shape, DType::F32);
        SlotTensors {
            latents: f32([slots, h, w, c]),
            saved: f32([slots, h, w, c]),
            history: f32([4 * slots, h, w, c]),
            guidance: f32([1, 1, slots, 3]),
            known: beside.is_none().then(|| Known {
                mask: f32([slots, h, w, 1]),
                latents: f32([slots, h, w, c]),
                noise: f32([slots, h, w, c]),
            }),
            beside,
            noise: f32([rows, h, w, c]),
            table: f32([1, 1, rows, ROW_WIDTH]),
            times,
            controls: embeddings
                .into_iter()
                .map(|embedding| ControlSlots { embedding, gains: f32([1, 1, rows, 1]) })
                .collect(),
        }
    }
}

impl Room {
    /// Whether both are for images of one size that as many ControlNets act on.
    pub fn is_of_kind(&self, other: &Self) -> bool {
        (self.size, self.controls) == (other.size, other.controls)
    }

    fn bytes(&self, models: &Models, dtype: DType) -> usize {
        let mut count = count::Count::new(dtype);
        SlotTensors::new(&mut count, models, self);
        count.peak_bytes()
    }
}

impl Slots {
    pub fn new(backend: &mut dyn Backend, models: &Models, room: Room) -> Result<Arc<Self>> {
        let region = backend.reserve(room.bytes(models, backend.dtype()), "the latents")?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let tensors = SlotTensors::new(backend, models, &room);
        backend.use_arena(before);
        Ok(Arc::new(Slots { tensors, images: Ranges::new(room.images), room, region }))
    }

    /// Tensors for counting: those of so much room, without memory.
    pub fn count(count: &mut count::Count, models: &Models, room: &Room) -> SlotTensors {
        SlotTensors::new(count, models, room)
    }

    pub fn bytes(&self) -> usize {
        self.region.bytes
    }

    /// The slot that belongs to no image.
    pub fn spare(&self) -> usize {
        self.room.images
    }

    /// A slot for an image; `None` where all are taken.
    pub fn take(&self) -> Option<Range> {
        self.images.take(1)
    }

    /// How many slots are free.
    pub fn free(&self) -> usize {
        self.images.free()
    }

    /// The first row of an image's schedule in the sampler's table, the noise and the gains.
    pub fn first_row(&self, slot: &Range) -> usize {
        slot.first * self.room.evaluations
    }

    /// The first row of one of an image's time tables, of so many.
    pub fn first_time(&self, slot: &Range, table: usize, tables: usize) -> usize {
        (slot.first * tables + table) * self.room.evaluations
    }
}

/// Keys and values of prompts, for images of every size.
pub(super) struct Contexts {
    /// Of the U-Net, then of each ControlNet.
    pub tables: Vec<Tensor>, // [1,1,tokens,context columns]
    tokens: Arc<Ranges>,
    /// The ranges in use, by what was encoded, so that equal prompts share one.
    shared: Mutex<Vec<(Vec<u8>, Weak<ContextRange>)>>,
    region: Region,
}

/// The tokens of one text in [`Contexts`].
pub(super) struct ContextRange {
    contexts: Arc<Contexts>,
    /// Filled up as [`KeyRows`] wants it.
    range: Range,
    /// The tokens themselves.
    pub tokens: usize,
}

/// Tokens that a text of so many takes in [`Contexts`]: what the attention kernels may read of it.
pub(super) fn padded_tokens(tokens: usize) -> usize {
    tokens.next_multiple_of(16).max(KeyRows::PADDING)
}

impl Contexts {
    fn tensors(ops: &mut dyn Ops, models: &Models, tokens: usize) -> Vec<Tensor> {
        let columns = std::iter::once(models.backbone.context_columns());
        let columns = columns.chain(models.controlnets.iter().map(Conditioned::context_columns));
        columns.map(|columns| ops.alloc([1, 1, tokens, columns])).collect()
    }

    pub fn new(backend: &mut dyn Backend, models: &Models, tokens: usize) -> Result<Arc<Self>> {
        let mut count = count::Count::new(backend.dtype());
        Self::tensors(&mut count, models, tokens);
        let region = backend.reserve(count.peak_bytes(), "the keys and values of prompts")?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let tables = Self::tensors(backend, models, tokens);
        backend.use_arena(before);
        Ok(Arc::new(Contexts { tables, tokens: Ranges::new(tokens), shared: Mutex::default(), region }))
    }

    /// Tokens of so many texts of one chunk.
    pub fn tokens_of(models: &Models, texts: usize) -> usize {
        texts * padded_tokens(models.tokens)
    }

    /// Tables for counting, without memory.
    pub fn count(count: &mut count::Count, models: &Models, tokens: usize) -> Vec<Tensor> {
        Self::tensors(count, models, tokens)
    }

    pub fn bytes(&self) -> usize {
        self.region.bytes
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.tables[0].tokens()
    }

    /// The range of a text that some image uses already.
    pub fn find(&self, key: &[u8]) -> Option<Arc<ContextRange>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|(_, range)| range.strong_count() > 0);
        shared.iter().find(|(other, _)| other == key).and_then(|(_, range)| range.upgrade())
    }

    /// Whether so many texts of so many tokens have room.
    pub fn has_room(self: &Arc<Self>, texts: usize, tokens: usize) -> bool {
        (0..texts).map(|_| self.take(tokens)).collect::<Option<Vec<_>>>().is_some()
    }

    /// A range for a text of so many tokens, to be filled; `None` where there is no room left.
    pub fn take(self: &Arc<Self>, tokens: usize) -> Option<ContextRange> {
        let range = self.tokens.take(padded_tokens(tokens))?;
        Some(ContextRange { contexts: self.clone(), range, tokens })
    }

    /// Lets others find a range that has been filled.
    pub fn share(&self, key: Vec<u8>, range: &Arc<ContextRange>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.push((key, Arc::downgrade(range)));
    }
}

impl ContextRange {
    pub fn first(&self) -> usize {
        self.range.first
    }

    /// Tokens with those that fill it up.
    pub fn padded(&self) -> usize {
        self.range.len
    }

    /// The rows of the U-Net's table and of those of the first ControlNets.
    pub fn tables(&self, controls: usize) -> Vec<Tensor> {
        let tables = self.contexts.tables[..=controls].iter();
        tables.map(|table| table.table_rows(self.range.first, self.range.len)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_fill_gaps_and_come_back() {
        let ranges = Ranges::new(10);
        let take = |len| ranges.take(len);
        let (a, b, c) = (take(3).unwrap(), take(4).unwrap(), take(3).unwrap());
        assert_eq!((a.first, b.first, c.first), (0, 3, 7));
        assert!(take(1).is_none());
        drop(b);
        assert!(take(5).is_none());
        let d = take(2).unwrap();
        let e = take(2).unwrap();
        assert_eq!((d.first, e.first), (3, 5));
        drop((a, d));
        assert_eq!(take(5).unwrap().first, 0);
        drop((c, e));
        assert_eq!(take(10).unwrap().len, 10);
    }
}
