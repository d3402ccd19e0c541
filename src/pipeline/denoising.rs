//! What one step of the denoising loop reads and leaves to the next.

use super::control::ControlTensors;
use super::stages::Models;
use crate::model::conditioned::Conditioned;
use crate::ops::*;
use crate::sampler::ROW_WIDTH;

/// How many pictures a step is for, and of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DenoisingShape {
    pub images: usize,
    /// So many of them, the first ones, have guidance: the U-Net sees each of these twice.
    pub guided: usize,
    /// Height and width of the latents.
    pub map: [usize; 2],
    /// Rows that the tables and the noise of a picture have room for.
    pub evaluations: usize,
    /// Chunks of tokens of a prompt.
    pub chunks: usize,
    /// One for all, one for each picture, or one for each row.
    pub time_tables: usize,
    /// Whether the latents are blended with known ones after every step.
    pub blended: bool,
}

impl DenoisingShape {
    /// Images in one U-Net call: the unconditional ones of the first pictures, then the conditional ones of all.
    pub fn rows(&self) -> usize {
        self.images + self.guided
    }

    /// The picture that a row shows.
    pub fn picture_of(&self, row: usize) -> usize {
        if row < self.guided { row } else { row - self.guided }
    }

    /// The rows that show a picture: the unconditional one, if it has guidance, and the conditional one.
    pub fn rows_of(&self, picture: usize) -> impl Iterator<Item = usize> + use<> {
        let unconditional = (picture < self.guided).then_some(picture);
        unconditional.into_iter().chain([self.guided + picture])
    }

    /// The time table that a row reads.
    pub fn time_table_of(&self, row: usize) -> usize {
        match self.time_tables {
            1 => 0,
            n if n == self.rows() => row,
            _ => self.picture_of(row),
        }
    }
}

/// The tensors of the loop. Of a picture, everything but its context and its time table is together at its place
/// along the first axis.
pub(super) struct Denoising {
    pub shape: DenoisingShape,
    pub time_table: Tensor, // [time tables,1,evaluations,time columns]
    pub context: Tensor,    // [rows,1,tokens,context columns]
    pub latents: Tensor,    // f32 [images,h,w,c]
    pub saved: Tensor,      // f32 [images,h,w,c]
    pub history: Tensor,    // f32 [4·images,h,w,c]
    pub noise: Tensor,      // f32 [images·evaluations,h,w,c]
    pub table: Tensor,      // f32 [1,1,images·evaluations,ROW_WIDTH]
    /// Where each image is in the sampler's table, then where each row is in the time table; all of them
    /// grow by one at the end of a step.
    pub index: Tensor, // i32 [images + rows]
    pub guidance: Tensor,   // f32 [images]
    pub rescale: Tensor,    // f32 [images]
    /// Of pictures of which a part is painted, by a U-Net that sees latents only.
    pub known: Option<Known>,
    /// Images that the U-Net reads. The rows of guidance share one where they begin alike.
    pub inputs: usize,
    /// What an inpainting U-Net sees: the latents in the first columns, then the mask, then the masked picture.
    pub input: Option<Tensor>, // [inputs,h,w,in_channels, padded]
    /// One for each ControlNet that acts.
    pub controls: Vec<ControlTensors>,
}

impl Denoising {
    /// Without ControlNets.
    pub fn new(ops: &mut dyn Ops, models: &Models, shape: &DenoisingShape) -> Self {
        let &DenoisingShape { images, map: [h, w], evaluations, .. } = shape;
        let (rows, c) = (shape.rows(), models.config.vae.latent_channels());
        let begin_alike = models.unet.begins_without_context() && rows == 2 * images;
        let inputs = if begin_alike { images } else { rows };
        let time_table = ops.alloc([shape.time_tables, 1, evaluations, models.unet.time_columns()]);
        let context = ops.alloc([rows, 1, shape.chunks * models.tokens, models.unet.context_columns()]);
        let input = models
            .config
            .paints_into_pictures()
            .then(|| ops.alloc([inputs, h, w, models.unet.input_channels()]));
        let index = ops.arena().alloc([1, 1, 1, images + rows], DType::I32);
        let mut f32 = |shape| ops.arena().alloc(shape, DType::F32);
        Denoising {
            shape: *shape,
            time_table,
            context,
            latents: f32([images, h, w, c]),
            saved: f32([images, h, w, c]),
            history: f32([4 * images, h, w, c]),
            noise: f32([images * evaluations, h, w, c]),
            table: f32([1, 1, images * evaluations, ROW_WIDTH]),
            index,
            guidance: f32([1, 1, 1, images]),
            rescale: f32([1, 1, 1, images]),
            known: shape.blended.then(|| Known {
                mask: f32([images, h, w, 1]),
                latents: f32([images, h, w, c]),
                noise: f32([images, h, w, c]),
            }),
            inputs,
            input,
            controls: Vec::new(),
        }
    }

    pub fn sampler_index(&self) -> Tensor {
        self.index.columns(0, self.shape.images)
    }

    /// The row of each row of the batch in a table that is laid out as the time table.
    pub fn time_row(&self, table: Tensor) -> TableRow {
        let [time_tables, _, n, columns] = table.shape;
        let index = self.index.columns(self.shape.images, self.shape.rows());
        TableRow { table: Tensor { shape: [1, 1, time_tables * n, columns], ..table }, index }
    }

    /// The index of pictures that have done so many evaluations each.
    pub fn index_at(&self, done: &[usize]) -> Vec<i32> {
        let shape = &self.shape;
        let at = |table: usize, picture: usize| (table * shape.evaluations + done[picture]) as i32;
        let sampler = (0..shape.images).map(|picture| at(picture, picture));
        let time = (0..shape.rows()).map(|row| at(shape.time_table_of(row), shape.picture_of(row)));
        sampler.chain(time).collect()
    }

    /// The index in front of the first step.
    pub fn first_index(&self) -> Vec<i32> {
        self.index_at(&vec![0; self.shape.images])
    }
}
