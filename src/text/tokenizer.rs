//! CLIP's tokenizer: lower-cased words in byte pairs, as transformers' `CLIPTokenizer`.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior};

use super::vocabulary::{SpecialToken, Vocabulary};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::model::config::ClipConfig;

/// What counts as a word: a contraction's end, letters, one digit, a run of anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    padding: u32,
    comma: Option<u32>,
    max_length: usize,
    largest_id: u32,
}

/// A token of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: u32,
    /// The byte of the text that it starts at.
    pub start: usize,
}

impl Tokenizer {
    /// With CLIP's own vocabulary, which is part of the program.
    pub fn clip() -> Self {
        Tokenizer::build(&Vocabulary::clip()).expect("CLIP's vocabulary is well-formed")
    }

    /// From a `tokenizer` folder.
    pub fn from_folder(folder: &Location) -> Result<Self> {
        let vocabulary = Vocabulary::from_folder(folder)?;
        Tokenizer::build(&vocabulary).map_err(|error| Error::file(folder, format!("not usable: {error}")))
    }

    /// The tokenizer of a text encoder: from the model's `tokenizer` folder, or CLIP's own if there is none.
    pub fn for_encoder(folder: Option<&Location>, clip: &ClipConfig) -> Result<Self> {
        let vocab_size = clip.vocab_size;
        let tokenizer = match folder {
            Some(folder) => {
                let tokenizer = Tokenizer::from_folder(folder)?;
                if tokenizer.largest_id as usize >= vocab_size {
                    let message = format!(
                        "has a token with the id {}, the text encoder only has a vocabulary of {vocab_size}; \
                         they are of different models",
                        tokenizer.largest_id
                    );
                    return Err(Error::file(folder, message));
                }
                tokenizer
            }
            None => {
                let tokenizer = Tokenizer::clip();
                let tokenizer = match clip.is_open_clip() {
                    true => Tokenizer { padding: 0, ..tokenizer },
                    false => tokenizer,
                };
                if tokenizer.largest_id as usize + 1 != vocab_size {
                    return Err(Error::invalid(format!(
                        "the model has no tokenizer folder, and its text encoder's vocabulary of {vocab_size} is \
                         not CLIP's of 49408; put vocab.json and merges.txt into tokenizer/ in the model folder"
                    )));
                }
                tokenizer
            }
        };
        let max_length = tokenizer.max_length.min(clip.max_position_embeddings);
        Ok(Tokenizer { max_length, ..tokenizer })
    }

    fn build(vocabulary: &Vocabulary) -> tokenizers::Result<Self> {
        let Vocabulary { ids, merges, start, end, unknown, padding, max_length } = vocabulary;
        let pairs = ids.iter().map(|(token, &id)| (token.clone(), id));
        let model = BPE::builder()
            .vocab_and_merges(pairs.collect::<tokenizers::models::bpe::Vocab>(), merges.clone())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".into())
            .unk_token(unknown.content.clone())
            .build()?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let normalizers: Vec<NormalizerWrapper> = vec![
            NFC.into(),
            Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?.into(),
            Lowercase.into(),
        ];
        inner.with_normalizer(Some(Normalizers::new(normalizers)))?;
        let words =
            Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?.into();
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![
            words,
            ByteLevel::new(false, true, true).into(),
        ])));
        inner.add_special_tokens([start, end, unknown, padding].map(added_token))?;
        Ok(Tokenizer {
            inner,
            start: start.id,
            end: end.id,
            padding: padding.id,
            comma: ids.get(",</w>").copied(),
            max_length: *max_length,
            largest_id: ids.values().copied().max().unwrap_or(0),
        })
    }

    /// Number of ids that the text encoder reads at once: 77 for CLIP.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id in front of every prompt.
    pub fn start(&self) -> u32 {
        self.start
    }
    /// The id after the last token of a prompt.
    pub fn end(&self) -> u32 {
        self.end
    }
    /// The id that fills a prompt up to its length; Stable Diffusion 1 has the end for it.
    pub fn padding(&self) -> u32 {
        self.padding
    }
    /// A comma that stands alone.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }

    /// The tokens of a text of any length, without start and end.
    pub fn tokens(&self, text: &str) -> Result<Vec<Token>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|error| Error::invalid(format!("the prompt cannot be tokenized: {error}")))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, _))| Token { id, start }).collect())
    }
}

fn added_token(token: &SpecialToken) -> AddedToken {
    AddedToken::from(token.content.as_str(), true)
        .lstrip(token.lstrip)
        .rstrip(token.rstrip)
        .normalized(token.normalized)
        .single_word(token.single_word)
}
