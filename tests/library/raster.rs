//! Reading pictures: formats, depths, transparency, EXIF.

use std::io::Cursor;
use std::path::PathBuf;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{DynamicImage, ExtendedColorType, GrayImage, ImageEncoder, ImageFormat, RgbImage, RgbaImage};
use sdrt::raster::Raster;
use tempfile::TempDir;

const WHITE: [u8; 3] = [255; 3];
const RED: [u8; 3] = [250, 10, 20];
const GREEN: [u8; 3] = [30, 240, 40];

/// EXIF that says only that the picture is to be turned right.
const TURNED: &[u8] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("picture");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn read(&self, bytes: &[u8]) -> Raster {
        Raster::read(&self.file(bytes), WHITE).unwrap()
    }
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Red beside green.
fn pair() -> RgbImage {
    RgbImage::from_raw(2, 1, [RED, GREEN].concat()).unwrap()
}

#[test]
fn formats_are_told_by_their_content() {
    let place = Place::new();
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let want = Raster { width: 2, height: 1, rgb: [RED, GREEN].concat() };
        assert_eq!(place.read(&encoded(pair(), format)), want, "{format:?}");
    }
    let flat = RgbImage::from_pixel(16, 8, RED.into());
    let Raster { width, height, rgb } = place.read(&encoded(flat, ImageFormat::Jpeg));
    assert_eq!((width, height), (16, 8));
    assert!(rgb.chunks(3).all(|pixel| pixel.iter().zip(RED).all(|(a, b)| a.abs_diff(b) < 6)), "{rgb:?}");
}

#[test]
fn depths_and_colour_types_become_eight_bits_of_rgb() {
    let place = Place::new();
    let grey = GrayImage::from_raw(2, 1, vec![7, 200]).unwrap();
    assert_eq!(place.read(&encoded(grey, ImageFormat::Png)).rgb, [7, 7, 7, 200, 200, 200]);
    let deep = DynamicImage::from(pair()).into_rgb16();
    assert_eq!(place.read(&encoded(deep, ImageFormat::Png)).rgb, [RED, GREEN].concat());

    let mut indexed = Vec::new();
    let mut encoder = png::Encoder::new(&mut indexed, 2, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette([RED, GREEN].concat());
    encoder.write_header().unwrap().write_image_data(&[1, 0]).unwrap();
    assert_eq!(place.read(&indexed).rgb, [GREEN, RED].concat());
}

#[test]
fn what_is_transparent_shows_the_background() {
    let place = Place::new();
    let pixels = vec![9, 9, 9, 0, 100, 0, 200, 255, 0, 0, 0, 51];
    let bytes = encoded(RgbaImage::from_raw(3, 1, pixels).unwrap(), ImageFormat::Png);
    assert_eq!(place.read(&bytes).rgb, [255, 255, 255, 100, 0, 200, 204, 204, 204]);
    let on_black = Raster::read(&place.file(&bytes), [0; 3]).unwrap();
    assert_eq!(on_black.rgb, [0, 0, 0, 100, 0, 200, 0, 0, 0]);
}

#[test]
fn exif_turns_pictures_upright() {
    let place = Place::new();
    let mut png = Vec::new();
    let mut encoder = PngEncoder::new(&mut png);
    encoder.set_exif_metadata(TURNED.to_vec()).unwrap();
    encoder.write_image(&pair(), 2, 1, ExtendedColorType::Rgb8).unwrap();
    assert_eq!(place.read(&png), Raster { width: 1, height: 2, rgb: [RED, GREEN].concat() });

    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new(&mut jpeg);
    encoder.set_exif_metadata(TURNED.to_vec()).unwrap();
    encoder.write_image(&[0; 3 * 16 * 8], 16, 8, ExtendedColorType::Rgb8).unwrap();
    let turned = place.read(&jpeg);
    assert_eq!((turned.width, turned.height), (8, 16));
}

#[test]
fn what_is_no_picture_is_refused_with_its_path() {
    let place = Place::new();
    let whole = encoded(RgbImage::from_pixel(64, 64, RED.into()), ImageFormat::Png);
    for bytes in [&b"pixels"[..], &[], &whole[..whole.len() / 2]] {
        let message = Raster::read(&place.file(bytes), WHITE).unwrap_err().to_string();
        assert!(message.contains("picture: ") && message.contains("expected PNG, JPEG or WebP"), "{message}");
    }
    let message = Raster::read(place.0.path(), WHITE).unwrap_err().to_string();
    assert!(message.contains("cannot be read"), "{message}");
}
