//! Limits of the engine, and fields that several configurations have.

use serde_json::Value;

use crate::error::Result;
use crate::json::Object;

/// Most channels of a level, and the widest hidden states. Layer norm's rows are no wider, and group norm's
/// twice as wide, as a concatenation is. Stable Diffusion has 1280.
pub(super) const MAX_WIDTH: usize = 1 << 11;
/// Most of any other count of channels: far from overflowing anything.
pub(super) const MAX_CHANNELS: usize = 1 << 14;
/// Largest head of the attention kernels; the VAE's single head has its own limit.
pub(super) const MAX_HEAD_DIM: usize = 160;
pub(super) const MAX_VAE_HEAD_DIM: usize = 512;

/// Refuses every value but the `supported` ones, given as JSON. A list must have supported entries only.
pub(super) fn only(json: &Object, key: &str, supported: &[&str]) -> Result<()> {
    let Some(value) = json.get(key) else { return Ok(()) };
    let fits = |value: &Value| {
        let written = value.to_string();
        let number = value.as_f64();
        supported
            .iter()
            .any(|text| *text == written || number.is_some_and(|number| text.parse() == Ok(number)))
    };
    let supported_here = match value {
        Value::Array(list) => list.iter().all(fits),
        value => fits(value),
    };
    if supported_here {
        return Ok(());
    }
    let verb = if supported.len() == 1 { "is" } else { "are" };
    Err(json.refuse(key, format!("only {} {verb} supported", supported.join(" and "))))
}

pub(super) fn channels(
    json: &Object,
    key: &str,
    default: usize,
    multiple: usize,
    most: usize,
) -> Result<usize> {
    let count = json.count(key, default, 1..=most)?;
    if count.is_multiple_of(multiple) {
        Ok(count)
    } else {
        Err(json.refuse(key, format!("expected a multiple of {multiple}")))
    }
}

/// `block_out_channels`, the key that says how many levels there are.
pub(super) fn levels(json: &Object, default: &[usize]) -> Result<Vec<usize>> {
    let key = "block_out_channels";
    let Some(value) = json.get(key) else { return Ok(default.to_vec()) };
    let n = value.as_array().map_or(0, |list| list.len());
    if !(1..=8).contains(&n) {
        return Err(json.refuse(key, "expected a list of 1 to 8 channel counts"));
    }
    let channels = json.counts(key, 0, n, 8..=MAX_WIDTH)?;
    if channels.iter().any(|count| !count.is_multiple_of(8)) {
        return Err(json.refuse(key, "expected multiples of 8"));
    }
    Ok(channels)
}

pub(super) fn check_groups(json: &Object, channels: &[usize], groups: usize) -> Result<()> {
    match channels.iter().find(|count| !count.is_multiple_of(groups)) {
        None => Ok(()),
        Some(count) => Err(json
            .refuse("norm_num_groups", format!("{count} channels cannot be divided into that many groups"))),
    }
}

pub(super) fn check_heads(json: &Object, key: &str, channels: usize, heads: usize) -> Result<()> {
    let d = channels / heads;
    if channels.is_multiple_of(heads) && d.is_multiple_of(8) && (8..=MAX_HEAD_DIM).contains(&d) {
        return Ok(());
    }
    let expected = format!(
        "it is a number of heads, and must divide {channels} channels into heads of a multiple of 8, \
         at most {MAX_HEAD_DIM}"
    );
    Err(json.refuse(key, expected))
}
