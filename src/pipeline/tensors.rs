//! What a recorded set of graphs works on: the shape that it is for, and the tensors that live from one replay to the next.

use super::control::ControlTensors;
use super::stages::Models;
use crate::model::conditioned::Conditioned;
use crate::model::config::{ModelConfig, RGB, TextTimeConfig};
use crate::model::time::TimeInputs;
use crate::ops::*;
use crate::sampler::ROW_WIDTH;

/// What a recorded set of graphs is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub images: usize,
    /// With guidance the U-Net sees each picture twice.
    pub guided: bool,
    pub height: usize,
    pub width: usize,
    /// Rows that the sampler, time and noise tables have room for.
    pub evaluations: usize,
    /// Chunks of tokens of a prompt.
    pub chunks: usize,
    /// The layer of the text encoders that is read, from the end, 1 being the last: for the negative prompt
    /// and for the prompt.
    pub clip_skip: [usize; 2],
    /// Height and width of the largest tile in latent pixels, where pictures are encoded and decoded tile by tile.
    pub tile: Option<[usize; 2]>,
    /// Whether a picture is encoded to start from.
    pub from_picture: bool,
    /// Whether the latents are blended with known ones after every step.
    pub blended: bool,
    /// How many of the model's ControlNets act: the first ones.
    pub controls: usize,
}

/// Room for this many model evaluations at least, so that few requests need a second recording.
const EVALUATIONS: usize = 128;

impl Shape {
    /// The shape for requests of up to `evaluations`, rounded up so that similar requests share one.
    pub fn new(images: usize, guided: bool, height: usize, width: usize, evaluations: usize) -> Self {
        let evaluations = evaluations.next_power_of_two().max(EVALUATIONS);
        Shape {
            images,
            guided,
            height,
            width,
            evaluations,
            chunks: 1,
            clip_skip: [1; 2],
            from_picture: false,
            blended: false,
            controls: 0,
            tile: None,
        }
    }

    /// Images in one U-Net call.
    pub fn unet_batch(&self) -> usize {
        self.images * if self.guided { 2 } else { 1 }
    }
}

/// What lives from one replay to the next.
pub(super) struct Tensors {
    pub ids: Tensor,           // i32 [rows·chunks,1,1,length]
    pub token_weights: Tensor, // f32 [rows·chunks,1,1,length]
    pub clip_skip: [usize; 2],
    /// Whether the negative prompts are read from another layer, and so in a pass of their own.
    pub encoded_apart: bool,
    pub xl: Option<XlTensors>,
    /// Without what the encoders add.
    pub time: TimeInputs,
    pub time_table: Tensor, // [rows or 1,1,evaluations,time columns]
    pub context: Tensor,    // [rows,1,tokens,context columns]
    pub latents: Tensor,    // f32 [images,h,w,c]
    pub saved: Tensor,      // f32 [images,h,w,c]
    pub history: Tensor,    // f32 [4·images,h,w,c]
    pub noise: Tensor,      // f32 [evaluations·images,h,w,c]
    pub table: Tensor,      // f32 [evaluations,ROW_WIDTH]
    /// Where each image is in the sampler's table, then where each row is in the time table; all of them
    /// grow by one at the end of a step.
    pub index: Tensor, // i32 [images + rows]
    pub guidance: Tensor,   // f32 [images]
    pub rescale: Tensor,    // f32 [images]
    pub canvas: Canvas,
    pub picture: Option<PictureTensors>,
    /// Of pictures of which a part is painted, by a U-Net that sees latents only.
    pub known: Option<Known>,
    /// Images that the U-Net reads. The rows of guidance share one where they begin alike.
    pub inputs: usize,
    /// What an inpainting U-Net sees: the latents in the first columns, then the mask, then the masked picture.
    pub input: Option<Tensor>, // [inputs,h,w,in_channels, padded]
    /// One for each ControlNet that acts.
    pub controls: Vec<ControlTensors>,
}

/// Where latents become colours.
#[derive(Clone, Copy)]
pub(super) enum Canvas {
    Whole {
        rgb: Tensor, // u8 [images,height,width,3]
    },
    /// The largest tile of one picture.
    Tile {
        latents: Tensor, // f32 [1,h,w,c]
        picture: Tensor, // [1,8h,8w,3]
    },
}

/// A picture to start from, or the largest tile of it.
#[derive(Clone, Copy)]
pub(super) struct PictureTensors {
    pub picture: Tensor, // [1,height,width,4] in -1..1, the fourth channel zero
    /// Mean and logarithm of the variance of its latents; the latents where they are not drawn.
    pub encoded: Tensor, // [1,h,w,encoded_channels]
}

/// What XL's text encoders and time embedding read besides.
#[derive(Clone, Copy)]
pub(super) struct XlTensors {
    pub ids_2: Tensor, // i32 [rows·chunks,1,1,length]
    /// Where the first chunk of each row ends, counted from the first token of its pass.
    pub ends: Tensor, // i32 [rows]
    pub pooled_weights: Tensor, // f32 [rows,1,1,1]
    pub time_ids: Tensor, // f32 [rows,1,1,6]
}

impl Tensors {
    pub fn new(ops: &mut dyn Ops, models: &Models, shape: &Shape) -> Self {
        let ModelConfig { unet, vae, .. } = &models.config;
        let scale = vae.scale_factor();
        let [h, w, c] = [shape.height / scale, shape.width / scale, vae.latent_channels()];
        let (rows, images, n) = (shape.unet_batch(), shape.images, shape.evaluations);
        let (texts, length) = (rows * shape.chunks, models.tokens);
        let time_rows = if unet.text_time.is_some() { rows } else { 1 };
        let time_table = ops.alloc([time_rows, 1, n, models.unet.time_columns()]);
        let context = ops.alloc([rows, 1, shape.chunks * length, models.unet.context_columns()]);
        let tile_picture = shape.tile.map(|[h, w]| ops.alloc([1, scale * h, scale * w, RGB]));
        let [encoded_h, encoded_w] = shape.tile.unwrap_or([h, w]);
        let picture = shape.from_picture.then(|| PictureTensors {
            picture: ops.alloc([1, scale * encoded_h, scale * encoded_w, models.vae.picture_channels()]),
            encoded: ops.alloc([1, encoded_h, encoded_w, vae.encoded_channels()]),
        });
        let input_channels = models.unet.input_channels();
        let inputs = if models.unet.begins_without_context() { images } else { rows };
        let input = models.config.paints_into_pictures().then(|| ops.alloc([inputs, h, w, input_channels]));
        let controls = models.controlnets[..shape.controls].iter();
        let controls = controls
            .map(|net| ControlTensors::new(ops, net, shape, time_table, context, [inputs, h, w]))
            .collect();
        let arena = ops.arena();
        let canvas = match (shape.tile, tile_picture) {
            (Some([h, w]), Some(picture)) => {
                Canvas::Tile { latents: arena.alloc([1, h, w, c], DType::F32), picture }
            }
            _ => Canvas::Whole { rgb: arena.alloc([images, shape.height, shape.width, RGB], DType::U8) },
        };
        let mut i32 = |shape| arena.alloc(shape, DType::I32);
        let ids = i32([texts, 1, 1, length]);
        let index = i32([1, 1, 1, images + rows]);
        let xl_ids = unet.text_time.map(|_| (i32([texts, 1, 1, length]), i32([1, 1, 1, rows])));
        let mut f32 = |shape| arena.alloc(shape, DType::F32);
        Tensors {
            ids,
            token_weights: f32([texts, 1, 1, length]),
            clip_skip: shape.clip_skip,
            encoded_apart: shape.guided && shape.clip_skip[0] != shape.clip_skip[1],
            xl: xl_ids.map(|(ids_2, ends)| XlTensors {
                ids_2,
                ends,
                pooled_weights: f32([rows, 1, 1, 1]),
                time_ids: f32([rows, 1, 1, TextTimeConfig::NUMBERS]),
            }),
            time: TimeInputs {
                timesteps: f32([1, 1, 1, n]),
                guidance: unet.time_cond_proj_dim.map(|_| f32([1, 1, 1, n])),
                added: None,
            },
            time_table,
            context,
            latents: f32([images, h, w, c]),
            saved: f32([images, h, w, c]),
            history: f32([4 * images, h, w, c]),
            noise: f32([n * images, h, w, c]),
            table: f32([1, 1, n, ROW_WIDTH]),
            guidance: f32([1, 1, 1, images]),
            rescale: f32([1, 1, 1, images]),
            index,
            canvas,
            picture,
            known: shape.blended.then(|| Known {
                mask: f32([images, h, w, 1]),
                latents: f32([images, h, w, c]),
                noise: f32([images, h, w, c]),
            }),
            inputs,
            input,
            controls,
        }
    }

    pub fn sampler_index(&self) -> Tensor {
        self.index.columns(0, self.latents.b())
    }
    /// The row of each row of the batch in a table that is laid out as the time table.
    pub fn time_row(&self, table: Tensor) -> TableRow {
        let [time_rows, _, n, columns] = table.shape;
        let index = self.index.columns(self.latents.b(), self.context.b());
        TableRow { table: Tensor { shape: [1, 1, time_rows * n, columns], ..table }, index }
    }

    /// The index in front of the first step.
    pub fn first_index(&self) -> Vec<i32> {
        let [time_rows, _, n, _] = self.time_table.shape;
        let time = (0..self.context.b()).map(|row| if time_rows > 1 { (row * n) as i32 } else { 0 });
        std::iter::repeat_n(0, self.latents.b()).chain(time).collect()
    }
}
