//! Flags of the image that another one starts from.

use std::path::{Path, PathBuf};

use clap::Args;
use sdrt::error::Error;
use sdrt::pipeline::{Description, Init, Request, RequestPatch};
use sdrt::raster::Raster;

/// Transparent pixels become white in images, as in A1111, and black in masks.
const WHITE: [u8; 3] = [255; 3];
const BLACK: [u8; 3] = [0; 3];

#[derive(Args)]
#[command(next_help_heading = "From an image")]
pub struct PictureArgs {
    #[arg(short, long, visible_alias = "init-img", value_name = "FILE", conflicts_with = "hires-scale")]
    init_image: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "init_image")]
    mask: Option<PathBuf>,
}

impl PictureArgs {
    /// The request from the image of these flags, if there is one, and in its size.
    pub fn apply(
        &self,
        request: Request,
        model: &Description,
        patch: &RequestPatch,
    ) -> Result<Request, Error> {
        let read = |path: &Path, background| Raster::read(path, background);
        let mask = self.mask.as_deref().map(|mask| read(mask, BLACK)).transpose()?;
        let Some(picture) = &self.init_image else { return Ok(request) };
        let picture = read(picture, WHITE)?;
        let [width, height] = size_of(&picture, patch, model.config.vae.scale_factor());
        let strength = patch.strength.unwrap_or(Init::default_strength(model, mask.is_some()));
        Ok(Request { width, height, init: Some(Init { picture, mask, strength }), ..request })
    }
}

/// The size that is asked for; what is open follows from the picture's.
fn size_of(picture: &Raster, patch: &RequestPatch, multiple: usize) -> [usize; 2] {
    // A side that keeps the shape of the picture where the other is given.
    let beside = |other: usize, side: usize, of: usize| {
        let steps = (other as f64 * side as f64 / of as f64 / multiple as f64).round() as usize;
        steps.max(1) * multiple
    };
    let (w, h) = (picture.width, picture.height);
    match (patch.width, patch.height) {
        (Some(width), Some(height)) => [width, height],
        (Some(width), None) => [width, beside(width, h, w)],
        (None, Some(height)) => [beside(height, w, h), height],
        (None, None) => picture.size_below(multiple),
    }
}
