//! Textual inversions: learned vectors that stand in a prompt under a name, in place of token embeddings.
//!
//! A file is one of three kinds, told by its keys:
//! - `emb_params` [n,width]: A1111's. It is called as the file, without `.safetensors`.
//! - `<token>` [n,width] or [width], the only key: diffusers' `learned_embeds`. It is called as the key.
//! - `clip_l` [n,768] and `clip_g` [n,1280]: of Stable Diffusion XL. It is called as the file.
//!
//! A name is found in a prompt whatever its case, as a whole: no letter or digit may touch a letter or digit
//! at its ends. Of several, the longest counts. So A1111's `bad-hands-5` and diffusers' `<cat-toy>` both act
//! where they do at home; A1111 compares tokens instead, diffusers also finds names inside of words.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Invalid, Result};
use crate::location::Location;
use crate::parameter::{Parameter, sentence};
use crate::pickle;

/// What gives the tensors of an embedding's pickle in Python, for A1111's of SD 1.x and 2.x.
const LOAD: &str = "{\"emb_params\": torch.load(FILE)[\"string_to_param\"][\"*\"]}";

/// A file of a textual inversion, and what it is called if not as the file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    pub file: PathBuf,
    pub name: Option<String>,
}

/// The vectors of all embeddings in use, numbered on from the vocabulary's last id.
#[derive(Clone, Debug, Default)]
pub struct Inversions {
    /// The longest name first.
    names: Vec<Name>,
    /// [vectors,width] for each text encoder.
    rows: Vec<Vec<f32>>,
    vectors: usize,
}

#[derive(Clone, Debug)]
struct Name {
    written: String,
    lower_case: String,
    ids: Range<u32>,
}

/// A name in a text.
pub(super) struct Found {
    /// Bytes of the text.
    pub at: Range<usize>,
    pub ids: Range<u32>,
}

/// `FILE` or `FILE:NAME`; a file whose path has a colon is taken as it is.
impl FromStr for Embedding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let whole = Embedding { file: text.into(), name: None };
        match text.rsplit_once(':') {
            _ if whole.file.is_file() => Ok(whole),
            Some((file, name)) if file.is_empty() || name.trim().is_empty() => {
                Err(Invalid::value(Parameter::Embedding, text).expected("FILE or FILE:NAME").error())
            }
            Some((file, name)) => Ok(Embedding { file: file.into(), name: Some(name.trim().into()) }),
            None => Ok(whole),
        }
    }
}

impl Inversions {
    /// Reads embeddings for text encoders of these widths: one, or the two of Stable Diffusion XL. Their
    /// vectors have the ids from `vocab_size` on.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Tensor`] when a file is no embedding, or one for another model;
    /// [`Error::Invalid`] when two have one name.
    pub fn read(embeddings: &[Embedding], vocab_size: usize, widths: &[usize]) -> Result<Self> {
        let mut all = Inversions { rows: vec![Vec::new(); widths.len()], ..Inversions::default() };
        for embedding in embeddings {
            let file = &embedding.file;
            let (token, rows) = read_file(file, widths)?;
            let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let written = embedding.name.clone().or(token).unwrap_or_else(stem);
            let written = written.trim();
            if written.is_empty() {
                let advice = sentence!["has no name; give it one: ", Parameter::Embedding, " FILE:NAME"];
                return Err(Error::file(file, advice));
            }
            // Letter by letter, as `find` compares: a final sigma is a sigma.
            let lower_case: String = written.chars().flat_map(char::to_lowercase).collect();
            if all.names.iter().any(|name| name.lower_case == lower_case) {
                return Err(Invalid::value(Parameter::Embedding, file.display())
                    .problem(format!("another embedding is called {written:?}, too"))
                    .advice(sentence!["name one of them anew: ", Parameter::Embedding, " FILE:NAME"])
                    .error());
            }
            let first = vocab_size + all.vectors;
            all.vectors += rows[0].len() / widths[0];
            let ids = first as u32..(vocab_size + all.vectors) as u32;
            all.names.push(Name { written: written.into(), lower_case, ids });
            all.rows.iter_mut().zip(rows).for_each(|(all, rows)| all.extend(rows));
        }
        all.names.sort_by_key(|name| std::cmp::Reverse(name.lower_case.len()));
        Ok(all)
    }

    /// Number of vectors: of ids beyond the vocabulary.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// The vectors for a text encoder, [vectors,width] in the order of their ids.
    ///
    /// # Panics
    /// When there are fewer encoders.
    pub fn rows(&self, encoder: usize) -> &[f32] {
        &self.rows[encoder]
    }

    /// The names that none of the texts has.
    pub fn unused<'a>(&'a self, texts: &[&str]) -> impl Iterator<Item = &'a str> {
        let used = |name: &Name| texts.iter().any(|text| self.all_in(text).any(|ids| ids == name.ids));
        self.names.iter().filter(move |name| !used(name)).map(|name| name.written.as_str())
    }

    fn all_in(&self, text: &str) -> impl Iterator<Item = Range<u32>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let found = self.find(&text[start..])?;
            start += found.at.end;
            Some(found.ids)
        })
    }

    /// The first name in a text.
    pub(super) fn find(&self, text: &str) -> Option<Found> {
        if self.names.is_empty() {
            return None;
        }
        text.char_indices().find_map(|(start, _)| {
            self.names.iter().find_map(|name| {
                let length = length_in_front(&text[start..], &name.lower_case)?;
                let at = start..start + length;
                let is_whole = !joined(text, at.start) && !joined(text, at.end);
                is_whole.then(|| Found { at, ids: name.ids.clone() })
            })
        })
    }
}

/// The bytes of `text` that are `lower_case` in lower case, if it starts with it.
fn length_in_front(text: &str, lower_case: &str) -> Option<usize> {
    let mut expected = lower_case.chars();
    for (at, c) in text.char_indices() {
        if expected.as_str().is_empty() {
            return Some(at);
        }
        if !c.to_lowercase().all(|c| expected.next() == Some(c)) {
            return None;
        }
    }
    expected.as_str().is_empty().then_some(text.len())
}

/// Whether a letter or digit is on both sides of byte `at`.
fn joined(text: &str, at: usize) -> bool {
    text[..at].ends_with(char::is_alphanumeric) && text[at..].starts_with(char::is_alphanumeric)
}

/// The token that a file names, and the vectors for each text encoder.
fn read_file(file: &Path, widths: &[usize]) -> Result<(Option<String>, Vec<Vec<f32>>)> {
    let location = Location::from(file);
    let bytes = location.read()?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| {
        pickle::named(&location, LOAD, Error::file(file, format!("not a safetensors file: {error}")))
    })?;
    let find = |key: &str| tensors.tensor(key).ok().map(|tensor| (key.to_owned(), tensor));
    let (token, found) = match (find("clip_l"), find("clip_g"), find("emb_params")) {
        (Some(l), Some(g), _) => (None, vec![l, g]),
        (_, _, Some(only)) => (None, vec![only]),
        _ => match <[_; 1]>::try_from(tensors.tensors()) {
            Ok([only]) => (Some(only.0.clone()).filter(|key| !key.starts_with("clip_")), vec![only]),
            Err(several) => {
                let message = format!(
                    "not a textual inversion: it has {} tensors; expected \"emb_params\", \"clip_l\" and \
                     \"clip_g\", or one alone, the vectors of a token",
                    several.len()
                );
                return Err(Error::file(file, message));
            }
        },
    };
    let rows = found.iter().map(|(key, tensor)| read_rows(file, key, tensor));
    let rows: Vec<(usize, Vec<f32>)> = rows.collect::<Result<_>>()?;
    let found_widths: Vec<usize> = rows.iter().map(|(width, _)| *width).collect();
    if found_widths != widths {
        return Err(Error::file(
            file,
            format!("trained for {}; this model is of {}", family(&found_widths), family(widths)),
        ));
    }
    let rows: Vec<Vec<f32>> = rows.into_iter().map(|(_, rows)| rows).collect();
    let counts: Vec<usize> = rows.iter().zip(widths).map(|(rows, width)| rows.len() / width).collect();
    if let Some(other) = counts.iter().find(|&&count| count != counts[0]) {
        let message =
            format!("clip_l and clip_g have {} and {other} vectors; expected as many of each", counts[0]);
        return Err(Error::file(file, message));
    }
    Ok((token, rows))
}

/// The models that text encoders of these widths belong to.
fn family(widths: &[usize]) -> String {
    let name = match widths {
        [768] => "Stable Diffusion 1.x, ",
        [1024] => "Stable Diffusion 2.x, ",
        [768, 1280] => "Stable Diffusion XL, ",
        _ => "",
    };
    let widths: Vec<String> = widths.iter().map(usize::to_string).collect();
    format!("{name}width {}", widths.join(" and "))
}

/// The width of a tensor of one or more vectors, and its numbers.
fn read_rows(file: &Path, key: &str, tensor: &TensorView) -> Result<(usize, Vec<f32>)> {
    let (vectors, width) = match *tensor.shape() {
        [width] => (1, width),
        [vectors, width] => (vectors, width),
        _ => (0, 0),
    };
    if vectors == 0 || width == 0 {
        let message = format!("its shape is {:?}; expected vectors, [n,width]", tensor.shape());
        return Err(Error::tensor(file, key, message));
    }
    let data = tensor.data();
    let halves = || data.as_chunks().0.iter().map(|half| u16::from_le_bytes(*half));
    let rows: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|float| f32::from_le_bytes(*float)).collect(),
        Dtype::F16 => halves().map(|half| f16::from_bits(half).to_f32()).collect(),
        Dtype::BF16 => halves().map(|half| bf16::from_bits(half).to_f32()).collect(),
        other => {
            let message = format!("its dtype is {other:?}; expected F32, F16 or BF16");
            return Err(Error::tensor(file, key, message));
        }
    };
    if rows.iter().all(|x| x.is_finite()) {
        Ok((width, rows))
    } else {
        Err(Error::tensor(file, key, "has values that are not finite"))
    }
}
