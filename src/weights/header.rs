//! The header of a safetensors file.

use safetensors::tensor::Metadata;

/// Longest header that is read, as in the safetensors crate: a million tensors.
const LONGEST_HEADER: usize = 100_000_000;

/// The header of `file`, and where the bytes after it start. The error is the rest of a
/// sentence about the file.
pub fn read_header(file: &[u8]) -> Result<(Metadata, usize), String> {
    const AGAIN: &str = "download the model again";
    if file.is_empty() {
        return Err(format!("the file is empty; {AGAIN}"));
    }
    if file.starts_with(b"version https://git-lfs") {
        return Err("a Git LFS pointer instead of the weights; run `git lfs pull` in the model folder".into());
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are too few for a safetensors file; {AGAIN}", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let Some(header) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
        return Err(format!(
            "its header would be {length} bytes long, the whole file has {}: it was cut short, or is no \
             safetensors file; {AGAIN}",
            file.len()
        ));
    };
    if header.len() > LONGEST_HEADER {
        return Err(format!(
            "its header of {length} bytes is longer than a safetensors file may have; {AGAIN}"
        ));
    }
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| format!("its header is malformed ({error}); {AGAIN}"))?;
    let (expected, found) = (metadata.data_len(), rest.len() - header.len());
    if expected != found {
        let what = if found < expected { "it was cut short" } else { "something was added" };
        return Err(format!(
            "its header tells of {expected} bytes of tensors, there are {found}: {what}; {AGAIN}"
        ));
    }
    Ok((metadata, 8 + header.len()))
}
