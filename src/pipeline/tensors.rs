//! What a recorded set of graphs works on: the shape that it is for, and the tensors that live from one replay to the next.

use super::control::ControlTensors;
use super::denoising::{Denoising, DenoisingShape};
use super::stages::Models;
use crate::model::config::{ModelConfig, RGB, TextTimeConfig};
use crate::model::time::TimeInputs;
use crate::ops::*;

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
    pub denoising: Denoising,
    pub canvas: Canvas,
    pub picture: Option<PictureTensors>,
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
    /// The pooled prompts; behind each, room for the features of its `time_ids`.
    pub embeds: Tensor, // [1,1,rows,TextTimeConfig::width]
    pub time_ids: Tensor, // f32 [rows,1,1,6]
}

impl Tensors {
    pub fn new(ops: &mut dyn Ops, models: &Models, shape: &Shape) -> Self {
        let ModelConfig { unet, vae, .. } = &models.config;
        let scale = vae.scale_factor();
        let [h, w, c] = [shape.height / scale, shape.width / scale, vae.latent_channels()];
        let (rows, images, n) = (shape.unet_batch(), shape.images, shape.evaluations);
        let (texts, length) = (rows * shape.chunks, models.tokens);
        let tile_picture = shape.tile.map(|[h, w]| ops.alloc([1, scale * h, scale * w, RGB]));
        let [encoded_h, encoded_w] = shape.tile.unwrap_or([h, w]);
        let picture = shape.from_picture.then(|| PictureTensors {
            picture: ops.alloc([1, scale * encoded_h, scale * encoded_w, models.vae.picture_channels()]),
            encoded: ops.alloc([1, encoded_h, encoded_w, vae.encoded_channels()]),
        });
        let rows_share_time = unet.text_time.is_none();
        let denoising = Denoising::new(
            ops,
            models,
            &DenoisingShape {
                images,
                guided: rows - images,
                map: [h, w],
                evaluations: n,
                chunks: shape.chunks,
                time_tables: if rows_share_time { 1 } else { rows },
                blended: shape.blended,
            },
        );
        let controls = models.controlnets[..shape.controls].iter();
        let controls = controls.map(|net| ControlTensors::new(ops, net, shape, &denoising)).collect();
        let embeds = unet.text_time.map(|text_time| ops.alloc([1, 1, rows, text_time.width()]));
        let arena = ops.arena();
        let canvas = match (shape.tile, tile_picture) {
            (Some([h, w]), Some(picture)) => {
                Canvas::Tile { latents: arena.alloc([1, h, w, c], DType::F32), picture }
            }
            _ => Canvas::Whole { rgb: arena.alloc([images, shape.height, shape.width, RGB], DType::U8) },
        };
        let mut i32 = |shape| arena.alloc(shape, DType::I32);
        let ids = i32([texts, 1, 1, length]);
        let xl_ids = embeds.map(|embeds| (embeds, i32([texts, 1, 1, length]), i32([1, 1, 1, rows])));
        let mut f32 = |shape| arena.alloc(shape, DType::F32);
        Tensors {
            ids,
            token_weights: f32([texts, 1, 1, length]),
            clip_skip: shape.clip_skip,
            encoded_apart: shape.guided && shape.clip_skip[0] != shape.clip_skip[1],
            xl: xl_ids.map(|(embeds, ids_2, ends)| XlTensors {
                embeds,
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
            denoising: Denoising { controls, ..denoising },
            canvas,
            picture,
        }
    }
}
