//! One step of the denoising loop: a model evaluation of every image of a batch, and the sampler row that follows.

use super::models::Models;
use super::slots::{Contexts, Room, SlotTensors, Slots};
use crate::model::blocks::Context;
use crate::model::controlnet::ControlInputs;
use crate::ops::count::Count;
use crate::ops::*;

/// How many images a step is for, and which rows they have.
///
/// The rows of the U-Net's batch are those without prompt but with image of the first images (InstructPix2Pix), the
/// unconditional ones of the first images, then the conditional ones of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub images: usize,
    /// Images with an unconditional row.
    pub guided: usize,
    /// Images with a row without prompt but with image; at most `guided`.
    pub image_guided: usize,
    /// Whether a text has more tokens than a single chunk.
    pub long: bool,
}

impl Form {
    /// The step of so many images that all have guidance and prompts of one chunk.
    pub fn guided(models: &Models, images: usize) -> Self {
        let image_guided = if models.has_image_guidance() { images } else { 0 };
        Form { images, guided: images, image_guided, long: false }
    }

    pub fn rows(&self) -> usize {
        self.image_guided + self.guided + self.images
    }

    /// The rows of an image: conditional, unconditional, without prompt but with image; -1 where there is none.
    pub fn rows_of(&self, image: usize) -> [i32; 3] {
        let row = |is_there: bool, row: usize| if is_there { row as i32 } else { -1 };
        [
            (self.image_guided + self.guided + image) as i32,
            row(image < self.guided, self.image_guided + image),
            row(image < self.image_guided, image),
        ]
    }

    /// Images that the U-Net reads: the rows of guidance share one where they begin alike.
    fn inputs(&self, models: &Models) -> usize {
        let begin_alike = self.image_guided == 0 && self.guided == self.images;
        if begin_alike && models.backbone.begins_without_context() { self.images } else { self.rows() }
    }
}

/// Where the images and rows of a batch find what they read: i32, written by the host in front of a run.
#[derive(Clone, Copy)]
pub(super) struct Routes {
    capacity: [usize; 2],
    all: Tensor, // [1,1,1,entries]
    /// Slot and pixel of every pixel of a row, for ControlNets' embeddings.
    pixels: Option<Tensor>, // [rows,1,1,h·w]
}

/// Entries of an image: row of the sampler's table, slot, three rows of the model's output.
const BY_IMAGE: [usize; 3] = [1, 1, 3];
/// Entries of a row: row of the sampler's table, row of the time table, slot, whether it sees what is beside the
/// latents, first token, number of tokens.
const BY_ROW: [usize; 6] = [1; 6];

/// What is routed to one row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowRoute {
    pub index: usize,
    pub time: usize,
    pub slot: usize,
    pub sees_beside: bool,
    pub first_token: usize,
    pub tokens: usize,
}

/// What is routed to one image.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ImageRoute {
    pub index: usize,
    pub slot: usize,
    pub rows: [i32; 3],
}

impl Routes {
    /// For batches of up to so many images, each with up to `rows` rows.
    pub fn new(ops: &mut dyn Ops, room: &Room, images: usize, rows: usize) -> Self {
        let rows = images * rows;
        let entries = images * BY_IMAGE.iter().sum::<usize>() + rows * BY_ROW.len();
        let [h, w] = room.size;
        let mut i32 = |shape| ops.arena().alloc(shape, DType::I32);
        Routes {
            capacity: [images, rows],
            all: i32([1, 1, 1, entries]),
            pixels: (room.controls > 0).then(|| i32([rows, 1, 1, h * w])),
        }
    }

    // Those that grow by one at every step come first: the index of images, of rows, and that of their times.
    fn image_index(&self) -> Tensor {
        self.all.columns(0, self.capacity[0])
    }
    fn by_row(&self, i: usize) -> Tensor {
        let [images, rows] = self.capacity;
        let before = if i < 2 { images } else { images * BY_IMAGE.iter().sum::<usize>() };
        self.all.columns(before + i * rows, rows)
    }
    fn image_slot(&self) -> Tensor {
        let [images, rows] = self.capacity;
        self.all.columns(images + 2 * rows, images)
    }
    /// [1,1,images,3]
    fn image_rows(&self, images: usize) -> Tensor {
        let [most, rows] = self.capacity;
        let first = self.all.columns(2 * most + 2 * rows, 3 * images);
        Tensor { shape: [1, 1, images, 3], pitch: 3, ..first }
    }

    /// What grows by one at the end of a step.
    pub fn advancing(&self) -> Tensor {
        self.all.columns(0, self.capacity[0] + 2 * self.capacity[1])
    }

    /// Writes where the images and rows of a batch find everything; what is beyond them reads the beginning.
    pub fn write(
        &self,
        backend: &mut dyn Backend,
        images: &[ImageRoute],
        rows: &[RowRoute],
    ) -> crate::error::Result<()> {
        let [most_images, most_rows] = self.capacity;
        let of_images = |entry: &dyn Fn(&ImageRoute) -> i32| {
            let mut entries: Vec<i32> = images.iter().map(entry).collect();
            entries.resize(most_images, 0);
            entries
        };
        let of_rows = |entry: &dyn Fn(&RowRoute) -> i32| {
            let mut entries: Vec<i32> = rows.iter().map(entry).collect();
            entries.resize(most_rows, 0);
            entries
        };
        let mut output_rows: Vec<i32> = images.iter().flat_map(|image| image.rows).collect();
        output_rows.resize(3 * most_images, 0);
        let entries = [
            of_images(&|image| image.index as i32),
            of_rows(&|row| row.index as i32),
            of_rows(&|row| row.time as i32),
            of_images(&|image| image.slot as i32),
            output_rows,
            of_rows(&|row| row.slot as i32),
            of_rows(&|row| row.sees_beside.into()),
            of_rows(&|row| row.first_token as i32),
            of_rows(&|row| row.tokens as i32),
        ];
        backend.write(self.all, bytemuck::cast_slice(&entries.concat()))?;
        if let Some(pixels) = self.pixels {
            let n = pixels.c();
            let ids = rows.iter().flat_map(|row| row.slot * n..(row.slot + 1) * n);
            let ids: Vec<i32> = ids.map(|id| id as i32).collect();
            backend.write(pixels.images(0, rows.len()), bytemuck::cast_slice(&ids))?;
        }
        Ok(())
    }
}

/// What a step reads and writes beside its scratch.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub models: &'a Models,
    pub slots: &'a SlotTensors,
    /// Keys and values of prompts for the U-Net, then for each ControlNet.
    pub contexts: &'a [Tensor],
    pub routes: &'a Routes,
    pub form: Form,
}

impl Step<'_> {
    /// One model evaluation and the sampler row that follows from it.
    pub fn run(&self, ops: &mut dyn Ops) {
        let Step { models, slots, routes, form, .. } = *self;
        ops.scope("denoise", |ops| {
            let [_, h, w, c] = slots.latents.shape;
            let (inputs, rows) = (form.inputs(models), form.rows());
            let input = ops.alloc([inputs, h, w, models.backbone.input_channels()]);
            let output = ops.alloc([rows, h, w, c]);
            let [index, time, slot, shown, first, length] = [0, 1, 2, 3, 4, 5].map(|i| routes.by_row(i));
            ops.model_input(ModelInput {
                out: input,
                x: slots.latents,
                beside: slots.beside.map(|x| Beside { x, shown }),
                table: slots.table,
                index,
                slot,
            });
            let longest = if form.long { self.contexts[0].tokens() } else { models.tokens };
            let context =
                |net: usize| Context { table: self.contexts[net], keys: KeyRows { first, length, longest } };
            let time_row = |net: usize| TableRow { table: slots.times[net], index: time };
            let mut controls = Vec::new();
            for (i, (net, control)) in models.controlnets.iter().zip(&slots.controls).enumerate() {
                controls.push((
                    net,
                    ControlInputs {
                        embedding: self.embedding(ops, control.embedding, inputs),
                        time: time_row(i + 1),
                        context: context(i + 1),
                        gain: TableRow { table: control.gains, index },
                    },
                ));
            }
            models.backbone.forward(ops, output, input, time_row(0), context(0), &controls);
            ops.sampler_step(SamplerStep {
                x: slots.latents,
                saved: slots.saved,
                history: slots.history,
                output,
                rows: routes.image_rows(form.images),
                noise: slots.noise,
                table: slots.table,
                index: routes.image_index(),
                slot: routes.image_slot(),
                guidance: slots.guidance,
                known: slots.known,
            });
        });
    }

    /// A ControlNet's embeddings [slots,h,w,c] in the order of the U-Net's images.
    fn embedding(&self, ops: &mut dyn Ops, embeddings: Tensor, inputs: usize) -> Tensor {
        let [slots, h, w, c] = embeddings.shape;
        let out = ops.alloc([inputs, h, w, c]);
        let pixels = self.routes.pixels.expect("planned for ControlNets");
        ops.embed(Embed {
            out: out.as_tokens(),
            ids: pixels.images(0, inputs),
            tokens: Tensor { shape: [1, 1, slots * h * w, c], ..embeddings },
            positions: None,
        });
        out
    }

    /// The verbs of a step in slots of so much room, without memory. They begin with nothing but scratch.
    pub fn count(models: &Models, dtype: DType, room: &Room, tokens: usize, form: Form) -> Count {
        let mut outside = Count::new(dtype);
        let slots = Slots::count(&mut outside, models, room);
        let contexts = Contexts::count(&mut outside, models, tokens);
        let routes = Routes::new(&mut outside, room, form.images, models.config.most_rows());
        let mut count = Count::new(dtype);
        Step { models, slots: &slots, contexts: &contexts, routes: &routes, form }.run(&mut count);
        count
    }
}
