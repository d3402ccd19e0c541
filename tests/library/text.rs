//! The tokenizer against transformers (tests/fixtures/text, from tools/fixtures/text.py), and what it
//! says about malformed vocabularies.

use std::fs;
use std::path::Path;

use sdrt::model::config::ClipConfig;
use sdrt::text::{Chunks, Inversions, LongPrompt, Prompt, PromptStyle, Tokenizer, Vocabulary};
use serde_json::{Value, json};
use tempfile::TempDir;

const FIXTURE: &str = include_str!("../fixtures/text/tokens.json");
const SPECIAL: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];

/// A prompt as diffusers reads it.
fn encode(tokenizer: &Tokenizer, text: &str) -> Chunks {
    let prompt = Prompt::read(text, PromptStyle::Plain).unwrap();
    Chunks::new(&prompt, tokenizer, &Inversions::default(), LongPrompt::Truncate).unwrap()
}

/// CLIP's vocabulary with its first merges only.
fn cut_vocabulary(merges: usize) -> (serde_json::Map<String, Value>, Vec<String>) {
    let clip = Vocabulary::clip();
    let kept = 512 + merges as u32;
    let mut vocab: serde_json::Map<_, _> = clip
        .ids
        .iter()
        .filter(|&(_, &id)| id < kept)
        .map(|(token, &id)| (token.clone(), json!(id)))
        .collect();
    for (token, id) in SPECIAL.iter().zip(kept..) {
        vocab.insert(token.to_string(), json!(id));
    }
    (vocab, clip.merges[..merges].iter().map(|(a, b)| format!("{a} {b}")).collect())
}

fn folder(files: &[(&str, String)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// A tokenizer folder as transformers 4 and older write it.
fn vocab_and_merges(merges: usize) -> TempDir {
    let (vocab, merges) = cut_vocabulary(merges);
    let merges = format!("#version: 0.2\n{}\n", merges.join("\n"));
    folder(&[("vocab.json", Value::Object(vocab).to_string()), ("merges.txt", merges)])
}

/// A case without that column has the ids of the column `clip`.
fn check_against_fixture(tokenizer: &Tokenizer, column: &str, padding: u32) {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        let expected = case.get(column).unwrap_or(&case["clip"]).as_array().unwrap();
        let mut expected: Vec<u32> = expected.iter().map(|id| id.as_u64().unwrap() as u32).collect();
        expected.resize(77, padding);
        let text = case["text"].as_str().unwrap();
        assert_eq!(encode(tokenizer, text).ids, expected, "{column}: {text:?}");
    }
}

fn small_merges() -> usize {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    fixture["small_merges"].as_u64().unwrap() as usize
}

#[test]
fn the_embedded_vocabulary_tokenizes_as_transformers() {
    assert_eq!(Vocabulary::clip().ids.len(), 49408);
    check_against_fixture(&Tokenizer::clip(), "clip", 49407);
}

#[test]
fn a_folder_with_vocab_and_merges_tokenizes_as_transformers() {
    let merges = small_merges();
    let folder = vocab_and_merges(merges);
    check_against_fixture(
        &Tokenizer::from_folder(&folder.path().into()).unwrap(),
        "small",
        513 + merges as u32,
    );
}

#[test]
fn tokenizer_json_is_the_same_vocabulary() {
    let (vocab, merges) = cut_vocabulary(small_merges());
    let pairs: Vec<Vec<&str>> = merges.iter().map(|merge| merge.split(' ').collect()).collect();
    for merges in [json!(merges), json!(pairs)] {
        let json = json!({"version": "1.0", "model": {"type": "BPE", "vocab": vocab, "merges": merges}});
        let folder = folder(&[("tokenizer.json", json.to_string())]);
        let tokenizer = Tokenizer::from_folder(&folder.path().into()).unwrap();
        check_against_fixture(&tokenizer, "small", 513 + small_merges() as u32);
    }
}

#[test]
fn stable_diffusion_2_pads_with_an_exclamation_mark() {
    let folder = vocab_and_merges(48894);
    let object =
        json!({"pad_token": {"content": "!", "lstrip": false, "normalized": false, "rstrip": false}});
    for special in [json!({"pad_token": "!"}), object] {
        fs::write(folder.path().join("special_tokens_map.json"), special.to_string()).unwrap();
        let config = json!({"pad_token": "<|endoftext|>", "model_max_length": 77});
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        check_against_fixture(&Tokenizer::from_folder(&folder.path().into()).unwrap(), "exclamation", 0);
    }
}

#[test]
fn stable_diffusion_1_finds_special_tokens_in_the_lower_cased_text() {
    let folder = vocab_and_merges(48894);
    let token = |content: &str| json!({"content": content, "normalized": true});
    let special = json!({
        "bos_token": token(SPECIAL[0]), "eos_token": token(SPECIAL[1]), "unk_token": token(SPECIAL[1]),
        "pad_token": SPECIAL[1],
    });
    fs::write(folder.path().join("special_tokens_map.json"), special.to_string()).unwrap();
    check_against_fixture(&Tokenizer::from_folder(&folder.path().into()).unwrap(), "normalized", 49407);
}

#[test]
fn the_words_past_the_end_are_named() {
    let tokenizer = Tokenizer::clip();
    let dropped = |text: &str| encode(&tokenizer, text).dropped;
    assert_eq!(dropped(&"cat ".repeat(75)), "");
    assert_eq!(dropped(&"cat ".repeat(76)), "cat");
    assert_eq!(
        dropped(&format!("{}and a Caf\u{e9} on \u{732b} street", "cat ".repeat(74))),
        "a Caf\u{e9} on \u{732b} street"
    );
    // Each of these is several tokens: the one that is cut through counts as dropped.
    assert_eq!(dropped(&"\u{1f98a}".repeat(40)).chars().next(), Some('\u{1f98a}'));
}

#[test]
fn the_length_is_the_smaller_of_tokenizer_and_encoder() {
    let clip = ClipConfig { max_position_embeddings: 16, ..ClipConfig::vit_l() };
    let tokenizer = Tokenizer::for_encoder(None, &clip).unwrap();
    assert_eq!(encode(&tokenizer, "a cat").ids.len(), 16);

    let folder = vocab_and_merges(10);
    let config = folder.path().join("tokenizer_config.json");
    fs::write(&config, json!({"model_max_length": 8}).to_string()).unwrap();
    let tokenizer = Tokenizer::for_encoder(Some(&folder.path().into()), &clip).unwrap();
    assert_eq!((tokenizer.max_length(), encode(&tokenizer, &"x".repeat(99)).ids.len()), (8, 8));
    fs::write(&config, json!({"model_max_length": 1e30}).to_string()).unwrap();
    assert_eq!(Tokenizer::from_folder(&folder.path().into()).unwrap().max_length(), 77);
}

#[track_caller]
fn assert_refused(folder: &Path, parts: &[&str]) {
    let error = Tokenizer::from_folder(&folder.into()).err().expect("refused").to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    assert!(error.contains(&folder.display().to_string()), "{error:?} does not name the file");
}

#[test]
fn malformed_vocabularies_are_refused_in_a_sentence() {
    let with = |name: &str, text: &str| {
        let folder = vocab_and_merges(10);
        fs::write(folder.path().join(name), text).unwrap();
        folder
    };
    let refused = |name: &str, text: &str, parts: &[&str]| assert_refused(with(name, text).path(), parts);

    assert_refused(folder(&[]).path(), &["expected vocab.json and merges.txt, or tokenizer.json"]);
    refused("vocab.json", "{\"a\": 1", &["vocab.json", "not valid JSON"]);
    refused("vocab.json", "[1]", &["vocab.json", "expected a JSON object"]);
    refused("vocab.json", "{\"a\": -1}", &["the id of token \"a\" is -1"]);
    refused("vocab.json", "{\"a\": 99999999999}", &["the id of token \"a\" is 99999999999"]);
    refused("vocab.json", "{\"a\": 1, \"b\": 1}", &["both have the id 1"]);
    refused("vocab.json", "{}", &["has no token"]);
    refused("merges.txt", "#version: 0.2\nonlyone\n", &["merges.txt", "line 2", "two tokens"]);
    refused("merges.txt", "a b c\n", &["merges.txt", "line 1", "two tokens"]);
    refused("merges.txt", "zzz yyy\n", &["has no token \"zzz\""]);
    refused("merges.txt", "! !\n\" \"\n# $%&\n", &["has no token \"!!\""]);
    refused("special_tokens_map.json", "{\"bos_token\": \"<s>\"}", &["bos_token is \"<s>\"", "one of the"]);
    refused("special_tokens_map.json", "{\"pad_token\": 3}", &["pad_token is 3", "content"]);
    refused("special_tokens_map.json", "{\"pad_token\": \"\"}", &["pad_token is \"\""]);
    refused("tokenizer_config.json", "{\"model_max_length\": 1}", &["model_max_length is 1", "from 3"]);
    refused("tokenizer.json", "{}", &["tokenizer.json", "model.vocab"]);
    refused("tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}", &["only \"BPE\""]);
    refused("tokenizer.json", "{\"model\": {\"vocab\": {}}}", &["model.merges"]);
    refused("tokenizer.json", "{\"model\": {\"vocab\": {}, \"merges\": [1]}}", &["entry 0 is 1"]);

    let folder = vocab_and_merges(10);
    fs::remove_file(folder.path().join("merges.txt")).unwrap();
    assert_refused(folder.path(), &["merges.txt", "no such file"]);
    let folder = vocab_and_merges(10);
    fs::write(folder.path().join("merges.txt"), [0xff, 0xfe, b'a']).unwrap();
    assert_refused(folder.path(), &["merges.txt", "UTF-8"]);
}

#[test]
fn a_vocabulary_must_fit_the_text_encoder() {
    let folder = vocab_and_merges(10);
    let clip = ClipConfig { vocab_size: 500, ..ClipConfig::vit_l() };
    let message = Tokenizer::for_encoder(Some(&folder.path().into()), &clip).err().unwrap().to_string();
    assert!(message.contains("id 523") && message.contains("vocabulary of 500"), "{message}");
    let message = Tokenizer::for_encoder(None, &clip).err().unwrap().to_string();
    assert!(message.contains("vocabulary of 500") && message.contains("vocab.json"), "{message}");
}
