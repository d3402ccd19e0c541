//! Encoded prompts that are kept, so that many pictures of one prompt read it once.

use super::tensors::Tensors;
use crate::error::Result;
use crate::ops::*;

/// The prompts used last, each with its negative prompt. Without room for any, which is the default, every prompt is
/// encoded.
#[derive(Default)]
pub(super) struct PromptCache {
    room: usize,
    /// The one used last at the end.
    kept: Vec<Kept>,
}

struct Kept {
    /// All that the text encoders read.
    key: Vec<u8>,
    context: Tensor,
    /// Of XL.
    embeds: Option<Tensor>,
    region: Region,
}

impl PromptCache {
    pub fn with_room(room: usize) -> Self {
        PromptCache { room, kept: Vec::new() }
    }

    pub fn bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.region.bytes).sum()
    }

    /// Puts a prompt in its place in `t`, if it is here.
    pub fn recall(&mut self, backend: &mut dyn Backend, key: &[u8], t: &Tensors) -> Result<bool> {
        let Some(at) = self.kept.iter().position(|kept| kept.key == key) else { return Ok(false) };
        let kept = self.kept.remove(at);
        backend.copy(t.denoising.context, kept.context)?;
        if let (Some(xl), Some(embeds)) = (&t.xl, kept.embeds) {
            backend.copy(xl.embeds, embeds)?;
        }
        self.kept.push(kept);
        Ok(true)
    }

    /// Keeps the prompt that has just been encoded, instead of the one that has not been used for longest.
    pub fn keep(&mut self, backend: &mut dyn Backend, key: Vec<u8>, t: &Tensors) -> Result<()> {
        if self.room == 0 {
            return Ok(());
        }
        let (context, embeds) = (t.denoising.context, t.xl.map(|xl| xl.embeds));
        let bytes = context.bytes().next_multiple_of(tensor::ALIGNMENT) + embeds.map_or(0, |e| e.bytes());
        let oldest = (self.kept.len() == self.room).then(|| self.kept.remove(0).region);
        let region = match oldest.filter(|region| region.bytes == bytes) {
            Some(region) => region,
            None => backend.reserve(bytes, "an encoded prompt")?,
        };
        let mut arena = Arena::new(region.base, region.bytes.next_multiple_of(tensor::ALIGNMENT));
        let mut copied = |from: Tensor| {
            let to = arena.alloc(from.shape, from.dtype);
            backend.copy(to, from).map(|()| to)
        };
        let (context, embeds) = (copied(context)?, embeds.map(copied).transpose()?);
        self.kept.push(Kept { key, context, embeds, region });
        Ok(())
    }
}
