//! What comes before the denoising loop: prompts, images to start from, schedules, noise.

use std::sync::Arc;
use std::time::Instant;

use super::Pipeline;
use super::batch::workspace_bytes;
use super::encoded::Encoded;
use super::latents::{Before, Start, write_latents};
use super::models::Models;
use super::passes::Pass;
use super::programs::{
    ContextProgram, ControlProgram, DecodeProgram, EncodeProgram, Needs, TextProgram, TileDecodeProgram,
    TileEncodeProgram, TimesInputs, TimesProgram,
};
use super::prompts::{Prompts, Text};
use super::request::{Request, Times};
use super::slots::{ContextRange, Contexts, Range, Room, Slots, padded_tokens};
use super::state::{BatchKey, Canvas, Conditioning, State};
use crate::error::{Error, Result};
use crate::ops::Tensor;

/// Texts of one chunk that there is room for beside those of [`Pipeline::expect_images`], so that longer prompts need
/// no other memory.
const SPARE_TEXTS: usize = 4;
/// Room for this many model evaluations of an image at least, so that few requests need other memory.
const EVALUATIONS: usize = 128;

/// Images that can be denoised.
pub struct Prepared {
    pub states: Vec<State>,
    pub times: Times,
    /// What the user should know, such as words that did not fit the text encoder.
    pub warnings: Vec<String>,
}

/// A pass of a request that is to be prepared.
pub(super) struct Task<'a> {
    pub request: &'a Request,
    pub passes: &'a [Pass],
    pub number: usize,
    /// What the pass before has left: latents [h,w,c] of each image.
    pub before: Option<&'a [Vec<f32>]>,
    /// Whether the loop runs on this backend, in the same workspace.
    pub here: bool,
}

impl Task<'_> {
    fn pass(&self) -> &Pass {
        &self.passes[self.number]
    }
}

/// What a pass of a request takes of the pipeline's memory.
pub(super) struct Layout {
    pub room: Room,
    pub texts: usize,
    /// Tokens of a text.
    pub tokens: usize,
    pub needs: Needs,
    pub canvas: Canvas,
}

impl Layout {
    /// Of a pass with prompts of so many chunks: tiled where the request wants it from the outset or `tiled` says so.
    pub fn new(
        request: &Request,
        models: &Models,
        pass: &Pass,
        texts: Vec<TextProgram>,
        tiled: bool,
        is_last: bool,
    ) -> Self {
        let config = &models.config;
        let size = [pass.height, pass.width];
        let possible = request.possible_tile(config, pass.width, pass.height).filter(|_| tiled);
        let tile = request.tile(config, pass.width, pass.height).or(possible);
        let controls = request.controls.len().min(models.controlnets.len());
        let evaluations = pass.table.evaluations();
        let tokens = texts[0].chunks * models.tokens;
        let count = texts.iter().map(|program| program.texts).sum::<usize>();
        let is_encoded = pass.encodes(request).is_some();
        let whole = tile.is_none();
        let decode = DecodeProgram { images: request.images, size, preview: false };
        Layout {
            room: Room { size: models.latent_size(size), images: request.images, evaluations, controls },
            texts: count,
            tokens,
            needs: Needs {
                texts,
                context: Some(ContextProgram { texts: count, tokens: padded_tokens(tokens), controls }),
                times: Some(TimesProgram::new(count.min(models.time_tables()), evaluations, controls)),
                controls: (0..controls).map(|net| ControlProgram { net, size }).collect(),
                encode: (is_encoded && whole).then_some(EncodeProgram { size }),
                tile_encode: tile.filter(|_| is_encoded).map(|tile| TileEncodeProgram { tile }),
                decode: (is_last && whole).then_some(decode),
                tile_decode: tile.filter(|_| is_last).map(|tile| TileDecodeProgram { tile, preview: false }),
            },
            canvas: Canvas { height: pass.height, width: pass.width, tile },
        }
    }
}

impl Pipeline {
    /// Does all that comes before the steps of a pass of a request: the first, or one that begins with the latents of
    /// the one before, [h,w,c] of each image.
    ///
    /// # Errors
    /// A value that cannot be used, or memory that is not there.
    pub fn prepare(
        &mut self,
        request: &Request,
        pass: usize,
        before: Option<&[Vec<f32>]>,
    ) -> Result<Prepared> {
        let passes = request.check(&self.description)?;
        self.prepare_pass(&Task { request, passes: &passes, number: pass, before, here: false })
    }

    /// Prepares a pass on the pipeline whose networks run it.
    pub(super) fn prepare_pass(&mut self, task: &Task) -> Result<Prepared> {
        let pass = task.pass();
        match self.of_pass(pass).prepare_own(task) {
            Err(Error::OutOfMemory { .. }) if pass.is_refined => {
                // What the model before the refiner does not need any more goes.
                self.drop_unused();
                self.of_pass(pass).prepare_own(task)
            }
            prepared => prepared,
        }
    }

    fn prepare_own(&mut self, task: &Task) -> Result<Prepared> {
        let &Task { request, passes, number, before, here } = task;
        let mut times = Times::default();
        let pass = task.pass();
        let start = Instant::now();
        let is_last = number + 1 == passes.len();
        let prompts = self.prompts(request)?;
        let (layout, key) = self.reserve(request, &prompts, pass, is_last, here)?;
        times.record = start.elapsed();

        let Pipeline { backend, models, programs, description, .. } = self;
        let (backend, config) = (&mut **backend, &models.config);
        let tensors = &key.slots.tensors;
        let controls = layout.room.controls;
        let evaluations = pass.table.evaluations();
        let slots = (0..request.images).map(|_| key.slots.take().expect("reserved"));
        let slots: Vec<Range> = slots.collect();
        let rows: Vec<usize> = slots.iter().map(|slot| key.slots.first_row(slot)).collect();

        let start = Instant::now();
        let timesteps = pass.table.timesteps();
        let time_ids = request.time_ids(config, pass.width, pass.height);
        let tables = models.time_tables();
        let texts: Vec<&Text> = prompts.texts().collect();
        let encoded = programs.encode_texts(backend, models, &mut self.texts, &texts)?;

        let found = texts.iter().map(|text| key.contexts.find(&context_key(text, controls)));
        let mut contexts: Vec<Option<Arc<ContextRange>>> = found.collect();
        let missing: Vec<usize> = (0..texts.len()).filter(|&i| contexts[i].is_none()).collect();
        let ranges: Vec<ContextRange> =
            missing.iter().map(|_| key.contexts.take(layout.tokens).expect("reserved")).collect();
        if !missing.is_empty() {
            let tokens = padded_tokens(layout.tokens);
            let program = ContextProgram { texts: missing.len(), tokens, controls };
            let states = missing.iter().map(|&i| encoded[i].states).zip(&ranges);
            programs.write_contexts(backend, models, program, &states.collect::<Vec<_>>())?;
        }
        for (i, range) in missing.into_iter().zip(ranges) {
            let range = Arc::new(range);
            key.contexts.share(context_key(texts[i], controls), &range);
            contexts[i] = Some(range);
        }

        let pooled: Vec<Tensor> = encoded.iter().filter_map(|text| text.pooled).collect();
        let inputs = TimesInputs {
            timesteps: &timesteps,
            guidance_scale: request.guidance_scale,
            pooled: &pooled,
            time_ids: &time_ids,
        };
        let used = texts.len().min(tables);
        let of_images = slots.iter().flat_map(|slot| (0..used).map(move |table| (slot, table)));
        let to = of_images.map(|(slot, number)| {
            let first = key.slots.first_time(slot, number, tables);
            (number, tensors.times.iter().map(move |table| table.table_rows(first, evaluations)))
        });
        let program = TimesProgram::new(used, evaluations, controls);
        programs.write_times(backend, models, program, &inputs, to)?;
        encoded.into_iter().for_each(|text| self.texts.keep(text));
        let conditionings = contexts.into_iter().flatten().enumerate();
        let conditionings =
            conditionings.map(|(i, context)| Conditioning { context, time_table: i.min(tables - 1) });
        let mut conditionings: Vec<Conditioning> = conditionings.collect();
        for (net, (control, net_slots)) in request.controls.iter().zip(&tensors.controls).enumerate() {
            let program = ControlProgram { net, size: [pass.height, pass.width] };
            let to = slots.iter().map(|slot| net_slots.embedding.images(slot.first, 1));
            programs.embed_control(backend, models, program, &control.image, to)?;
            let gains: Vec<f32> = pass.shares().map(|[i, n]| control.gain(i, n)).collect();
            for &row in &rows {
                let to = net_slots.gains.table_rows(row, evaluations);
                backend.write(to, bytemuck::cast_slice(&gains))?;
            }
        }
        times.text = start.elapsed();

        let start = Instant::now();
        let encode = |init| {
            Encoded::new(backend, models, programs, layout.canvas.tile, init, pass, description.family)
        };
        let encoded = pass.encodes(request).map(encode).transpose()?;
        if encoded.is_some() {
            times.picture = start.elapsed();
        }
        let start = Instant::now();
        // What the pass before has drawn beyond what this one draws, too.
        let is_drawn = config.vae.is_variational() && request.init.is_some() && encoded.is_none();
        let drawn = number.checked_sub(1).map_or(0, |before| passes[before].table.noise_rows().count());
        let drawn = drawn + usize::from(is_drawn);
        let negative = (conditionings.len() > 1).then(|| conditionings.remove(1));
        let prompt = conditionings.remove(0);
        let guided = pass.guided(request, config);
        let mut states = Vec::new();
        for (i, (slot, row)) in slots.into_iter().zip(rows).enumerate() {
            let before = before.map(|before| match pass.is_refined {
                true => Before::HandedOver { latents: before[i].clone(), drawn },
                false => Before::Enlarged(enlarged(models, &passes[0], pass, &before[i])),
            });
            let mut generator = request.rng.source(request.seed.wrapping_add(i as u64));
            let place = [slot.first, row];
            let start = Start { picture: encoded.as_ref(), before };
            write_latents(backend, tensors, place, &mut *generator, &pass.table, start)?;
            let image_guidance = request.image_guidance_scale.unwrap_or(Request::IMAGE_GUIDANCE_SCALE);
            let guidance = [request.guidance_scale, request.guidance_rescale, image_guidance];
            backend.write(tensors.guidance.row(slot.first), bytemuck::cast_slice(&guidance))?;
            states.push(State {
                key: key.clone(),
                slot,
                prompt: prompt.clone(),
                negative: negative.clone(),
                table: pass.table.clone(),
                guided: guided.clone(),
                done: 0,
                canvas: layout.canvas,
            });
        }
        // Others read them without waiting for this backend's work.
        backend.wait()?;
        times.denoise = start.elapsed();
        Ok(Prepared { states, times, warnings: prompts.warnings })
    }

    /// The prompts of a request as this model reads them.
    fn prompts(&self, request: &Request) -> Result<Prompts> {
        Prompts::new(request, &self.description, &self.tokenizers, &self.inversions)
    }

    /// Takes memory for a pass and records its programs; what earlier requests left goes where memory does not
    /// suffice, then the image is encoded and decoded in tiles where that is allowed.
    fn reserve(
        &mut self,
        request: &Request,
        prompts: &Prompts,
        pass: &Pass,
        is_last: bool,
        here: bool,
    ) -> Result<(Layout, BatchKey)> {
        let chunks = prompts.chunks();
        let texts = TextProgram::of(&prompts.texts().map(|text| text.skip).collect::<Vec<_>>(), chunks);
        let whole = (request.images, [pass.height, pass.width]);
        let mut tiled = self.too_large.contains(&whole);
        let mut dropped = false;
        loop {
            let layout = Layout::new(request, &self.models, pass, texts.clone(), tiled, is_last);
            let possible = Layout::new(request, &self.models, pass, texts.clone(), true, is_last);
            match self.reserve_layout(&layout, prompts, here) {
                Err(Error::OutOfMemory { .. }) if !dropped => {
                    self.drop_unused();
                    dropped = true;
                }
                Err(Error::OutOfMemory { needed, .. }) if layout.canvas != possible.canvas => {
                    tracing::debug!(canvas = ?layout.canvas, needed, "tiles: the whole does not fit");
                    self.too_large.insert(whole);
                    tiled = true;
                }
                key => return Ok((layout, key?)),
            }
        }
    }

    fn reserve_layout(&mut self, layout: &Layout, prompts: &Prompts, here: bool) -> Result<BatchKey> {
        let slots = self.slots_for(layout.room)?;
        let contexts = self.contexts_for(prompts, layout)?;
        let key = BatchKey { models: self.models.clone(), slots, contexts };
        let Pipeline { backend, models, programs, batches, .. } = self;
        let backend = &mut **backend;
        let images = layout.room.images;
        let has_batch = batches.iter().any(|batch| *batch.key() == key && batch.capacity() >= images);
        let batch = match here && !has_batch {
            true => workspace_bytes(models, backend.dtype(), &layout.room, key.contexts.tokens(), images),
            false => 0,
        };
        programs.prepare(backend, models, &layout.needs, batch)?;
        Ok(key)
    }

    /// Slots that have room for a pass: those that are there, or larger ones.
    fn slots_for(&mut self, wanted: Room) -> Result<Arc<Slots>> {
        let of_kind = |slots: &Slots| slots.room.is_of_kind(&wanted);
        let fits =
            |slots: &Slots| slots.free() >= wanted.images && slots.room.evaluations >= wanted.evaluations;
        if let Some(slots) = self.slots.iter().find(|slots| of_kind(slots) && fits(slots)) {
            return Ok(slots.clone());
        }
        let room = taken_room(wanted, self.room);
        // The smaller ones go when the last image has left them.
        self.slots.retain(|slots| !of_kind(slots));
        self.batches.retain(|batch| !of_kind(&batch.key().slots));
        let slots = Slots::new(&mut *self.backend, &self.models, room)?;
        self.slots.push(slots.clone());
        Ok(slots)
    }

    /// Contexts that have room for the texts of a request: those that are there, or larger ones.
    fn contexts_for(&mut self, prompts: &Prompts, layout: &Layout) -> Result<Arc<Contexts>> {
        let mut before = 0;
        if let Some(contexts) = &self.contexts {
            let is_new = |text: &&Text| contexts.find(&context_key(text, layout.room.controls)).is_none();
            if contexts.has_room(prompts.texts().filter(is_new).count(), layout.tokens) {
                return Ok(contexts.clone());
            }
            before = contexts.tokens();
        }
        let tokens = taken_tokens(&self.models, layout, self.room[0]).max(2 * before);
        self.contexts = None;
        self.batches.clear();
        let contexts = Contexts::new(&mut *self.backend, &self.models, tokens)?;
        Ok(self.contexts.insert(contexts).clone())
    }

    /// What images in each pass of a request have in common with others that can be denoised together.
    pub fn batch_keys(&mut self, request: &Request) -> Result<Vec<BatchKey>> {
        let passes = request.check(&self.description)?;
        let mut keys = Vec::new();
        for (number, pass) in passes.iter().enumerate() {
            let pipeline = self.of_pass(pass);
            let prompts = pipeline.prompts(request)?;
            let is_last = number + 1 == passes.len();
            keys.push(pipeline.reserve(request, &prompts, pass, is_last, false)?.1);
        }
        Ok(keys)
    }

    /// Gives back all memory that no image uses: recordings, slots, prompts.
    pub fn drop_unused(&mut self) {
        self.too_large.clear();
        self.batches.clear();
        self.programs.clear();
        self.texts.clear();
        self.slots.retain(|slots| Arc::strong_count(slots) > 1);
        self.contexts = self.contexts.take().filter(|contexts| Arc::strong_count(contexts) > 1);
        self.refiner.iter_mut().for_each(|refiner| refiner.drop_unused());
    }
}

/// The room that is taken for images of which some are expected: how many, and of how many evaluations.
pub(super) fn taken_room(wanted: Room, [images, evaluations]: [usize; 2]) -> Room {
    let evaluations = wanted.evaluations.max(evaluations).next_power_of_two().max(EVALUATIONS);
    Room { images: wanted.images.max(images), evaluations, ..wanted }
}

/// The tokens that room is taken for where so many images of a size are expected at once.
pub(super) fn taken_tokens(models: &Models, layout: &Layout, images: usize) -> usize {
    let expected = Contexts::tokens_of(models, 2 * images + SPARE_TEXTS);
    expected.max(layout.texts * padded_tokens(layout.tokens))
}

/// Equal for texts whose keys and values are the same for so many ControlNets.
fn context_key(text: &Text, controls: usize) -> Vec<u8> {
    let mut key = text.key();
    key.extend(controls.to_le_bytes());
    key
}

/// The latents of the first pass at the size of another.
fn enlarged(models: &Models, from: &Pass, to: &Pass, latents: &[f32]) -> Vec<f32> {
    let [h, w] = models.latent_size([from.height, from.width]);
    let to = models.latent_size([to.height, to.width]);
    super::enlarge(latents, [1, h, w, models.config.vae.latent_channels()], to)
}
