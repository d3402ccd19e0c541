//! Sees what a picture shows: the colour of its background, where its object is, its colour, and which emoji
//! it is.
//!
//! An object is what differs from the background. It is recognized as in `tools/train_demo/recognize.py`: cut
//! out, put on white at one size, and encoded by the model's own autoencoder; its name is that of the nearest
//! latents in a gallery of all names' pictures (`tools/train_demo/gallery.py`).

use sdrt::model::blocks::Carried;
use sdrt::model::config::{AutoencoderConfig, ModelConfig};
use sdrt::model::vae::Vae;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::{Backend, DType, Ops, Region};
use sdrt::pipeline::Picture;
use sdrt::weights::{Checkpoint, ModelFolder};

use crate::common::{Case, Values, download, fixture, load, reserve_arena, root, upload};

/// The colours that prompts name, as the training pictures have them (`tools/train_demo/colours.py`).
pub const COLOURS: [(&str, [f32; 3]); 11] = [
    ("red", [214.0, 48.0, 49.0]),
    ("orange", [245.0, 140.0, 40.0]),
    ("yellow", [250.0, 210.0, 60.0]),
    ("green", [70.0, 170.0, 80.0]),
    ("blue", [60.0, 110.0, 220.0]),
    ("purple", [130.0, 75.0, 190.0]),
    ("pink", [248.0, 150.0, 190.0]),
    ("brown", [125.0, 80.0, 50.0]),
    ("gray", [140.0, 140.0, 140.0]),
    ("black", [20.0, 20.0, 20.0]),
    ("white", [255.0, 255.0, 255.0]),
];

/// Pixels along the edges where nothing is looked for: autoencoders err there.
const FRAME: usize = 4;
/// Pixels of a corner's edge, inside of the frame.
const CORNER: usize = 8;
/// A pixel differs from the background when one of its channels does by more.
const THRESHOLD: f32 = 20.0;
/// Fewer pixels of a row or column than this are specks.
const SPECK: usize = 4;
/// Pixels of a cut-out's edge, and what share of it the object's longer edge is.
const CUT_OUT: usize = 128;
const FILLED: f32 = 0.9;
/// Latents along an edge that the gallery takes the mean of.
const POOL: usize = 2;
/// More than the encoder needs for a cut-out.
const ARENA: usize = 64 << 20;

fn nearest_colour(colour: [f32; 3]) -> &'static str {
    let distance = |other: [f32; 3]| (0..3).map(|c| (colour[c] - other[c]).powi(2)).sum::<f32>();
    COLOURS.into_iter().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1))).map_or("", |(name, _)| name)
}

fn pixel(picture: &Picture, x: usize, y: usize) -> [f32; 3] {
    let at = 3 * (y * picture.width + x);
    [0, 1, 2].map(|c| f32::from(picture.rgb[at + c]))
}

fn mean(colours: impl IntoIterator<Item = [f32; 3]>) -> [f32; 3] {
    let (mut sum, mut count) = ([0.0; 3], 0.0);
    for colour in colours {
        (0..3).for_each(|c| sum[c] += colour[c]);
        count += 1.0;
    }
    sum.map(|x| x / count)
}

/// The mean colours of the four corners.
fn corners(picture: &Picture) -> [[f32; 3]; 4] {
    let (right, bottom) = (picture.width - FRAME - CORNER, picture.height - FRAME - CORNER);
    [(FRAME, FRAME), (right, FRAME), (FRAME, bottom), (right, bottom)].map(|(left, top)| {
        let pixels = (0..CORNER * CORNER).map(|i| (left + i % CORNER, top + i / CORNER));
        mean(pixels.map(|(x, y)| pixel(picture, x, y)))
    })
}

/// The names nearest to the colours of the four corners.
pub fn corner_colours(picture: &Picture) -> [&'static str; 4] {
    corners(picture).map(nearest_colour)
}

/// The mean difference of two pictures' colours, of 255.
pub fn mean_difference(a: &Picture, b: &Picture) -> f64 {
    let sum: f64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.rgb.len() as f64
}

/// What differs from the background of a picture, the mean of its corners.
pub struct Object<'a> {
    picture: &'a Picture,
    mask: Vec<bool>,
}

impl<'a> Object<'a> {
    pub fn of(picture: &'a Picture) -> Self {
        let (width, height) = (picture.width, picture.height);
        let background = mean(corners(picture));
        let differs = |colour: [f32; 3]| (0..3).any(|c| (colour[c] - background[c]).abs() > THRESHOLD);
        let inner = |i: usize, edge: usize| (FRAME..edge - FRAME).contains(&i);
        let pixels = (0..width * height).map(|i| (i % width, i / width));
        let mask = pixels.map(|(x, y)| inner(x, width) && inner(y, height) && differs(pixel(picture, x, y)));
        Object { picture, mask: mask.collect() }
    }

    /// What is left and right of the emptiest column near the middle.
    pub fn halves(self) -> [Self; 2] {
        let width = self.picture.width;
        let columns = self.columns();
        let middle = (width * 2 / 5..width * 3 / 5)
            .min_by_key(|&x| (columns[x], x.abs_diff(width / 2)))
            .expect("columns near the middle");
        [true, false].map(|left| {
            let mask =
                self.mask.iter().enumerate().map(|(i, &inside)| inside && (i % width < middle) == left);
            Object { picture: self.picture, mask: mask.collect() }
        })
    }

    /// The name nearest to its mean colour: a tint makes that the named one (`tools/train_demo/render.py`).
    pub fn colour(&self) -> &'static str {
        let width = self.picture.width;
        let inside = (0..self.mask.len()).filter(|&i| self.mask[i]);
        nearest_colour(mean(inside.map(|i| pixel(self.picture, i % width, i / width))))
    }

    /// How many pixels it has of each column.
    fn columns(&self) -> Vec<usize> {
        let column =
            |x| self.mask.iter().skip(x).step_by(self.picture.width).filter(|&&inside| inside).count();
        (0..self.picture.width).map(column).collect()
    }

    fn rows(&self) -> Vec<usize> {
        let row = |row: &[bool]| row.iter().filter(|&&inside| inside).count();
        self.mask.chunks_exact(self.picture.width).map(row).collect()
    }

    /// The object on white, at one size whatever its own was: [128,128,4] in -1..1, the fourth channel zero.
    fn cut_out(&self) -> Vec<f32> {
        let [(left, right), (top, bottom)] = [self.columns(), self.rows()].map(|counts| extent(&counts));
        // Two samples an edge of a pixel, so that shrinking does not alias.
        let step = (right - left).max(bottom - top) / FILLED / (2 * CUT_OUT) as f32;
        let at = |start: f32, end: f32, i: usize| {
            (start + end) / 2.0 + (i as f32 + 0.5 - CUT_OUT as f32) * step - 0.5
        };
        let mut cut_out = Vec::with_capacity(CUT_OUT * CUT_OUT * 4);
        for (row, column) in (0..CUT_OUT * CUT_OUT).map(|i| (i / CUT_OUT, i % CUT_OUT)) {
            let samples = [(0, 0), (0, 1), (1, 0), (1, 1)]
                .map(|(i, j)| self.sample(at(left, right, 2 * column + j), at(top, bottom, 2 * row + i)));
            cut_out.extend(mean(samples).map(|below_white| 1.0 + below_white / 127.5));
            cut_out.push(0.0);
        }
        cut_out
    }

    /// How much less than white it is at a place between pixels; nothing where the object is not.
    fn sample(&self, x: f32, y: f32) -> [f32; 3] {
        let mut sum = [0.0; 3];
        for (dx, dy) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
            let (column, row) = (x.floor() + dx, y.floor() + dy);
            let inside = |i: f32, edge: usize| (0.0..edge as f32).contains(&i);
            if !inside(column, self.picture.width) || !inside(row, self.picture.height) {
                continue;
            }
            let weight = (1.0 - (x - column).abs()) * (1.0 - (y - row).abs());
            let (column, row) = (column as usize, row as usize);
            if self.mask[row * self.picture.width + column] {
                let colour = pixel(self.picture, column, row);
                (0..3).for_each(|c| sum[c] += weight * (colour[c] - 255.0));
            }
        }
        sum
    }
}

/// From the first to the end of the last of the rows or columns that hold something; all, if none does.
fn extent(counts: &[usize]) -> (f32, f32) {
    let held = |&count: &usize| count >= SPECK;
    let first = counts.iter().position(held).unwrap_or(0);
    let end = counts.iter().rposition(held).map_or(counts.len(), |last| last + 1);
    (first as f32, end as f32)
}

/// Knows the emoji by their latents.
pub struct Recognizer {
    backend: Cpu,
    vae: Vae,
    /// Keep the memory of weights and activations.
    _regions: [Region; 2],
    gallery: Case,
}

impl Recognizer {
    pub fn new() -> Self {
        let folder = ModelFolder::open(&root().join("models/emoji").into()).expect("models/emoji");
        let config =
            ModelConfig::read(&folder.location, &folder.text_encoders).expect("a supported configuration");
        let checkpoint = Checkpoint::open(&folder).expect("weights");
        let mut backend = Cpu::new();
        let AutoencoderConfig::Kl(vae) = &config.vae else { panic!("a tiny VAE") };
        let (vae, weights) = load(&mut backend, &checkpoint, |plan| {
            plan.component("vae", |plan| Vae::new(vae, Carried::WHOLE, plan))
        });
        let activations = reserve_arena(&mut backend, ARENA);
        let gallery = fixture("emoji", "gallery").remove(0);
        Recognizer { backend, vae, _regions: [weights, activations], gallery }
    }

    /// The emoji whose picture, as it is or mirrored, has the nearest latents.
    pub fn name(&mut self, object: &Object) -> String {
        let latents = self.latents(object);
        let Values::U8(pictures) = &self.gallery.tensor("latents").values else {
            panic!("gallery is not u8")
        };
        let names = self.gallery.scalars["names"].as_array().expect("names");
        let scale = self.gallery.number("scale") as f32;
        let distance = |picture: &[u8]| -> f32 {
            let shown = picture.iter().map(|&x| (f32::from(x) - 128.0) * scale);
            shown.zip(&latents).map(|(a, b)| (a - b).powi(2)).sum()
        };
        let variants = pictures.len() / names.len() / latents.len();
        let distances = pictures.chunks_exact(latents.len()).map(distance).enumerate();
        let (nearest, _) = distances.min_by(|a, b| a.1.total_cmp(&b.1)).expect("pictures");
        names[nearest / variants].as_str().expect("a name").to_string()
    }

    /// The means of 2x2 latents, [8,8,4].
    fn latents(&mut self, object: &Object) -> Vec<f32> {
        let channels = self.vae.config.latent_channels;
        let edge = CUT_OUT / self.vae.config.scale_factor();
        let mark = self.backend.arena().mark();
        let picture = upload(&mut self.backend, &object.cut_out(), [1, CUT_OUT, CUT_OUT, 4], DType::F32);
        let out = self.backend.arena().alloc([1, edge, edge, 2 * channels], DType::F32);
        self.backend.run(&mut |ops| self.vae.encode(ops, out, picture)).expect("encode");
        let moments = download(&mut self.backend, out);
        self.backend.arena().release(mark);

        let pooled = edge / POOL;
        let mut latents = vec![0.0; pooled * pooled * channels];
        for (i, moments) in moments.chunks_exact(2 * channels).enumerate() {
            let cell = i / edge / POOL * pooled + i % edge / POOL;
            for c in 0..channels {
                latents[cell * channels + c] += moments[c] / (POOL * POOL) as f32;
            }
        }
        latents
    }
}
