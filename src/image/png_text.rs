//! Text chunks of PNG files.

use std::io::Cursor;

/// The keyword that A1111 and its relatives write under.
pub const PARAMETERS: &str = "parameters";

/// All texts by their keywords. Those that cannot be decoded, or are longer than `limit` bytes, are not among
/// them.
///
/// # Errors
/// A file that is no PNG or not whole.
pub fn texts(bytes: &[u8], limit: usize) -> Result<Vec<(String, String)>, png::DecodingError> {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
    // Text may stand behind the pixels, too.
    reader.finish()?;
    let info = reader.info();
    let mut texts = Vec::new();
    for chunk in &info.uncompressed_latin1_text {
        texts.push((chunk.keyword.clone(), from_latin1(&chunk.text)));
    }
    for chunk in &info.compressed_latin1_text {
        let mut chunk = chunk.clone();
        if chunk.decompress_text_with_limit(limit).is_ok() {
            texts.extend(chunk.get_text().map(|text| (chunk.keyword, from_latin1(&text))));
        }
    }
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        if chunk.decompress_text_with_limit(limit).is_ok() {
            texts.extend(chunk.get_text().map(|text| (chunk.keyword, text)));
        }
    }
    texts.retain(|(_, text)| text.len() <= limit);
    Ok(texts)
}

/// Whether a tEXt chunk holds the text such that [`from_latin1`] gives it back.
pub fn is_latin1(text: &str) -> bool {
    text.chars().all(|c| u32::from(c) < 256) && from_latin1(text) == text
}

/// sd.cpp and others put UTF-8 where Latin-1 belongs, which real Latin-1 hardly ever happens to be.
fn from_latin1(text: &str) -> String {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_else(|| text.into())
}
