//! The texts of a request as the text encoders read them.

use super::model::Description;
use super::request::Request;
use crate::error::Result;
use crate::text::{Chunks, Inversions, LongPrompt, Prompt, PromptStyle, Tokenizer};

/// The prompt of a request and, where guidance leads away from it, the negative prompt.
pub(super) struct Prompts {
    pub prompt: Text,
    pub negative: Option<Text>,
    /// What the user should know, such as words that were dropped.
    pub warnings: Vec<String>,
}

/// A prompt or negative prompt in tokens.
pub(super) struct Text {
    /// For each text encoder; all of as many chunks.
    pub encoders: Vec<Chunks>,
    /// Where the first chunk ends for the last text encoder, whose pooled output is taken from there.
    pub end: usize,
    /// Whether zeros take the place of what the encoders make of it.
    pub is_zeroed: bool,
    /// The layer of the text encoders that is read, from the end, 1 being the last.
    pub skip: usize,
}

impl Prompts {
    pub fn new(
        request: &Request,
        model: &Description,
        tokenizers: &[Tokenizer],
        inversions: &Inversions,
    ) -> Result<Self> {
        let long = request.long_prompt.unwrap_or(LongPrompt::of_style(request.prompt_style));
        let guided = request.is_guided(&model.config);
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

        let mut texts = Vec::new();
        for prompt in &read {
            let chunks = |tokenizer| Chunks::new(prompt, tokenizer, inversions, long);
            texts.push(tokenizers.iter().map(chunks).collect::<Result<Vec<_>>>()?);
        }
        // The encoders have one vocabulary, so the first speaks for all.
        for ((name, _), text) in named.iter().zip(&texts) {
            let Chunks { length, dropped, .. } = &text[0];
            if !dropped.is_empty() {
                let room = length - 2;
                warnings.push(format!("the {name} has more than {room} tokens; left out: {dropped}"));
            }
        }
        let chunks = texts.iter().flatten().map(Chunks::count).max().unwrap_or(1);
        let plain = request.prompt_style == PromptStyle::Plain;
        let mut skips = skips(request, model).into_iter();
        let mut text = |is_negative: bool| {
            let mut encoders = if is_negative { texts.remove(0) } else { texts.pop()? };
            for (chunked, tokenizer) in encoders.iter_mut().zip(tokenizers) {
                chunked.extend_to(chunks, tokenizer);
            }
            let last = tokenizers.last()?;
            let unstated = plain && request.negative_prompt.is_empty();
            Some(Text {
                end: encoders.last()?.end(last),
                encoders,
                is_zeroed: is_negative && unstated && model.zeroes_empty_prompt,
                skip: skips.next()?,
            })
        };
        let prompt = text(false).expect("a model has a text encoder");
        Ok(Prompts { prompt, negative: if guided { text(true) } else { None }, warnings })
    }

    /// The prompt and the negative prompt, if there is one.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        std::iter::once(&self.prompt).chain(&self.negative)
    }

    /// Chunks of tokens of each text.
    pub fn chunks(&self) -> usize {
        self.prompt.encoders[0].count()
    }
}

/// The layer of the text encoders that is read of the prompt, then of the negative prompt if there is one. A plain
/// negative prompt is always read from the model's own, as in diffusers.
pub(super) fn skips(request: &Request, model: &Description) -> Vec<usize> {
    let own = model.config.text_encoders[0].role.layer;
    let clip_skip = request.clip_skip.unwrap_or(own);
    let negative = if request.prompt_style == PromptStyle::Plain { own } else { clip_skip };
    let guided = request.is_guided(&model.config);
    std::iter::once(clip_skip).chain(guided.then_some(negative)).collect()
}

impl Text {
    /// All that the text encoders read: equal for texts that are encoded alike.
    pub fn key(&self) -> Vec<u8> {
        let mut key = vec![u8::from(self.is_zeroed)];
        key.extend(self.skip.to_le_bytes());
        for Chunks { ids, weights, .. } in &self.encoders {
            key.extend(ids.len().to_le_bytes());
            key.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            key.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
        }
        key
    }
}
