//! A prompt of any length as chunks of tokens, each as long as the text encoder reads at once.
//!
//! The chunks are encoded one by one and stand behind one another in the context: `FrozenCLIPEmbedder...`
//! of A1111's `modules/sd_hijack_clip.py`, and the "long prompt weighting" pipelines of diffusers.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::inversion::Inversions;
use super::prompt::{Part, Prompt, PromptStyle};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Invalid, Result};
use crate::parameter::Parameter;

/// A1111 moves what follows a comma to the next chunk when no more tokens than these follow it
/// (`comma_padding_backtrack`).
const COMMA_BACKTRACK: usize = 20;

/// What becomes of a prompt of more than 75 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongPrompt {
    /// It has more chunks.
    Chunk,
    /// It ends after the first chunk, as in diffusers.
    Truncate,
}

/// What a text encoder reads of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    /// [chunks,length]; each chunk is start, up to length - 2 tokens, end, padding.
    pub ids: Vec<u32>,
    /// [chunks,length]: what the hidden state of each token is multiplied by.
    pub weights: Vec<f32>,
    /// Tokens of a chunk: [`Tokenizer::max_length`].
    pub length: usize,
    /// The text that was left out; empty unless the prompt was truncated.
    pub dropped: String,
}

impl LongPrompt {
    /// A prompt means what it means where its style comes from.
    pub fn of_style(style: PromptStyle) -> Self {
        match style {
            PromptStyle::Plain => LongPrompt::Truncate,
            PromptStyle::A1111 => LongPrompt::Chunk,
        }
    }
}

impl fmt::Display for LongPrompt {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            LongPrompt::Chunk => "chunk",
            LongPrompt::Truncate => "truncate",
        })
    }
}

impl FromStr for LongPrompt {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "chunk" => Ok(LongPrompt::Chunk),
            "truncate" => Ok(LongPrompt::Truncate),
            _ => Err(Invalid::value(Parameter::LongPrompt, text).expected("chunk or truncate").error()),
        }
    }
}

impl Chunks {
    /// A plain prompt is cut after 75 tokens; one of A1111 at a comma, if there is one near the cut. The
    /// vectors of a textual inversion stay together.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a textual inversion has more vectors than a chunk has tokens.
    pub fn new(
        prompt: &Prompt,
        tokenizer: &Tokenizer,
        inversions: &Inversions,
        long: LongPrompt,
    ) -> Result<Self> {
        let length = tokenizer.max_length();
        let (units, text) = units(prompt, tokenizer, inversions)?;
        let mut layout = Layout {
            room: length - 2,
            backtrack: match (prompt.style, long) {
                (PromptStyle::A1111, LongPrompt::Chunk) => COMMA_BACKTRACK,
                _ => 0,
            },
            chunks: vec![Vec::new()],
            last_comma: None,
        };
        units.into_iter().try_for_each(|unit| layout.place(unit))?;
        let mut chunks = layout.chunks;
        // After a last BREAK there is nothing to encode.
        if chunks.len() > 1 && chunks.last().is_some_and(Vec::is_empty) {
            chunks.pop();
        }
        let mut dropped = "";
        if long == LongPrompt::Truncate {
            let left = chunks.split_off(1);
            dropped = left.iter().flatten().next().map_or("", |token| text[token.start..].trim());
        }
        let mut written =
            Chunks { ids: Vec::new(), weights: Vec::new(), length, dropped: dropped.to_owned() };
        chunks.iter().for_each(|chunk| written.push(chunk, tokenizer));
        Ok(written)
    }

    /// How many there are: at least one.
    pub fn count(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Where the first chunk ends: the position that a pooled output is taken from.
    pub fn end(&self, tokenizer: &Tokenizer) -> usize {
        let end = self.ids.iter().position(|&id| id == tokenizer.end());
        end.expect("every chunk has an end")
    }

    /// Adds chunks of the empty prompt: a prompt and its negative prompt have contexts of one length.
    pub fn extend_to(&mut self, count: usize, tokenizer: &Tokenizer) {
        while self.count() < count {
            self.push(&[], tokenizer);
        }
    }

    fn push(&mut self, chunk: &[Placed], tokenizer: &Tokenizer) {
        let full = self.ids.len() + self.length;
        self.ids.push(tokenizer.start());
        self.ids.extend(chunk.iter().map(|token| token.id));
        self.ids.push(tokenizer.end());
        self.ids.resize(full, tokenizer.padding());
        self.weights.push(1.0);
        self.weights.extend(chunk.iter().map(|token| token.weight));
        self.weights.resize(full, 1.0);
    }
}

/// What must not be split.
enum Unit {
    Token {
        token: Placed,
        comma: bool,
    },
    /// A textual inversion. The ids follow one another.
    Vectors {
        ids: Range<u32>,
        weight: f32,
        start: usize,
    },
    Break,
}

#[derive(Clone, Copy)]
struct Placed {
    id: u32,
    weight: f32,
    /// The byte of the prompt's text that it starts at.
    start: usize,
}

/// The units of a prompt, and its text without the syntax.
fn units(prompt: &Prompt, tokenizer: &Tokenizer, inversions: &Inversions) -> Result<(Vec<Unit>, String)> {
    let (mut units, mut shown) = (Vec::new(), String::new());
    for part in &prompt.parts {
        let Part::Text { text, weight } = part else {
            units.push(Unit::Break);
            shown += " BREAK ";
            continue;
        };
        let weight = *weight as f32;
        let mut rest = text.as_str();
        loop {
            let found = inversions.find(rest);
            let (before, name) = rest.split_at(found.as_ref().map_or(rest.len(), |found| found.at.start));
            for token in tokenizer.tokens(before)? {
                let comma = tokenizer.comma() == Some(token.id);
                let token = Placed { id: token.id, weight, start: shown.len() + token.start };
                units.push(Unit::Token { token, comma });
            }
            shown += before;
            let Some(found) = found else { break };
            units.push(Unit::Vectors { ids: found.ids, weight, start: shown.len() });
            let name = &name[..found.at.len()];
            shown += name;
            rest = &rest[found.at.end..];
        }
    }
    Ok((units, shown))
}

struct Layout {
    /// Tokens of a chunk without start and end.
    room: usize,
    backtrack: usize,
    chunks: Vec<Vec<Placed>>,
    /// Where in the last chunk its last comma is.
    last_comma: Option<usize>,
}

impl Layout {
    fn place(&mut self, unit: Unit) -> Result<()> {
        match unit {
            Unit::Break => self.next(),
            Unit::Token { token, comma } => {
                self.make_room(comma);
                self.last().push(token);
            }
            Unit::Vectors { ids, weight, start } => {
                if ids.len() > self.room {
                    return Err(Error::invalid(format!(
                        "an embedding in the prompt has {} vectors; a chunk of the prompt has room for {}",
                        ids.len(),
                        self.room
                    )));
                }
                self.make_room(false);
                if self.last().len() + ids.len() > self.room {
                    self.next();
                }
                self.last().extend(ids.map(|id| Placed { id, weight, start }));
            }
        }
        Ok(())
    }

    /// Starts a chunk if the last one is full. As in A1111, a comma that comes just then is not one to go
    /// back to.
    fn make_room(&mut self, comma: bool) {
        let (room, length) = (self.room, self.last().len());
        if comma {
            self.last_comma = Some(length);
        }
        if length == room {
            let cut = match self.last_comma {
                Some(at) if !comma && length - at <= self.backtrack => at + 1,
                _ => length,
            };
            let moved = self.last().split_off(cut);
            self.next();
            *self.last() = moved;
        }
    }

    fn next(&mut self) {
        self.chunks.push(Vec::new());
        self.last_comma = None;
    }

    fn last(&mut self) -> &mut Vec<Placed> {
        self.chunks.last_mut().expect("one is there from the start")
    }
}
