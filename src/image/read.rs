//! The text in a picture's file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{exif, png_text};
use crate::error::{Error, Result};
use crate::parameter::{Parameter, Sentence, sentence};

/// A picture of the largest size is about this large as a PNG; a larger file is something else.
const LARGEST_FILE: u64 = 1 << 30;
/// Parameters are a few kB.
const LARGEST_TEXT: usize = 1 << 20;

/// The parameters' text of a picture's file.
///
/// # Errors
/// With the path, what [`read_text`] says, or that it cannot be read.
pub fn read(path: &Path) -> Result<String> {
    let cannot_read = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Error::file(path, "no such picture"),
        _ => Error::file(path, format!("cannot be read: {error}")),
    };
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; name a picture in it"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot_read)?;
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(Error::file(path, "too large for a picture; expected a PNG, JPEG or WebP file"));
    }
    read_text(&bytes).map_err(|message| Error::file(path, message))
}

/// The text of the chunk `parameters` of a PNG, or of the EXIF `UserComment` of a PNG, JPEG or WebP.
///
/// # Errors
/// A sentence: no such file, a broken one, or one that says nothing that could be used.
pub fn read_text(bytes: &[u8]) -> Result<String, Sentence> {
    let is_png = bytes.starts_with(b"\x89PNG\r\n\x1a\n");
    let is_jpeg = bytes.starts_with(b"\xff\xd8\xff");
    let is_webp = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    if !(is_png || is_jpeg || is_webp) {
        return Err("expected a picture, in PNG, JPEG or WebP".into());
    }
    let texts = match is_png {
        true => png_text::texts(bytes, LARGEST_TEXT).map_err(|error| format!("a broken PNG: {error}"))?,
        false => Vec::new(),
    };
    let chunk = |key| texts.iter().find(|(keyword, _)| keyword == key).map(|(_, text)| text.clone());
    let comment = || exif::read(bytes).filter(|text| text.len() <= LARGEST_TEXT);
    let found = chunk(png_text::PARAMETERS).or_else(comment).filter(|text| !text.trim().is_empty());
    found.ok_or_else(|| {
        let maker = [
            ("workflow", "ComfyUI, whose workflow"),
            ("prompt", "ComfyUI, whose workflow"),
            ("invokeai_metadata", "InvokeAI, whose metadata"),
            ("sd-metadata", "InvokeAI, whose metadata"),
            ("Comment", "NovelAI or another program, whose comment"),
        ];
        match maker.into_iter().find(|(key, _)| chunk(key).is_some()) {
            Some((_, maker)) => sentence![
                format!("made with {maker} sdrt does not read; give "),
                Parameter::Prompt,
                " and the other parameters instead of ",
                Parameter::From
            ],
            None => "does not say how it was painted: it has neither a text chunk called parameters nor an \
                     EXIF UserComment; programs that edit or send pictures often drop them"
                .into(),
        }
    })
}
