//! From the tokens of a prompt to hidden states.

use super::Programs;
use crate::error::Result;
use crate::model::clip::Pooled;
use crate::model::config::TextEncoderRole;
use crate::ops::*;
use crate::pipeline::models::Models;
use crate::pipeline::program::Program;
use crate::pipeline::prompts::Text;
use crate::pipeline::slots::padded_tokens;

/// The text encoders over texts that are read from the same layer: a prompt, a negative prompt, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::pipeline) struct TextProgram {
    pub texts: usize,
    /// Of each text.
    pub chunks: usize,
    /// The layer that is read, from the end, 1 being the last.
    pub skip: usize,
}

pub(in crate::pipeline) struct TextTensors {
    /// Of each text encoder.
    ids: Vec<Tensor>, // i32 [texts·chunks,1,1,length]
    weights: Tensor, // f32 [texts·chunks,1,1,length]
    states: Tensor,  // [texts,1,chunks·length,context_dim]
    pooled: Option<PooledTensors>,
}

/// The pooled output that XL's time embedding takes in.
struct PooledTensors {
    /// Where the first chunk of each text ends, counted from the first token of all.
    ends: Tensor, // i32 [1,1,1,texts]
    weights: Tensor, // f32 [texts,1,1,1]
    out: Tensor,     // [1,1,texts,pooled_dim]
}

impl TextProgram {
    /// Programs for texts of so many chunks, by the layer that each is read from: one for all where it is the same.
    pub fn of(skips: &[usize], chunks: usize) -> Vec<Self> {
        match skips {
            [first, ..] if skips.iter().all(|skip| skip == first) => {
                vec![TextProgram { texts: skips.len(), chunks, skip: *first }]
            }
            _ => skips.iter().map(|&skip| TextProgram { texts: 1, chunks, skip }).collect(),
        }
    }
}

impl Program for TextProgram {
    type Tensors = TextTensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> TextTensors {
        let config = &models.config;
        let (texts, chunks, length) = (self.texts, self.chunks, models.tokens);
        let states = ops.alloc([texts, 1, chunks * length, config.context_dim()]);
        let pooled = config.pooled_dim().map(|width| ops.alloc([1, 1, texts, width]));
        let arena = ops.arena();
        let by_token = [texts * chunks, 1, 1, length];
        TextTensors {
            ids: models.text_encoders.iter().map(|_| arena.alloc(by_token, DType::I32)).collect(),
            weights: arena.alloc(by_token, DType::F32),
            states,
            pooled: pooled.map(|out| PooledTensors {
                ends: arena.alloc([1, 1, 1, texts], DType::I32),
                weights: arena.alloc([texts, 1, 1, 1], DType::F32),
                out,
            }),
        }
    }

    fn run(&self, models: &Models, ops: &mut dyn Ops, t: &TextTensors) {
        ops.scope("encode", |ops| {
            let x = Tensor { shape: [self.texts * self.chunks, 1, models.tokens, t.states.c()], ..t.states };
            let roles: Vec<TextEncoderRole> = models.config.text_encoders.iter().map(|e| e.role).collect();
            let mut column = 0;
            for ((encoder, role), &ids) in models.text_encoders.iter().zip(&roles).zip(&t.ids) {
                let width = encoder.config.hidden_size;
                let hidden = encoder.from_end(x.columns(column, width), self.skip, role.is_normed);
                let pooled = t.pooled.as_ref().filter(|_| role.is_pooled);
                let pooled = pooled.map(|pooled| Pooled { out: pooled.out, ends: pooled.ends });
                encoder.forward(ops, ids, hidden, pooled);
                column += width;
            }
            // Each chunk for itself, as A1111 does.
            let restore_mean = roles.iter().all(|role| role.keeps_mean);
            ops.emphasize(Emphasize { x, weight: t.weights, restore_mean });
            if let Some(PooledTensors { weights, out, .. }) = t.pooled {
                let x = Tensor { shape: [self.texts, 1, 1, out.c()], ..out };
                ops.emphasize(Emphasize { x, weight: weights, restore_mean: false });
            }
        });
    }
}

/// What the text encoders make of a text, in memory of its own.
pub(in crate::pipeline) struct EncodedText {
    /// All that they read.
    key: Vec<u8>,
    /// Zeros fill the text up to what its range of [`Contexts`](crate::pipeline::slots::Contexts) has.
    pub states: Tensor, // [1,1,padded tokens,context_dim]
    pub pooled: Option<Tensor>, // [1,1,1,pooled_dim]
    region: Region,
}

/// The texts encoded last, so that many images of one prompt read it once.
pub(in crate::pipeline) struct TextCache {
    /// How many texts are kept for later requests; with none, every text is encoded.
    room: usize,
    /// The one used last at the end. Without room, the memory of the last request's two texts.
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
        let [_, _, tokens, c] = t.states.shape;
        let pooled = t.pooled.as_ref().map(|pooled| pooled.out);
        let plan = |ops: &mut dyn Ops| {
            let states = ops.alloc([1, 1, padded_tokens(tokens), c]);
            (states, pooled.map(|pooled| ops.alloc([1, 1, 1, pooled.c()])))
        };
        let mut count = count::Count::new(backend.dtype());
        plan(&mut count);
        let bytes = count.peak_bytes();
        // What fills a text up is never written, so that it stays zero.
        let oldest = (self.kept.len() >= self.room.max(2)).then(|| self.kept.remove(0));
        let oldest = oldest.filter(|text| text.states.shape == [1, 1, padded_tokens(tokens), c]);
        let region = match oldest {
            Some(text) => text.region,
            None => backend.reserve(bytes, "an encoded prompt")?,
        };
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let (states, pooled) = plan(backend);
        backend.use_arena(before);
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
    /// Encodes texts of equally many chunks, but for those that are kept.
    pub fn encode_texts(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        cache: &mut TextCache,
        texts: &[&Text],
    ) -> Result<Vec<EncodedText>> {
        let chunks = texts[0].encoders[0].count();
        let mut encoded: Vec<Option<EncodedText>> =
            texts.iter().map(|text| cache.recall(&text.key())).collect();
        let missing: Vec<usize> = (0..texts.len()).filter(|&i| encoded[i].is_none()).collect();
        let skips: Vec<usize> = missing.iter().map(|&i| texts[i].skip).collect();
        let mut missing = missing.into_iter();
        for program in TextProgram::of(&skips, chunks) {
            let of_program: Vec<usize> = missing.by_ref().take(program.texts).collect();
            let read: Vec<&Text> = of_program.iter().map(|&i| texts[i]).collect();
            for (i, made) in
                of_program.into_iter().zip(self.run_texts(backend, models, cache, program, &read)?)
            {
                encoded[i] = Some(made);
            }
        }
        Ok(encoded.into_iter().flatten().collect())
    }

    fn run_texts(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        cache: &mut TextCache,
        program: TextProgram,
        texts: &[&Text],
    ) -> Result<Vec<EncodedText>> {
        let recorded = self.text.get(backend, models, &mut self.workspace, program)?;
        let t = &recorded.tensors;
        for (encoder, &to) in t.ids.iter().enumerate() {
            let ids = texts.iter().flat_map(|text| &text.encoders[encoder].ids);
            backend.write(to, bytemuck::cast_slice(&ids.map(|&id| id as i32).collect::<Vec<_>>()))?;
        }
        let share = |text: &Text| if text.is_zeroed { 0.0 } else { 1.0 };
        let weights =
            texts.iter().flat_map(|text| text.encoders[0].weights.iter().map(|weight| weight * share(text)));
        backend.write(t.weights, bytemuck::cast_slice(&weights.collect::<Vec<f32>>()))?;
        if let Some(pooled) = &t.pooled {
            let tokens = program.chunks * models.tokens;
            let ends = texts.iter().enumerate().map(|(i, text)| (i * tokens + text.end) as i32);
            backend.write(pooled.ends, bytemuck::cast_slice(&ends.collect::<Vec<_>>()))?;
            let shares: Vec<f32> = texts.iter().map(|text| share(text)).collect();
            backend.write(pooled.weights, bytemuck::cast_slice(&shares))?;
        }
        recorded.replay(backend)?;
        let mut encoded = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let made = cache.take(backend, text.key(), t)?;
            let states = t.states.images(i, 1);
            backend.copy(made.states.table_rows(0, states.tokens()), states)?;
            if let (Some(to), Some(pooled)) = (made.pooled, &t.pooled) {
                backend.copy(to, pooled.out.row(i))?;
            }
            encoded.push(made);
        }
        Ok(encoded)
    }
}
