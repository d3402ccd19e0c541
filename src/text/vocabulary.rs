//! The tokens and merges of a byte-pair vocabulary, from the files of a `tokenizer` folder or from the
//! copy of CLIP's own that is part of the program.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;

/// Written by tools/make_clip_vocabulary.py from OpenAI's CLIP (clip_merges.LICENSE).
const CLIP_MERGES: &[u8] = include_bytes!("clip_merges.txt.gz");
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Ids above this are nonsense: the largest vocabularies in use have a quarter million entries.
const LARGEST_ID: u64 = 1 << 20;

/// A byte-pair vocabulary: pairs of tokens merge into one, the earliest merge first.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    pub ids: HashMap<String, u32>,
    pub merges: Vec<(String, String)>,
    pub start: SpecialToken,
    pub end: SpecialToken,
    pub unknown: SpecialToken,
    pub padding: SpecialToken,
    /// Tokens of a prompt, with its start and its end.
    pub max_length: usize,
}

/// A token that stands for no text. Written out in a prompt, it means itself.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecialToken {
    pub content: String,
    pub id: u32,
    /// Swallows the spaces before and after it.
    pub lstrip: bool,
    pub rstrip: bool,
    /// Looked for in the lower-cased text instead of the text as written.
    pub normalized: bool,
    pub single_word: bool,
}

impl Vocabulary {
    /// CLIP's own, 49,408 tokens: each byte, each byte that ends a word, the merges, start and end.
    pub fn clip() -> Self {
        let mut text = String::new();
        GzDecoder::new(CLIP_MERGES).read_to_string(&mut text).expect("embedded merges unpack");
        let merges: Vec<_> = text.lines().map(|line| line.split_once(' ').expect("a pair")).collect();
        let bytes = byte_symbols().map(String::from);
        let ends = bytes.iter().map(|byte| format!("{byte}</w>"));
        let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
        let specials = [START, END].map(String::from);
        let tokens = bytes.iter().cloned().chain(ends).chain(merged).chain(specials);
        let ids: HashMap<_, _> = tokens.zip(0..).collect();
        let special = |content: &str| SpecialToken::new(content, ids[content]);
        Vocabulary {
            start: special(START),
            end: special(END),
            unknown: special(END),
            padding: special(END),
            merges: merges.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect(),
            max_length: 77,
            ids,
        }
    }

    /// Reads `tokenizer.json`, or `vocab.json` and `merges.txt`; which tokens are special from
    /// `tokenizer_config.json` and `special_tokens_map.json`, as transformers does.
    pub fn from_folder(folder: &Location) -> Result<Self> {
        let single = folder.join("tokenizer.json");
        let (ids, merges, file) = if single.is_file() {
            let (ids, merges) = read_tokenizer_json(&single)?;
            (ids, merges, single)
        } else {
            let file = folder.join("vocab.json");
            if !file.is_file() {
                return Err(Error::file(folder, "expected vocab.json and merges.txt, or tokenizer.json"));
            }
            let vocab = Object::read(&file)?;
            (read_ids(&file, &vocab.map)?, read_merges(&folder.join("merges.txt"))?, file)
        };
        check_merges(&file, &ids, &merges)?;

        let config = read_if_there(&folder.join("tokenizer_config.json"))?;
        let special = read_if_there(&folder.join("special_tokens_map.json"))?;
        // Where the configuration lists the added tokens, transformers takes it for the newer of the two.
        let config_first = config.as_ref().is_some_and(|config| config.get("added_tokens_decoder").is_some());
        let sources = if config_first { [&config, &special] } else { [&special, &config] };
        let token = |key: &str, default: &str| {
            let source = sources.into_iter().flatten().find(|source| source.get(key).is_some());
            SpecialToken::read(source, key, default, &file, &ids)
        };
        Ok(Vocabulary {
            start: token("bos_token", START)?,
            end: token("eos_token", END)?,
            unknown: token("unk_token", END)?,
            padding: token("pad_token", END)?,
            max_length: read_max_length(config.as_ref())?,
            ids,
            merges,
        })
    }
}

impl SpecialToken {
    fn new(content: &str, id: u32) -> Self {
        let content = content.to_owned();
        SpecialToken { content, id, lstrip: false, rstrip: false, normalized: false, single_word: false }
    }

    /// A string, or an object with the string as its `content`.
    fn read(
        source: Option<&Object>,
        key: &str,
        default: &str,
        vocabulary: &Location,
        ids: &HashMap<String, u32>,
    ) -> Result<Self> {
        let value = source.and_then(|source| source.get(key));
        let content = match value {
            None => Some(default),
            Some(value) => value.as_str().or_else(|| value.get("content")?.as_str()),
        };
        let refuse = |expected: String| match source {
            Some(source) => source.refuse(key, expected),
            None => Error::file(vocabulary, format!("{key} is {default:?}; {expected}")),
        };
        let Some(content) = content.filter(|content| !content.is_empty()) else {
            return Err(refuse("expected a token, or an object with its \"content\"".into()));
        };
        let Some(&id) = ids.get(content) else {
            return Err(refuse(format!("expected one of the {} tokens of {}", ids.len(), vocabulary)));
        };
        let flag = |name: &str| value.and_then(|value| value.get(name)?.as_bool()).unwrap_or(false);
        Ok(SpecialToken {
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            normalized: flag("normalized"),
            single_word: flag("single_word"),
            ..SpecialToken::new(content, id)
        })
    }
}

/// The printable stand-ins for the 256 bytes, in the order of GPT-2's and CLIP's vocabularies: the bytes
/// that are printable in Latin-1 stand for themselves, the others follow as the characters from 256 on.
fn byte_symbols() -> [char; 256] {
    let printable = || (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    let others = 256 - printable().count() as u32;
    let stand_ins = (256..256 + others).filter_map(char::from_u32);
    let mut symbols = printable().map(char::from).chain(stand_ins);
    std::array::from_fn(|_| symbols.next().expect("256 symbols"))
}

fn read_if_there(file: &Location) -> Result<Option<Object>> {
    file.is_file().then(|| Object::read(file)).transpose()
}

fn read_max_length(config: Option<&Object>) -> Result<usize> {
    let key = "model_max_length";
    // transformers writes 1e30 when nobody said a length.
    match config.and_then(|config| Some((config, config.get(key)?.as_f64()?))) {
        Some((config, length)) if length <= 65536.0 => config.count(key, 77, 3..=65536),
        _ => Ok(77),
    }
}

fn read_ids(file: &Location, vocab: &serde_json::Map<String, Value>) -> Result<HashMap<String, u32>> {
    let mut tokens = HashMap::new();
    for (token, id) in vocab {
        let Some(id) = id.as_u64().filter(|&id| id <= LARGEST_ID) else {
            let message =
                format!("the id of token {token:?} is {id}; expected a whole number up to {LARGEST_ID}");
            return Err(Error::file(file, message));
        };
        if let Some(other) = tokens.insert(id as u32, token) {
            return Err(Error::file(file, format!("tokens {other:?} and {token:?} both have the id {id}")));
        }
    }
    Ok(tokens.into_iter().map(|(id, token)| (token.clone(), id)).collect())
}

fn read_merges(file: &Location) -> Result<Vec<(String, String)>> {
    let text = file.read_text()?;
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|(number, line)| {
            split_merge(line).ok_or_else(|| {
                Error::file(file, format!("line {}: expected two tokens with a space between", number + 1))
            })
        })
        .collect()
}

fn split_merge(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ').filter(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains(' '))?;
    Some((a.to_owned(), b.to_owned()))
}

type IdsAndMerges = (HashMap<String, u32>, Vec<(String, String)>);

fn read_tokenizer_json(file: &Location) -> Result<IdsAndMerges> {
    let json = Object::read(file)?;
    let model = json.get("model");
    let part = |key: &str| model.and_then(|model| model.get(key));
    if part("type").is_some_and(|kind| kind != "BPE") {
        return Err(Error::file(file, "model.type: only \"BPE\", a byte-pair vocabulary, is supported"));
    }
    let Some(vocab) = part("vocab").and_then(Value::as_object) else {
        return Err(Error::file(file, "model.vocab: expected an object of tokens and ids"));
    };
    let Some(merges) = part("merges").and_then(Value::as_array) else {
        return Err(Error::file(file, "model.merges: expected a list"));
    };
    let merges = merges.iter().enumerate().map(|(number, merge)| {
        let pair = match merge {
            Value::String(line) => split_merge(line),
            Value::Array(pair) => match &pair[..] {
                [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
            _ => None,
        };
        pair.ok_or_else(|| {
            Error::file(file, format!("model.merges: entry {number} is {merge}; expected two tokens"))
        })
    });
    let merges = merges.collect::<Result<_>>()?;
    Ok((read_ids(file, vocab)?, merges))
}

/// Both halves of a merge and what they make must be tokens.
fn check_merges(file: &Location, ids: &HashMap<String, u32>, merges: &[(String, String)]) -> Result<()> {
    for (a, b) in merges {
        let merged = format!("{a}{b}");
        if let Some(missing) = [a, b, &merged].into_iter().find(|&token| !ids.contains_key(token)) {
            let message =
                format!("has no token {missing:?}, but the merges make {merged:?} of {a:?} and {b:?}");
            return Err(Error::file(file, message));
        }
    }
    Ok(())
}
