//! Pictures that a user has: PNG, JPEG and WebP files in eight bits of red, green and blue.

mod resize;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use ::image::error::{LimitError, LimitErrorKind};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageReader, RgbaImage};

use crate::error::{Error, Result};

/// Row after row of RGB.
#[derive(Clone, Debug, PartialEq)]
pub struct Raster {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl Raster {
    /// Reads a file, upright as its EXIF says. What is transparent shows `background`; more than eight bits are
    /// rounded.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, or is no PNG, JPEG or WebP.
    pub fn read(path: &Path, background: [u8; 3]) -> Result<Self> {
        let bytes = fs::read(path).map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
        Self::decode(&bytes, background, u64::MAX).map_err(|message| Error::file(path, message))
    }

    /// As [`Raster::read`], from a file's bytes; at most `most_pixels` are unpacked.
    ///
    /// # Errors
    /// A sentence.
    pub fn decode(bytes: &[u8], background: [u8; 3], most_pixels: u64) -> std::result::Result<Self, String> {
        let over = |pixel: [u8; 4]| {
            let opacity = u32::from(pixel[3]);
            let blend = |i: usize| u32::from(pixel[i]) * opacity + u32::from(background[i]) * (255 - opacity);
            [0, 1, 2].map(|i| ((blend(i) + 127) / 255) as u8)
        };
        Ok(Self::from_rgba(&decode(bytes, most_pixels)?, over))
    }

    /// A mask as OpenAI has them: light where the picture is transparent. One without transparency is as it is.
    ///
    /// # Errors
    /// As [`Raster::decode`].
    pub fn decode_holes(bytes: &[u8], most_pixels: u64) -> std::result::Result<Self, String> {
        let rgba = decode(bytes, most_pixels)?;
        let is_opaque = rgba.pixels().all(|pixel| pixel.0[3] == 255);
        let light = |[r, g, b, a]: [u8; 4]| if is_opaque { [r, g, b] } else { [255 - a; 3] };
        Ok(Self::from_rgba(&rgba, light))
    }

    fn from_rgba(rgba: &RgbaImage, colour: impl Fn([u8; 4]) -> [u8; 3]) -> Self {
        let (width, height) = (rgba.width() as usize, rgba.height() as usize);
        Raster { width, height, rgb: rgba.pixels().flat_map(|pixel| colour(pixel.0)).collect() }
    }

    /// Its width and height, each brought down to a multiple of `multiple`, once that at least.
    pub fn size_below(&self, multiple: usize) -> [usize; 2] {
        [self.width, self.height].map(|side| (side / multiple).max(1) * multiple)
    }

    /// Brightness, one byte a pixel: ITU-R 601 luma in fixed point, as Pillow's `convert("L")`.
    pub fn luma(&self) -> Vec<u8> {
        let luma = |&[r, g, b]: &[u8; 3]| {
            let [r, g, b] = [r, g, b].map(u32::from);
            ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
        };
        self.rgb.as_chunks().0.iter().map(luma).collect()
    }
}

/// The pixels of a file, upright; or a sentence.
fn decode(bytes: &[u8], most_pixels: u64) -> std::result::Result<RgbaImage, String> {
    let image = upright(bytes, most_pixels).map_err(|error| {
        format!("is not a picture that can be read ({error}); expected PNG, JPEG or WebP")
    })?;
    let rgba = image.into_rgba8();
    match (rgba.width(), rgba.height()) {
        (width, height) if width == 0 || height == 0 => {
            Err(format!("has {width}x{height} pixels; expected at least one"))
        }
        _ => Ok(rgba),
    }
}

fn upright(bytes: &[u8], most_pixels: u64) -> ::image::ImageResult<DynamicImage> {
    let mut decoder = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(ImageError::Limits(LimitError::from_kind(LimitErrorKind::DimensionError)));
    }
    // A picture is worth more than broken EXIF.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}
