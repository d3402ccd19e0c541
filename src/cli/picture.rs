//! Flags of what a picture is painted from, and in how many passes.

use std::path::{Path, PathBuf};

use clap::Args;
use sdrt::error::Error;
use sdrt::pipeline::{Description, Hires, Init, Request};
use sdrt::raster::Raster;

use super::SizeArgs;

/// What is transparent of a picture shows white, as in A1111; a mask is dark there.
const WHITE: [u8; 3] = [255; 3];
const BLACK: [u8; 3] = [0; 3];

#[derive(Args)]
#[command(next_help_heading = "From a picture")]
pub struct PictureArgs {
    /// A picture to start from: PNG, JPEG or WebP; without --width and --height its own size, to the multiple of 8
    /// below
    #[arg(short, long, visible_alias = "init-img", value_name = "FILE", conflicts_with = "hires_scale")]
    init_image: Option<PathBuf>,
    /// How much of --init-image is painted anew, above 0 to 1 [default: as diffusers, 0.8, of XL 0.3; with
    /// --mask 1, of XL 0.9999]
    #[arg(long, value_name = "X", requires = "init_image")]
    strength: Option<f64>,
    /// What is light in this picture is painted, what is dark is kept of --init-image
    #[arg(long, value_name = "FILE", requires = "init_image")]
    mask: Option<PathBuf>,
    /// Hires fix: paints, enlarges the latents by this, and paints again from there
    #[arg(long, value_name = "X")]
    hires_scale: Option<f64>,
    /// How much the second pass of --hires-scale paints anew, above 0 to 1
    #[arg(long, value_name = "X", default_value_t = Hires::DEFAULT_STRENGTH, requires = "hires_scale")]
    hires_strength: f64,
    /// Steps of the second pass, of which --hires-strength takes its part [default: as --steps]
    #[arg(long, value_name = "N", requires = "hires_scale")]
    hires_steps: Option<usize>,
}

impl PictureArgs {
    /// The request with what these flags say, and its size.
    pub fn apply(&self, request: Request, model: &Description, size: &SizeArgs) -> Result<Request, Error> {
        let read = |path: &Path, background| Raster::read(path, background);
        let mask = self.mask.as_deref().map(|mask| read(mask, BLACK)).transpose()?;
        let picture = self.init_image.as_deref().map(|picture| read(picture, WHITE)).transpose()?;
        let [width, height] = match &picture {
            Some(picture) => size_of(picture, size, model.config.vae.scale_factor()),
            None => [size.width.unwrap_or(request.width), size.height.unwrap_or(request.height)],
        };
        let strength = self.strength.unwrap_or(Init::default_strength(model, mask.is_some()));
        Ok(Request {
            width,
            height,
            init: picture.map(|picture| Init { picture, mask, strength }),
            hires: self.hires_scale.map(|scale| Hires {
                scale,
                strength: self.hires_strength,
                steps: self.hires_steps.filter(|&steps| steps > 0),
            }),
            ..request
        })
    }
}

/// The size that is asked for; what is open follows from the picture's.
fn size_of(picture: &Raster, size: &SizeArgs, multiple: usize) -> [usize; 2] {
    // A side that keeps the shape of the picture where the other is given.
    let beside = |other: usize, side: usize, of: usize| {
        let steps = (other as f64 * side as f64 / of as f64 / multiple as f64).round() as usize;
        steps.max(1) * multiple
    };
    let (w, h) = (picture.width, picture.height);
    match (size.width, size.height) {
        (Some(width), Some(height)) => [width, height],
        (Some(width), None) => [width, beside(width, h, w)],
        (None, Some(height)) => [beside(height, w, h), height],
        (None, None) => picture.size_below(multiple),
    }
}
