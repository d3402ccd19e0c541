//! Whether pictures are encoded and decoded tile by tile.

use std::str::FromStr;

use crate::error::{Error, Invalid, Result};
use crate::model::config::{AutoencoderConfig, MIN_TILE};
use crate::parameter::Parameter;

/// A picture encoded and decoded in tiles needs the memory of one. Group norm sees each tile alone, so colours come out a
/// little different.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tiling {
    pub when: Tiled,
    /// Latent pixels of a tile's side; the VAE's own if nothing is said.
    pub tile_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiled {
    /// Where memory does not suffice, or the kernels, for the whole.
    #[default]
    Auto,
    On,
    Off,
}

impl Tiling {
    /// The largest tile's height and width in latent pixels, for a picture of h x w of these; `None` if that is
    /// the picture.
    pub(super) fn tile(&self, vae: &AutoencoderConfig, [h, w]: [usize; 2]) -> Option<[usize; 2]> {
        let size = self.tile_size.unwrap_or(vae.tile_size());
        (self.when != Tiled::Off && (h > size || w > size)).then_some([h.min(size), w.min(size)])
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.tile_size {
            Some(size) if size < MIN_TILE => Err(Invalid::value(Parameter::VaeTileSize, size)
                .expected(format!("at least {MIN_TILE}, latent pixels of a tile's side"))
                .error()),
            _ => Ok(()),
        }
    }
}

impl FromStr for Tiled {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Tiled::Auto),
            "on" => Ok(Tiled::On),
            "off" => Ok(Tiled::Off),
            _ => Err(Invalid::value(Parameter::VaeTiling, text).expected("auto, on or off").error()),
        }
    }
}
