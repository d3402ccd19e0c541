//! Prompts as the text encoders read them, and what is written of them in front of a run.

use super::model::Description;
use super::request::{Pass, Request};
use super::tensors::{Shape, Tensors, XlTensors};
use crate::error::Result;
use crate::ops::{Backend, Tensor};
use crate::text::{Chunks, Inversions, LongPrompt, Prompt, PromptStyle, Tokenizer};

/// The texts of one request: the negative prompt, if the U-Net sees it, and the prompt.
pub(super) struct Prompts<'a> {
    encoders: Vec<Encoder<'a>>,
    /// Of every text.
    chunks: usize,
    /// What the user should know, such as words that were dropped.
    pub warnings: Vec<String>,
}

/// The texts in the tokens of one text encoder.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    texts: Vec<Chunks>,
}

impl<'a> Prompts<'a> {
    pub fn new(
        request: &Request,
        guided: bool,
        tokenizers: &'a [Tokenizer],
        inversions: &Inversions,
    ) -> Result<Self> {
        let long = request.long_prompt.unwrap_or(LongPrompt::of_style(request.prompt_style));
        let negative = guided.then_some(("negative prompt", &request.negative_prompt));
        let named: Vec<_> = negative.into_iter().chain([("prompt", &request.prompt)]).collect();
        let mut warnings = Vec::new();
        let mut read = Vec::new();
        for (_, text) in &named {
            let prompt = Prompt::read(text, request.prompt_style)?;
            warnings.extend(prompt.warnings.iter().cloned());
            read.push(prompt);
        }
        let texts: Vec<&str> = named.iter().map(|(_, text)| text.as_str()).collect();
        let unused = |name| format!("the embedding {name:?} has no effect: no prompt has its name");
        warnings.extend(inversions.unused(&texts).map(unused));

        let mut encoders = Vec::new();
        for tokenizer in tokenizers {
            let chunks = |prompt| Chunks::new(prompt, tokenizer, inversions, long);
            encoders.push(Encoder { tokenizer, texts: read.iter().map(chunks).collect::<Result<_>>()? });
        }
        // The encoders have one vocabulary, so the first speaks for all.
        for ((name, _), text) in named.iter().zip(&encoders[0].texts) {
            if !text.dropped.is_empty() {
                let room = text.length - 2;
                let dropped = &text.dropped;
                warnings.push(format!("the {name} has more than {room} tokens; left out: {dropped}"));
            }
        }
        let counts = encoders.iter().flat_map(|encoder| encoder.texts.iter().map(Chunks::count));
        let chunks = counts.max().unwrap_or(1);
        for Encoder { tokenizer, texts } in &mut encoders {
            texts.iter_mut().for_each(|text| text.extend_to(chunks, tokenizer));
        }
        Ok(Prompts { encoders, chunks, warnings })
    }

    /// Chunks of tokens that the encoders read of each text.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Writes what the text encoders and XL's time embedding read.
    pub fn write(
        &self,
        backend: &mut dyn Backend,
        t: &Tensors,
        request: &Request,
        pass: &Pass,
        model: &Description,
    ) -> Result<()> {
        self.write_ids(backend, t.ids, &self.encoders[0], request.images)?;
        let is_zeroed = |text| self.is_zeroed(text, request, model);
        let weights = self.encoders[0].texts.iter().enumerate().flat_map(|(i, text)| {
            let zeroed = is_zeroed(i);
            let weights = text.weights.iter().map(move |&weight| if zeroed { 0.0 } else { weight });
            weights.collect::<Vec<f32>>().repeat(request.images)
        });
        backend.write(t.token_weights, bytemuck::cast_slice(&weights.collect::<Vec<f32>>()))?;
        if let Some(xl) = &t.xl {
            self.write_ids(backend, xl.ids_2, &self.encoders[1], request.images)?;
            let zeroed = (0..self.encoders[1].texts.len()).map(is_zeroed);
            self.write_xl(backend, xl, zeroed, t.encoded_apart, request, pass)?;
        }
        Ok(())
    }

    /// Whether a text is zeros instead of what the encoders make of it.
    fn is_zeroed(&self, text: usize, request: &Request, model: &Description) -> bool {
        let unstated = request.prompt_style == PromptStyle::Plain && request.negative_prompt.is_empty();
        let is_negative = text + 1 < self.encoders[0].texts.len();
        model.config.is_xl() && model.force_zeros_for_empty_prompt && unstated && is_negative
    }

    /// All that the text encoders read of the request: equal for prompts that are encoded alike.
    pub fn key(&self, request: &Request, model: &Description, shape: &Shape) -> Vec<u8> {
        let numbers = [request.images, shape.clip_skip[0], shape.clip_skip[1]];
        let mut key: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        for Encoder { texts, .. } in &self.encoders {
            for (i, text) in texts.iter().enumerate() {
                key.extend([u8::from(self.is_zeroed(i, request, model)), b':']);
                key.extend(text.ids.iter().flat_map(|id| id.to_le_bytes()));
                key.extend(text.weights.iter().flat_map(|weight| weight.to_le_bytes()));
            }
        }
        key
    }

    fn write_ids(
        &self,
        backend: &mut dyn Backend,
        ids: Tensor,
        encoder: &Encoder,
        images: usize,
    ) -> Result<()> {
        let of_text = |text: &Chunks| text.ids.iter().map(|&id| id as i32).collect::<Vec<_>>().repeat(images);
        let all: Vec<i32> = encoder.texts.iter().flat_map(of_text).collect();
        backend.write(ids, bytemuck::cast_slice(&all))
    }

    /// `apart`: whether the texts are encoded one after the other.
    fn write_xl(
        &self,
        backend: &mut dyn Backend,
        xl: &XlTensors,
        zeroed: impl Iterator<Item = bool>,
        apart: bool,
        request: &Request,
        pass: &Pass,
    ) -> Result<()> {
        let images = request.images;
        let Encoder { tokenizer, texts } = &self.encoders[1];
        let of_text = |(i, text): (usize, &Chunks)| {
            let before = if apart { 0 } else { i * images };
            let end = text.end(tokenizer);
            (before..before + images).map(|row| (row * text.ids.len() + end) as i32).collect::<Vec<_>>()
        };
        let ends: Vec<i32> = texts.iter().enumerate().flat_map(of_text).collect();
        backend.write(xl.ends, bytemuck::cast_slice(&ends))?;
        let weights: Vec<f32> =
            zeroed.flat_map(|zeroed| std::iter::repeat_n(if zeroed { 0.0 } else { 1.0 }, images)).collect();
        backend.write(xl.pooled_weights, bytemuck::cast_slice(&weights))?;
        let time_ids = request.size.time_ids(pass.width, pass.height);
        backend.write(xl.time_ids, bytemuck::cast_slice(&time_ids.repeat(xl.time_ids.b())))
    }
}
