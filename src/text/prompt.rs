//! How a prompt is read: as plain text, or in the syntax of A1111's web UI.
//!
//! ```text
//! (a)        weight 1.1                 ((a)) 1.21, and so on
//! (a:1.3)    weight 1.3
//! [a]        weight 1/1.1
//! \( \) \[ \] \\                        the character itself
//! BREAK      what follows starts a new chunk
//! ```
//! Weights of nested brackets multiply; a bracket that is not closed ends with the prompt, one that was not
//! opened is text. This is `parse_prompt_attention` of A1111's `modules/prompt_parser.py`, with two
//! exceptions: BREAK is one inside of brackets, too, where A1111 multiplies its marker and paints the word;
//! and weights are written in ASCII digits.

use std::fmt;
use std::str::FromStr;

use super::unsupported::unsupported;
use crate::error::{Error, Invalid, Result};
use crate::parameter::Parameter;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;
const BREAK: &str = "BREAK";

/// Whose syntax a prompt has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptStyle {
    /// Every character is text, as in diffusers.
    #[default]
    Plain,
    A1111,
}

/// What a prompt says.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub style: PromptStyle,
    pub parts: Vec<Part>,
    /// Constructs of the style that are read as text: sentences for the user.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Never empty.
    Text { text: String, weight: f64 },
    /// What follows starts a new chunk.
    Break,
}

impl Prompt {
    /// # Errors
    /// [`Error::Invalid`] when a weight is not a number, or too large for one.
    pub fn read(text: &str, style: PromptStyle) -> Result<Self> {
        match style {
            PromptStyle::Plain => {
                let part = (!text.is_empty()).then(|| Part::Text { text: text.into(), weight: 1.0 });
                Ok(Prompt { style, parts: part.into_iter().collect(), warnings: Vec::new() })
            }
            PromptStyle::A1111 => Ok(Prompt { style, parts: parse(text)?, warnings: unsupported(text) }),
        }
    }
}

impl fmt::Display for PromptStyle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            PromptStyle::Plain => "plain",
            PromptStyle::A1111 => "a1111",
        })
    }
}

impl FromStr for PromptStyle {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "plain" => Ok(PromptStyle::Plain),
            "a1111" => Ok(PromptStyle::A1111),
            _ => Err(Invalid::value(Parameter::PromptStyle, text).expected("plain or a1111").error()),
        }
    }
}

/// Text with a weight, possibly empty; `None` is a BREAK.
type Piece = Option<(String, f64)>;

fn parse(text: &str) -> Result<Vec<Part>> {
    let mut pieces: Vec<Piece> = Vec::new();
    // Where in `pieces` the open brackets start.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        match first {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| "\\()[]".contains(*c));
                length += escaped.map_or(0, char::len_utf8);
                pieces.push(Some((rest[1..length].into(), 1.0)));
            }
            '(' => round.push(pieces.len()),
            '[' => square.push(pieces.len()),
            ')' | ']' | ':' => {
                let closed = match (first, weight(rest)) {
                    (')', _) => round.pop().map(|start| (start, ROUND)),
                    (']', _) => square.pop().map(|start| (start, SQUARE)),
                    (_, Some((number, written))) => {
                        length = written;
                        round.pop().map(|start| Ok((start, parse_weight(number)?))).transpose()?
                    }
                    (_, None) => None,
                };
                match closed {
                    Some((start, factor)) => multiply(&mut pieces[start..], factor),
                    None => pieces.push(Some((rest[..length].into(), 1.0))),
                }
            }
            _ => {
                length = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                push_text(&mut pieces, &rest[..length]);
            }
        }
        rest = &rest[length..];
    }
    round.into_iter().for_each(|start| multiply(&mut pieces[start..], ROUND));
    square.into_iter().for_each(|start| multiply(&mut pieces[start..], SQUARE));
    join(pieces)
}

fn multiply(pieces: &mut [Piece], factor: f64) {
    pieces.iter_mut().flatten().for_each(|(_, weight)| *weight *= factor);
}

/// `:1.3)` at the start of a text: the number as it is written, and the length of all of it in bytes.
fn weight(text: &str) -> Option<(&str, usize)> {
    let number = text.strip_prefix(':')?.trim_start();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let after = digits.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let rest = after.trim_start().strip_prefix(')')?;
    let written = (after.len() < digits.len()).then(|| &number[..number.len() - after.len()]);
    Some((written?, text.len() - rest.len()))
}

fn parse_weight(number: &str) -> Result<f64> {
    number.parse().map_err(|_| {
        Error::invalid(format!(
            "the weight :{number}) in the prompt: expected a number, as in (word:1.3); a parenthesis that is \
             text is written \\( or \\)"
        ))
    })
}

/// Text without brackets, and the BREAKs in it with the spaces around them.
fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut start = 0;
    for (at, _) in text.match_indices(BREAK) {
        let (before, after) = (&text[start..at], &text[at + BREAK.len()..]);
        if !text[..at].ends_with(of_word) && !after.starts_with(of_word) {
            pieces.push(Some((before.trim_end().into(), 1.0)));
            pieces.push(None);
            start = text.len() - after.trim_start().len();
        }
    }
    pieces.push(Some((text[start..].into(), 1.0)));
}

/// Makes one part of neighbours of the same weight.
fn join(pieces: Vec<Piece>) -> Result<Vec<Part>> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Some((text, weight))), Some((more, same))) if *weight == same => text.push_str(&more),
            (_, piece) => joined.push(piece),
        }
    }
    let parts = joined.into_iter().filter_map(|piece| match piece {
        None => Some(Ok(Part::Break)),
        Some((text, _)) if text.is_empty() => None,
        // The device multiplies in f32.
        Some((text, weight)) if (weight as f32).is_finite() => Some(Ok(Part::Text { text, weight })),
        Some((text, _)) => {
            Some(Err(Error::invalid(format!("the weights of {text:?} in the prompt multiply to infinity"))))
        }
    });
    parts.collect()
}
