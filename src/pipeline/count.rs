//! The verbs of a request and the memory that it needs, known without running it; and its stages verb by verb.

use super::Pipeline;
use super::batch::workspace_bytes;
use super::model::Description;
use super::models::Models;
use super::prepare::{Layout, taken_room, taken_tokens};
use super::program::Program;
use super::programs::{DecodeProgram, TextProgram};
use super::prompts;
use super::request::Request;
use super::slots::Contexts;
use super::step::{Form, Step};
use crate::error::Result;
use crate::ops::count::Count;
use crate::ops::*;
use crate::weights::Plan;

/// A part of painting that is replayed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Prompts, times, control images.
    Encode,
    /// One step.
    Denoise,
    Decode,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Encode => "encode",
            Stage::Denoise => "denoise",
            Stage::Decode => "decode",
        }
    }
}

/// The verbs of a request's first pass with prompts of one chunk, and the memory that it needs.
pub struct Counted {
    /// Where there is an image to start from.
    pub encode_image: Option<Count>,
    pub encode: Count,
    /// One step, with guidance if the request has any.
    pub denoise: Count,
    pub decode: Count,
    /// Where there is a VAE for previews.
    pub decode_preview: Option<Count>,
    pub footprint: Footprint,
}

/// Bytes that a request needs beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Latents, noise, tables of times, keys and values of prompts.
    pub state: usize,
    /// Activations of the largest program.
    pub workspace: usize,
}

impl Footprint {
    pub fn bytes(&self) -> usize {
        self.state + self.workspace
    }
}

impl Counted {
    /// Counts what a request of a model needs, without a checkpoint and without memory.
    ///
    /// # Errors
    /// A value of the request that the model cannot use.
    pub fn new(model: &Description, request: &Request, dtype: DType) -> Result<Self> {
        let models = Models::new(&model.config, 0, &mut Plan::measure(dtype));
        let layout = layout(model, &models, request)?;
        let room = taken_room(layout.room, [1, 0]);
        let form = form(&models, request);
        let tokens = taken_tokens(&models, &layout, 1);
        let whole = || Arena::unbounded();
        let encode_image = match (layout.needs.encode, layout.needs.tile_encode) {
            (Some(program), _) => Some(program.count(&models, whole(), dtype)),
            (None, Some(program)) => Some(program.count(&models, whole(), dtype)),
            (None, None) => None,
        };
        let decode = count_decode(&models, &layout, whole(), dtype);
        let preview = DecodeProgram {
            images: request.images,
            size: [layout.canvas.height, layout.canvas.width],
            preview: true,
        };
        let preview = Some(preview).filter(|_| models.preview_vae.is_some() && layout.canvas.tile.is_none());
        let decode_preview = preview.map(|program| program.count(&models, whole(), dtype));
        let encode = count_encode(&models, &layout, whole(), dtype);
        let denoise = Step::count(&models, dtype, &room, tokens, form);
        let programs =
            [Some(&encode), Some(&denoise), Some(&decode), encode_image.as_ref(), decode_preview.as_ref()];
        let largest = programs.into_iter().flatten().map(Count::peak_bytes).max().unwrap_or(0);
        let mut state = Count::new(dtype);
        super::slots::Slots::count(&mut state, &models, &room);
        Contexts::count(&mut state, &models, tokens);
        Ok(Counted {
            footprint: Footprint {
                state: state.peak_bytes(),
                workspace: largest.max(workspace_bytes(&models, dtype, &room, tokens, room.images)),
            },
            encode_image,
            encode,
            denoise,
            decode,
            decode_preview,
        })
    }
}

fn layout(model: &Description, models: &Models, request: &Request) -> Result<Layout> {
    let pass = &request.check(model)?[0];
    let texts = TextProgram::of(&prompts::skips(request, model), 1);
    Ok(Layout::new(request, models, pass, texts, false, true))
}

fn form(models: &Models, request: &Request) -> Form {
    let whole = Form::guided(models, request.images);
    match request.is_guided(&models.config) {
        true => whole,
        false => Form { guided: 0, image_guided: 0, ..whole },
    }
}

/// Adds the verbs of a program, whose memory others may have afterwards.
fn walk(program: &impl Program, models: &Models, count: &mut Count) {
    let mark = count.arena().mark();
    let tensors = program.tensors(models, count);
    program.run(models, count, &tensors);
    count.arena().release(mark);
}

fn count_encode(models: &Models, layout: &Layout, arena: Arena, dtype: DType) -> Count {
    let mut count = Count::over(arena, dtype);
    let needs = &layout.needs;
    needs.texts.iter().for_each(|program| walk(program, models, &mut count));
    needs.context.iter().for_each(|program| walk(program, models, &mut count));
    needs.times.iter().for_each(|program| walk(program, models, &mut count));
    needs.controls.iter().for_each(|program| walk(program, models, &mut count));
    count
}

fn count_decode(models: &Models, layout: &Layout, arena: Arena, dtype: DType) -> Count {
    let mut count = Count::over(arena, dtype);
    layout.needs.decode.iter().for_each(|program| walk(program, models, &mut count));
    layout.needs.tile_decode.iter().for_each(|program| walk(program, models, &mut count));
    count
}

impl Pipeline {
    /// Runs a stage of a request once, verb by verb under its scopes' names, for profilers that show named ranges; of
    /// the steps, the first. Returns its verbs over the memory that they ran on, to be executed one by one.
    ///
    /// # Errors
    /// A value that cannot be used, or memory that is not there.
    pub fn trace(&mut self, request: &Request, stage: Stage) -> Result<Count> {
        if stage == Stage::Denoise {
            let states = self.prepare(request, 0, None)?.states;
            return self.trace_step(states);
        }
        let layout = layout(&self.description, &self.models, request)?;
        let dtype = self.backend.dtype();
        let count = match stage {
            Stage::Encode => count_encode,
            _ => count_decode,
        };
        let bytes = count(&self.models, &layout, Arena::unbounded(), dtype).peak_bytes();
        let Pipeline { backend, models, programs, .. } = self;
        let region = programs.workspace.reserve(&mut **backend, bytes)?;
        let counted = count(models, &layout, Arena::new(region.base, region.bytes), dtype);
        backend.run(&mut |ops| {
            for count::Counted { path, call } in &counted.calls {
                path.split('.').for_each(|name| ops.enter(name));
                ops.issue(*call);
                path.split('.').for_each(|_| ops.leave());
            }
        })?;
        Ok(counted)
    }
}
