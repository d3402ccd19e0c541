//! Text in EXIF's `UserComment`, as JPEG and WebP hold it.

use std::io::Cursor;

use exif::experimental::Writer;
use exif::{Context, Exif, Field, In, Reader, Tag, Value};

/// The first 8 bytes of a `UserComment` name its encoding.
const UNICODE: &[u8; 8] = b"UNICODE\0";
const ASCII: &[u8; 8] = b"ASCII\0\0\0";
const UNDEFINED: &[u8; 8] = b"\0\0\0\0\0\0\0\0";

/// What fits the one segment of a JPEG that EXIF has, behind two bytes of length and `Exif\0\0`.
pub const LARGEST_IN_JPEG: usize = u16::MAX as usize - 8;

/// EXIF with `text` alone, in UTF-16 big-endian as A1111 writes it.
pub fn write(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().flat_map(u16::to_be_bytes);
    let comment = UNICODE.iter().copied().chain(units).collect();
    let field = Field { tag: Tag::UserComment, ifd_num: In::PRIMARY, value: Value::Undefined(comment, 0) };
    let mut bytes = Cursor::new(Vec::new());
    let mut writer = Writer::new();
    writer.push_field(&field);
    writer.write(&mut bytes, false).expect("a comment below 4 GiB");
    bytes.into_inner()
}

/// The `UserComment` of a JPEG, WebP or PNG file.
pub fn read(bytes: &[u8]) -> Option<String> {
    let exif = Reader::new()
        .continue_on_error(true)
        .read_from_container(&mut Cursor::new(bytes))
        .or_else(|error| error.distill_partial_result(|_| ()))
        .ok()?;
    comment(&exif).map(decode)
}

/// Civitai writes it beside the picture's size instead of among EXIF's own fields.
fn comment(exif: &Exif) -> Option<&[u8]> {
    let beside = Tag(Context::Tiff, Tag::UserComment.number());
    let field = [Tag::UserComment, beside].into_iter().find_map(|tag| exif.get_field(tag, In::PRIMARY))?;
    match &field.value {
        Value::Undefined(bytes, _) | Value::Byte(bytes) => Some(bytes),
        _ => None,
    }
}

fn decode(comment: &[u8]) -> String {
    let (encoding, text) = comment.split_at(comment.len().min(UNICODE.len()));
    let utf8 = |bytes| String::from_utf8_lossy(bytes).trim_matches('\0').to_string();
    if encoding == UNICODE {
        utf16(text)
    } else if [ASCII, UNDEFINED].iter().any(|known| encoding == *known) {
        utf8(text)
    } else {
        utf8(comment)
    }
}

/// EXIF leaves the order of the bytes open: A1111 writes big-endian, others the order of the file. Settings
/// are mostly ASCII, whose high byte is zero.
fn utf16(bytes: &[u8]) -> String {
    let pairs = bytes.as_chunks().0;
    let zeros = |half: usize| pairs.iter().filter(|pair: &&[u8; 2]| pair[half] == 0).count();
    let little = zeros(1) > zeros(0);
    let unit = |&pair| if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) };
    let units: Vec<u16> = pairs.iter().map(unit).collect();
    String::from_utf16_lossy(&units).trim_start_matches('\u{feff}').trim_end_matches('\0').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_in_all_their_encodings() {
        let text = "Steps: 20, 猫";
        let utf16 = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<_>>();
        let big = [UNICODE, utf16(u16::to_be_bytes).as_slice()].concat();
        let little = [UNICODE, utf16(u16::to_le_bytes).as_slice()].concat();
        let ascii = [ASCII, text.as_bytes(), b"\0"].concat();
        for comment in [&big, &little, &ascii, text.as_bytes()] {
            assert_eq!(decode(comment), text);
        }
        for odd in [&b""[..], b"UNICODE", b"UNICODE\0", b"UNICODE\0a", b"ASCII\0\0\0"] {
            assert!(decode(odd).len() <= 7, "{odd:?}");
        }
    }
}
