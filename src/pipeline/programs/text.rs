//! From the tokens of a prompt to hidden states.

use super::Programs;
use crate::error::Result;
use crate::model::clip::Pooled;
use crate::ops::*;
use crate::pipeline::models::Models;
use crate::pipeline::program::Program;
use crate::pipeline::prompts::Text;

/// The text encoders over one prompt or negative prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct TextProgram {
    pub chunks: usize,
    /// The layer that is read, from the end, 1 being the last.
    pub skip: usize,
}

pub(in crate::pipeline) struct TextTensors {
    /// Of each text encoder.
    ids: Vec<Tensor>, // i32 [chunks,1,1,length]
    weights: Tensor, // f32 [chunks,1,1,length]
    states: Tensor,  // [1,1,chunks·length,cross_attention_dim]
    pooled: Option<PooledTensors>,
}

/// The pooled output that XL's time embedding takes in.
struct PooledTensors {
    /// Where the first chunk ends.
    end: Tensor, // i32 [1,1,1,1]
    weight: Tensor, // f32 [1,1,1,1]
    out: Tensor,    // [1,1,1,pooled_dim]
}

impl Program for TextProgram {
    type Tensors = TextTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> TextTensors {
        let unet = &models.config.unet;
        let [chunks, length] = [self.chunks, models.tokens];
        let states = ops.alloc([1, 1, chunks * length, unet.cross_attention_dim]);
        let pooled = unet.text_time.map(|text_time| ops.alloc([1, 1, 1, text_time.pooled_dim]));
        let arena = ops.arena();
        let by_token = [chunks, 1, 1, length];
        TextTensors {
            ids: models.text_encoders().map(|_| arena.alloc(by_token, DType::I32)).collect(),
            weights: arena.alloc(by_token, DType::F32),
            states,
            pooled: pooled.map(|out| PooledTensors {
                end: arena.alloc([1; 4], DType::I32),
                weight: arena.alloc([1; 4], DType::F32),
                out,
            }),
        }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &TextTensors) {
        ops.scope("encode", |ops| {
            let is_xl = models.config.is_xl();
            let x = Tensor { shape: [self.chunks, 1, models.tokens, t.states.c()], ..t.states };
            let mut column = 0;
            for (encoder, &ids) in models.text_encoders().zip(&t.ids) {
                let width = encoder.config.hidden_size;
                let hidden = encoder.from_end(x.columns(column, width), self.skip, !is_xl);
                let pools = encoder.is_projected();
                let pooled = t.pooled.as_ref().filter(|_| pools);
                let pooled = pooled.map(|pooled| Pooled { out: pooled.out, ends: pooled.end });
                encoder.forward(ops, ids, hidden, pooled);
                column += width;
            }
            // Each chunk for itself, as A1111 does. Its mean is not restored for XL.
            ops.emphasize(Emphasize { x, weight: t.weights, restore_mean: !is_xl });
            if let Some(PooledTensors { weight, out, .. }) = t.pooled {
                ops.emphasize(Emphasize { x: out, weight, restore_mean: false });
            }
        });
    }
}

/// What the text encoders make of a text, in memory of its own.
pub(in crate::pipeline) struct EncodedText {
    /// All that they read.
    key: Vec<u8>,
    pub states: Tensor,         // [1,1,tokens,cross_attention_dim]
    pub pooled: Option<Tensor>, // [1,1,1,pooled_dim]
    region: Region,
}

/// The texts encoded last, so that many images of one prompt read it once.
pub(in crate::pipeline) struct TextCache {
    /// How many texts are kept for later requests; with none, every text is encoded.
    room: usize,
    /// The one used last at the end. Without room, the memory of the last request's texts.
    kept: Vec<EncodedText>,
}

impl Default for TextCache {
    fn default() -> Self {
        TextCache::with_room(0)
    }
}

impl TextCache {
    pub fn with_room(room: usize) -> Self {
        TextCache { room, kept: Vec::new() }
    }

    pub fn bytes(&self) -> usize {
        self.kept.iter().map(|text| text.region.bytes).sum()
    }

    /// Takes a text out, if it is kept.
    fn recall(&mut self, key: &[u8]) -> Option<EncodedText> {
        let at = self.kept.iter().position(|text| text.key == key).filter(|_| self.room > 0)?;
        Some(self.kept.remove(at))
    }

    /// Memory for a text: that of the one used longest ago, where there is no more room and it fits.
    fn take(&mut self, backend: &mut dyn Backend, key: Vec<u8>, t: &TextTensors) -> Result<EncodedText> {
        let pooled = t.pooled.as_ref().map(|pooled| pooled.out);
        let bytes = t.states.bytes().next_multiple_of(tensor::ALIGNMENT)
            + pooled.map_or(0, |pooled| pooled.bytes().next_multiple_of(tensor::ALIGNMENT));
        let oldest = (self.kept.len() >= self.room.max(1)).then(|| self.kept.remove(0).region);
        let region = match oldest.filter(|region| region.bytes == bytes) {
            Some(region) => region,
            None => backend.reserve(bytes, "an encoded prompt")?,
        };
        let mut arena = Arena::new(region.base, region.bytes);
        let states = arena.alloc(t.states.shape, t.states.dtype);
        let pooled = pooled.map(|pooled| arena.alloc(pooled.shape, pooled.dtype));
        Ok(EncodedText { key, states, pooled, region })
    }

    pub fn clear(&mut self) {
        self.kept.clear();
    }

    /// Takes a text back for later.
    pub fn keep(&mut self, text: EncodedText) {
        self.kept.push(text);
    }
}

impl Programs {
    /// Encodes a text, or recalls what was kept of it.
    pub fn encode_text(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        cache: &mut TextCache,
        program: TextProgram,
        text: &Text,
    ) -> Result<EncodedText> {
        let key = text.key(program.skip);
        if let Some(kept) = cache.recall(&key) {
            return Ok(kept);
        }
        let recorded = self.text.get(backend, models, &mut self.workspace, program)?;
        let t = &recorded.tensors;
        for (&to, chunks) in t.ids.iter().zip(&text.encoders) {
            let ids: Vec<i32> = chunks.ids.iter().map(|&id| id as i32).collect();
            backend.write(to, bytemuck::cast_slice(&ids))?;
        }
        let share = if text.is_zeroed { 0.0 } else { 1.0 };
        let weights: Vec<f32> = text.encoders[0].weights.iter().map(|weight| weight * share).collect();
        backend.write(t.weights, bytemuck::cast_slice(&weights))?;
        if let Some(pooled) = &t.pooled {
            backend.write(pooled.end, bytemuck::bytes_of(&(text.end as i32)))?;
            backend.write(pooled.weight, bytemuck::bytes_of(&share))?;
        }
        recorded.replay(backend)?;
        let encoded = cache.take(backend, key, t)?;
        backend.copy(encoded.states, t.states)?;
        if let (Some(to), Some(pooled)) = (encoded.pooled, &t.pooled) {
            backend.copy(to, pooled.out)?;
        }
        Ok(encoded)
    }
}
