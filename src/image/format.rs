//! The formats that pictures are written in.

use std::path::Path;

use crate::error::{Invalid, Result};
use crate::image::{exif, png_text};
use crate::parameter::Parameter;
use crate::pipeline::Picture;

/// A format, and how it is written. Equal pictures and parameters give equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Parameters in a text chunk called `parameters`: tEXt, or iTXt where they are not Latin-1.
    Png,
    /// Parameters in EXIF's `UserComment`. Colour has half the resolution below a quality of 90.
    Jpeg { quality: u8 },
    /// Lossless, parameters in EXIF's `UserComment`.
    WebP,
}

impl Format {
    /// Of a JPEG where `--quality` is left out.
    const QUALITY: u8 = 95;

    /// The format that the extension of `--output` says.
    ///
    /// # Errors
    /// Another extension, or a `--quality` that is not from 1 to 100 or not for a JPEG.
    pub fn of(path: &Path, quality: Option<u8>) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match (extension.as_str(), quality) {
            ("jpg" | "jpeg", Some(quality)) if !(1..=100).contains(&quality) => {
                Err(Invalid::value(Parameter::Quality, quality).expected("1 to 100").error())
            }
            ("jpg" | "jpeg", quality) => Ok(Format::Jpeg { quality: quality.unwrap_or(Self::QUALITY) }),
            ("png" | "webp", Some(quality)) => Err(Invalid::value(Parameter::Quality, quality)
                .problem(format!("{} loses nothing", path.display()))
                .advice("leave it out, or write a .jpg")
                .error()),
            ("png", None) => Ok(Format::Png),
            ("webp", None) => Ok(Format::WebP),
            _ => {
                let instead = path.with_extension("png");
                let instead = if path.file_name().is_some() { instead } else { "sdrt.png".into() };
                Err(Invalid::value(Parameter::Output, path.display())
                    .problem("pictures are written as .png, .jpg or .webp")
                    .advice(format!("try {}", instead.display()))
                    .error())
            }
        }
    }

    /// Checks that there is room for `parameters`, of which a JPEG has little.
    pub fn check(self, parameters: &str) -> Result<()> {
        if matches!(self, Format::Jpeg { .. }) && exif::write(parameters).len() > exif::LARGEST_IN_JPEG {
            return Err(Invalid::of([Parameter::Output])
                .problem("a JPEG has no room for a prompt of this length")
                .advice("try a .png")
                .error());
        }
        Ok(())
    }

    /// # Panics
    /// If [`Format::check`] would refuse the parameters, or for a picture of no pixels or of sides beyond
    /// 16,384 pixels.
    pub fn encode(self, picture: &Picture, parameters: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Picture { width, height, rgb, .. } = picture;
        match self {
            Format::Png => bytes = png(picture, parameters).expect("a picture of a size that PNG knows"),
            Format::Jpeg { quality } => {
                let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality);
                encoder.add_exif_metadata(&exif::write(parameters)).expect("parameters that were checked");
                let [width, height] = [*width, *height].map(|side| u16::try_from(side).expect("a side"));
                let encoded = encoder.encode(rgb, width, height, jpeg_encoder::ColorType::Rgb);
                encoded.expect("a picture of a size that JPEG knows");
            }
            Format::WebP => {
                let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
                encoder.set_exif_metadata(exif::write(parameters));
                let color = image_webp::ColorType::Rgb8;
                let encoded = encoder.encode(rgb, *width as u32, *height as u32, color);
                encoded.expect("a picture of a size that WebP knows");
            }
        }
        bytes
    }
}

fn png(picture: &Picture, parameters: &str) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    if !parameters.is_empty() {
        let (key, text) = (png_text::PARAMETERS.to_string(), parameters.to_string());
        if png_text::is_latin1(parameters) {
            encoder.add_text_chunk(key, text)?;
        } else {
            encoder.add_itxt_chunk(key, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::read_text;

    const FORMATS: [Format; 3] = [Format::Png, Format::Jpeg { quality: 95 }, Format::WebP];

    fn picture(width: usize, height: usize) -> Picture {
        let rgb = (0..3 * width * height).map(|i| (i * 7 % 256) as u8).collect();
        Picture { width, height, rgb, seed: 0 }
    }

    #[test]
    fn every_format_gives_its_text_back() {
        let texts = ["a", "é, ü", "Ã© is no é", "猫 🦀\nNegative prompt: 犬", "a\0b", &"long ".repeat(6000)];
        for text in texts {
            for format in FORMATS {
                format.check(text).unwrap();
                let bytes = format.encode(&picture(3, 5), text);
                assert_eq!(read_text(&bytes).as_deref(), Ok(text), "{format:?}");
            }
        }
    }

    #[test]
    fn lossless_formats_give_their_pixels_back() {
        for (width, height) in [(1, 1), (16, 3), (64, 40)] {
            let picture = picture(width, height);
            let mut rgb = vec![0; picture.rgb.len()];
            let bytes = Format::Png.encode(&picture, "a");
            let mut png = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
            png.next_frame(&mut rgb).unwrap();
            assert!(rgb == picture.rgb);
            let bytes = Format::WebP.encode(&picture, "a");
            rgb.fill(0);
            image_webp::WebPDecoder::new(std::io::Cursor::new(bytes)).unwrap().read_image(&mut rgb).unwrap();
            assert!(rgb == picture.rgb);
        }
    }

    #[test]
    fn text_beyond_latin_1_becomes_itxt() {
        for (text, latin1) in [("é", true), ("猫", false), ("Ã©", false)] {
            let bytes = Format::Png.encode(&picture(2, 1), text);
            let reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
            let chunks = &reader.info().uncompressed_latin1_text;
            assert_eq!(chunks.first().map(|chunk| chunk.text.as_str()), latin1.then_some(text));
            assert_eq!(reader.info().utf8_text.len(), usize::from(!latin1));
        }
    }

    #[test]
    fn a_jpeg_has_little_room() {
        let long = "x".repeat(1 << 15);
        let message = FORMATS[1].check(&long).unwrap_err().to_string();
        assert!(message.contains("a JPEG has no room"), "{message}");
        FORMATS[0].check(&long).unwrap();
        FORMATS[2].check(&long).unwrap();
        let largest = (0..1 << 15).rfind(|&n| FORMATS[1].check(&long[..n]).is_ok()).unwrap();
        FORMATS[1].encode(&picture(1, 1), &long[..largest]);
    }

    #[test]
    fn the_extension_says_the_format() {
        let of = |path: &str, quality| Format::of(Path::new(path), quality).map_err(|e| e.to_string());
        assert_eq!(of("a.PNG", None), Ok(Format::Png));
        assert_eq!(of("a.jpeg", None), Ok(Format::Jpeg { quality: 95 }));
        assert_eq!(of("a.jpg", Some(1)), Ok(Format::Jpeg { quality: 1 }));
        assert_eq!(of("a.webp", None), Ok(Format::WebP));
        for (path, quality, sentence) in [
            ("a.jpg", Some(0), "quality 0: expected 1 to 100"),
            ("a.jpg", Some(101), "quality 101: expected 1 to 100"),
            ("a.webp", Some(90), "quality 90: a.webp loses nothing"),
            ("a.gif", None, "output a.gif: pictures are written as .png, .jpg or .webp; try a.png"),
            ("a", Some(5), "try a.png"),
            ("..", None, "try sdrt.png"),
        ] {
            let message = of(path, quality).unwrap_err();
            assert!(message.contains(sentence), "{message}");
        }
    }
}
