//! `<lora:name:0.8>` in a prompt.

use crate::error::{Error, Result};

/// A LoRA that a prompt asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTag {
    pub name: String,
    pub text_encoder: f32,
    pub unet: f32,
}

/// Takes the tags out of a prompt of either style, as `parse_prompt` of A1111's `extra_networks.py`:
/// `<lora:name>` has the weight 1, `<lora:name:w>` the weight w, `<lora:name:t:u>` t for the text encoder and
/// u for the U-Net; `te=t` and `unet=u` say the same by name. `<lyco:...>` is the same tag.
///
/// # Errors
/// [`Error::Invalid`], with the tag, when it has no name or a weight is not a number.
pub fn extract_loras(text: &str) -> Result<(String, Vec<LoraTag>)> {
    let (mut kept, mut tags) = (String::new(), Vec::new());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, tag) = rest.split_at(start);
        kept += before;
        let inside = ["<lora:", "<lyco:"].iter().find_map(|name| tag.strip_prefix(name));
        match inside.and_then(|inside| inside.split_once('>')) {
            Some((arguments, after)) if !arguments.is_empty() => {
                tags.push(LoraTag::parse(arguments)?);
                rest = after;
            }
            _ => {
                kept.push('<');
                rest = &tag[1..];
            }
        }
    }
    Ok((kept + rest, tags))
}

impl LoraTag {
    fn parse(arguments: &str) -> Result<Self> {
        let refuse = |what: &str| {
            Error::invalid(format!(
                "<lora:{arguments}> in the prompt: {what}; expected <lora:name>, <lora:name:0.8> or \
                 <lora:name:0.8:0.5> with the weights of the text encoder and the U-Net"
            ))
        };
        let mut arguments = arguments.split(':');
        let name = arguments.next().unwrap_or_default();
        if name.is_empty() {
            return Err(refuse("it names none"));
        }
        let (mut text_encoder, mut unet) = (None, None);
        for argument in arguments {
            let (target, number) = match argument.split_once('=') {
                Some(("te", number)) => (&mut text_encoder, number),
                Some(("unet", number)) => (&mut unet, number),
                None if text_encoder.is_none() => (&mut text_encoder, argument),
                None => (&mut unet, argument),
                Some(_) => return Err(refuse(&format!("{argument:?} is not known"))),
            };
            let weight = number.trim().parse().ok().filter(|weight: &f32| weight.is_finite());
            let weight = weight.ok_or_else(|| refuse(&format!("{number:?} is not a weight")))?;
            if target.replace(weight).is_some() {
                return Err(refuse("a weight is there twice"));
            }
        }
        let text_encoder = text_encoder.unwrap_or(1.0);
        Ok(LoraTag { name: name.into(), text_encoder, unet: unet.unwrap_or(text_encoder) })
    }
}
