//! Pictures as PNG files that say how they were painted.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pipeline::{Picture, Request};

/// The text that A1111 and its relatives read back: `create_infotext` of its `processing.py`.
///
/// `model` is the model's name; a value with a comma, colon or line break is quoted as JSON.
pub fn parameters(request: &Request, seed: u64, model: &str) -> String {
    let quoted = |value: &str| {
        if value.contains([',', ':', '\n']) {
            serde_json::Value::from(value).to_string()
        } else {
            value.to_string()
        }
    };
    let settings = [
        ("Steps", request.steps.to_string()),
        ("Sampler", request.sampler.label().to_string()),
        ("Schedule type", request.schedule.label().to_string()),
        ("CFG scale", format!("{:?}", request.guidance_scale)),
        ("Seed", seed.to_string()),
        ("Size", format!("{}x{}", request.width, request.height)),
        ("Model", quoted(model)),
        ("RNG", request.rng.label().to_string()),
        ("Version", format!("sdrt {}", env!("CARGO_PKG_VERSION"))),
    ];
    let settings = settings.into_iter().chain(extras(request));
    let mut text = request.prompt.clone();
    if !request.negative_prompt.is_empty() {
        text += &format!("\nNegative prompt: {}", request.negative_prompt);
    }
    let settings: Vec<String> = settings.map(|(key, value)| format!("{key}: {value}")).collect();
    text + "\n" + &settings.join(", ")
}

/// What is only said where it is not as usual.
fn extras(request: &Request) -> impl Iterator<Item = (&'static str, String)> {
    let eta = request.eta.filter(|_| request.eta != request.sampler.default_eta());
    let rescale = Some(request.guidance_rescale).filter(|&rescale| rescale != 0.0);
    [
        eta.map(|eta| (request.sampler.eta_label(), eta.to_string())),
        rescale.map(|rescale| ("CFG Rescale", rescale.to_string())),
        request.sigmas.as_ref().map(|sigmas| ("Sigmas", format!("\"{sigmas}\""))),
    ]
    .into_iter()
    .flatten()
}

/// A PNG with `parameters` in a text chunk: tEXt where it is Latin-1, else iTXt.
pub fn png(picture: &Picture, parameters: &str) -> Vec<u8> {
    let encode = || -> std::result::Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, picture.width as u32, picture.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        let (key, text) = ("parameters".to_string(), parameters.to_string());
        if parameters.chars().all(|c| u32::from(c) < 256) {
            encoder.add_text_chunk(key, text)?;
        } else {
            encoder.add_itxt_chunk(key, text)?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&picture.rgb)?;
        writer.finish()?;
        Ok(bytes)
    };
    encode().expect("a picture of a size that PNG knows, into memory")
}

/// The file of picture `index` of `count`: `path` itself, or `name-0.png`, `name-1.png`, ...
pub fn numbered(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_path_buf();
    }
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(format!("-{index}.png"));
    path.with_file_name(name)
}

/// Checks that a PNG can be written to `path`, and leaves everything as it was.
pub fn check_destination(path: &Path) -> Result<()> {
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        let instead = path.with_extension("png");
        let instead = if path.file_name().is_some() { instead } else { "sdrt.png".into() };
        return Err(Error::invalid(format!(
            "--output {}: pictures are written as PNG; try {}",
            path.display(),
            instead.display()
        )));
    }
    check_writable(path)
}

/// Checks that a file can be written to `path`, and leaves everything as it was.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; name a file in it"));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        return Err(Error::file(
            folder,
            format!("no such folder to write to; try mkdir -p {0:?} first", folder),
        ));
    }
    if is_device(path) {
        return Ok(());
    }
    write_beside(&followed(path), &[])
        .and_then(|beside| remove(&beside))
        .map_err(|error| cannot_write(path, error))
}

/// Writes a file as a whole: a reader, or a crash, never meets half of it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_device(path) {
        return fs::write(path, bytes).map_err(|error| cannot_write(path, error));
    }
    let file = followed(path);
    write_beside(&file, bytes)
        .and_then(|beside| fs::rename(&beside, &file).inspect_err(|_| drop(remove(&beside))))
        .map_err(|error| cannot_write(path, error))
}

/// Whether bytes only pass through, as with `/dev/stdout`: renaming would put a file in its place.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// The file that a link stands for.
fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

fn write_beside(path: &Path, bytes: &[u8]) -> std::io::Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    fs::write(&beside, bytes).inspect_err(|_| drop(remove(&beside)))?;
    Ok(beside)
}

fn remove(path: &Path) -> std::io::Result<()> {
    fs::remove_file(path)
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::file(path, format!("cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::KnownShapes;
    use crate::sampler::Sampler;

    fn request() -> Request {
        let defaults = Request::defaults(&KnownShapes::Sd15.describe(), Sampler::Pndm);
        Request { prompt: "a cat, asleep".into(), ..defaults }
    }

    #[test]
    fn parameters_are_what_a1111_reads() {
        let settings = format!(
            "Steps: 20, Sampler: PLMS, Schedule type: Automatic, CFG scale: 7.5, Seed: 5, Size: 512x512, \
             Model: tiny, RNG: CPU, Version: sdrt {}",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(parameters(&request(), 5, "tiny"), format!("a cat, asleep\n{settings}"));
        let negative = Request { negative_prompt: "dogs".into(), ..request() };
        let expected = format!("a cat, asleep\nNegative prompt: dogs\n{settings}");
        assert_eq!(parameters(&negative, 5, "tiny"), expected);
        let unusual = Request {
            sampler: Sampler::EulerAncestral,
            eta: Some(0.5),
            guidance_rescale: 0.7,
            sigmas: Some("14.6,3,0".parse().unwrap()),
            ..request()
        };
        let unusual = parameters(&unusual, 5, "tiny");
        assert!(unusual.ends_with(r#", Eta: 0.5, CFG Rescale: 0.7, Sigmas: "14.6,3,0""#), "{unusual}");
        let usual = Request { sampler: Sampler::EulerAncestral, eta: Some(1.0), ..request() };
        assert!(!parameters(&usual, 5, "tiny").contains("Eta"));
        let quoted = parameters(&request(), 5, "a, \"b\": c");
        assert!(quoted.contains(r#"Model: "a, \"b\": c", RNG"#), "{quoted}");
    }

    #[test]
    fn text_beyond_latin_1_becomes_itxt() {
        let picture = Picture { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 6], seed: 0 };
        for (text, latin1) in [("é", true), ("猫", false)] {
            let bytes = png(&picture, text);
            let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
            let mut rgb = vec![0; 6];
            reader.next_frame(&mut rgb).unwrap();
            assert_eq!(rgb, picture.rgb);
            let info = reader.info();
            if latin1 {
                assert_eq!(info.uncompressed_latin1_text[0].text, text);
            } else {
                assert_eq!(info.utf8_text[0].get_text().unwrap(), text);
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["a.png", "b.png"].map(|name| folder.path().join(name));
        write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        check_destination(&link).unwrap();
        write(&link, b"new").unwrap();
        assert!(link.is_symlink() && fs::read(&file).unwrap() == b"new");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        write(&path, b"old").unwrap();
        assert!(write(&path.join("b.png"), b"new").is_err());
        let onto_folder = folder.path().join("c.png");
        fs::create_dir(&onto_folder).unwrap();
        assert!(write(&onto_folder, b"new").is_err());
        let message = check_destination(&onto_folder).unwrap_err().to_string();
        assert!(message.contains("c.png: is a folder"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
