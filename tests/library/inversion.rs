//! Textual inversions: files, names in prompts, ids and rows.

use std::fs;
use std::path::PathBuf;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use sdrt::text::{Chunks, Embedding, Inversions, LongPrompt, Prompt, PromptStyle, Tokenizer};
use tempfile::TempDir;

const VOCABULARY: usize = 49408;
const FIRST: u32 = VOCABULARY as u32;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file of f32 tensors; tensor i is i·100, i·100 + 1, ...
    fn write(&self, name: &str, tensors: &[(&str, &[usize])]) -> Embedding {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .enumerate()
            .map(|(i, (_, shape))| {
                let n = shape.iter().product::<usize>();
                (0..n).flat_map(|j| (i as f32 * 100.0 + j as f32).to_le_bytes()).collect()
            })
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((key, shape), bytes)| {
            (key.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        let file = self.path(name);
        fs::write(&file, serialize(views, None).unwrap()).unwrap();
        Embedding { file, name: None }
    }
}

fn named(embedding: &Embedding, name: &str) -> Embedding {
    Embedding { name: Some(name.into()), ..embedding.clone() }
}

fn read(embeddings: &[Embedding], width: usize) -> Inversions {
    Inversions::read(embeddings, VOCABULARY, &[width]).unwrap()
}

fn prompt_ids(text: &str, style: PromptStyle, inversions: &Inversions) -> Vec<u32> {
    let prompt = Prompt::read(text, style).unwrap();
    let mut ids = Chunks::new(&prompt, &Tokenizer::clip(), inversions, LongPrompt::Chunk).unwrap().ids;
    ids.truncate(ids.iter().position(|&id| id == 49407).unwrap());
    ids.split_off(1)
}

fn ids(text: &str, inversions: &Inversions) -> Vec<u32> {
    prompt_ids(text, PromptStyle::Plain, inversions)
}

fn word(text: &str) -> u32 {
    Tokenizer::clip().tokens(text).unwrap()[0].id
}

#[test]
fn every_kind_of_file_is_read() {
    let folder = Folder::new();
    let a1111 = folder.write("bad-hands-5.safetensors", &[("emb_params", &[2, 4])]);
    let diffusers = folder.write("learned_embeds.safetensors", &[("<cat-toy>", &[4])]);
    let inversions = read(&[a1111, diffusers], 4);
    assert_eq!(inversions.vectors(), 3);
    assert_eq!(inversions.rows(0), [0., 1., 2., 3., 4., 5., 6., 7., 0., 1., 2., 3.]);
    assert_eq!(ids("Bad-Hands-5", &inversions), [FIRST, FIRST + 1]);
    assert_eq!(ids("<CAT-toy>", &inversions), [FIRST + 2]);

    let xl = folder.write("style.safetensors", &[("clip_l", &[2, 4]), ("clip_g", &[2, 6])]);
    let inversions = Inversions::read(&[xl], VOCABULARY, &[4, 6]).unwrap();
    assert_eq!((inversions.vectors(), inversions.rows(0).len(), inversions.rows(1).len()), (2, 8, 12));
    assert_eq!(inversions.rows(1)[..2], [100.0, 101.0]);
    assert_eq!(ids("a style", &inversions), [word("a"), FIRST, FIRST + 1]);
}

#[test]
fn halves_are_read() {
    let folder = Folder::new();
    let values = [1.5f32, -2.0];
    let f16s: Vec<u8> = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let bf16s: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    for (dtype, bytes) in [(Dtype::F16, f16s), (Dtype::BF16, bf16s)] {
        let view = TensorView::new(dtype, vec![1, 2], &bytes).unwrap();
        let file = folder.path("half.safetensors");
        fs::write(&file, serialize([("emb_params", view)], None).unwrap()).unwrap();
        assert_eq!(read(&[Embedding { file, name: None }], 2).rows(0), values);
    }
}

#[test]
fn names_are_whole_words_and_the_longest_counts() {
    let folder = Folder::new();
    let file = folder.write("x.safetensors", &[("emb_params", &[1, 4])]);
    let names = ["fox", "fox-5", "<cat>", "\u{c9}t\u{e9}", "my style"];
    let embeddings: Vec<Embedding> = names.iter().map(|name| named(&file, name)).collect();
    let inversions = read(&embeddings, 4);
    let id = |name: &str| FIRST + names.iter().position(|other| *other == name).unwrap() as u32;
    assert_eq!(ids("FOX", &inversions), [id("fox")]);
    assert_eq!(ids("fox-5", &inversions), [id("fox-5")]);
    assert_eq!(ids("fox-51", &inversions)[0], id("fox"));
    assert_eq!(ids("fox-fox", &inversions), [id("fox"), word("-"), id("fox")]);
    assert_eq!(ids("foxes", &inversions), [word("foxes")]);
    assert_eq!(ids("5fox", &inversions).len(), 2);
    assert_eq!(ids("<cat>s,<cat>", &inversions), [id("<cat>"), word("s"), word(","), id("<cat>")]);
    assert_eq!(ids("\u{c9}T\u{c9} \u{e9}t\u{e9}", &inversions), [id("\u{c9}t\u{e9}"); 2]);
    let greek = read(&[named(&file, "\u{3c3}\u{3af}\u{3c3}\u{3c5}\u{3c6}\u{3bf}\u{3c3}")], 4);
    assert_eq!(ids("\u{3a3}\u{38a}\u{3a3}\u{3a5}\u{3a6}\u{39f}\u{3a3}", &greek), [FIRST]);
    assert_eq!(ids("my style of fox", &inversions), [id("my style"), word("of"), id("fox")]);

    let unused = |texts: &[&str]| inversions.unused(texts).map(String::from).collect::<Vec<_>>();
    assert_eq!(unused(&["a fox and <cat>", "fox-5, My Style"]), ["\u{c9}t\u{e9}"]);
    assert_eq!(unused(&["a foxglove"]).len(), names.len());
}

#[test]
fn vectors_have_the_weight_of_their_name() {
    let folder = Folder::new();
    let inversions = read(&[folder.write("fox.safetensors", &[("emb_params", &[3, 4])])], 4);
    let prompt = Prompt::read("a (red fox:1.3), b", PromptStyle::A1111).unwrap();
    let chunks = Chunks::new(&prompt, &Tokenizer::clip(), &inversions, LongPrompt::Chunk).unwrap();
    assert_eq!(chunks.weights[..9], [1.0, 1.0, 1.3, 1.3, 1.3, 1.3, 1.0, 1.0, 1.0]);
    assert_eq!(chunks.ids[3..6], [FIRST, FIRST + 1, FIRST + 2]);
    assert_eq!(chunks.end(&Tokenizer::clip()), 8);
}

#[test]
fn vectors_are_never_split() {
    let folder = Folder::new();
    let inversions = read(&[folder.write("fox.safetensors", &[("emb_params", &[10, 4])])], 4);
    let tokenizer = Tokenizer::clip();
    let chunks = |text: &str, style, long| {
        Chunks::new(&Prompt::read(text, style).unwrap(), &tokenizer, &inversions, long).unwrap()
    };
    let text = format!("{}fox cat", "cat ".repeat(70));
    for style in [PromptStyle::Plain, PromptStyle::A1111] {
        let chunks = chunks(&text, style, LongPrompt::Chunk);
        assert_eq!(chunks.ids.iter().position(|&id| id == FIRST), Some(78));
        assert_eq!(chunks.ids[71..77], [49407; 6]);
    }
    let truncated = chunks(&text, PromptStyle::Plain, LongPrompt::Truncate);
    assert_eq!((truncated.count(), truncated.dropped.as_str()), (1, "fox cat"));

    // What follows a comma near the cut moves, with its vectors.
    let text = format!("{}, fox {}", "cat ".repeat(62), "dog ".repeat(9));
    let moved = chunks(&text, PromptStyle::A1111, LongPrompt::Chunk);
    assert_eq!((moved.ids[63], moved.ids[64], moved.ids[78]), (word(","), 49407, FIRST));

    let large = read(&[folder.write("large.safetensors", &[("emb_params", &[76, 4])])], 4);
    let prompt = Prompt::read("large", PromptStyle::Plain).unwrap();
    let error = Chunks::new(&prompt, &tokenizer, &large, LongPrompt::Chunk).unwrap_err().to_string();
    assert!(error.contains("has 76 vectors") && error.contains("has room for 75"), "{error}");
}

#[test]
fn an_embedding_is_written_as_a_file_and_a_name() {
    let folder = Folder::new();
    let colon = folder.write("a:b.safetensors", &[("emb_params", &[1, 4])]).file;
    let parse = |text: &str| text.parse::<Embedding>();
    let (file, name) = (PathBuf::from("x.safetensors"), Some("y z".into()));
    assert_eq!(parse("x.safetensors").unwrap(), Embedding { file: file.clone(), name: None });
    assert_eq!(parse("x.safetensors: y z ").unwrap(), Embedding { file, name });
    assert_eq!(parse(colon.to_str().unwrap()).unwrap(), Embedding { file: colon, name: None });
    for text in [":x", "x:", "x: "] {
        let error = parse(text).unwrap_err().to_string();
        assert_eq!(error, format!("--embedding {text}: expected FILE or FILE:NAME"));
    }
}

#[track_caller]
fn assert_refused(embeddings: &[Embedding], widths: &[usize], sentence: &str) {
    let error = Inversions::read(embeddings, VOCABULARY, widths).unwrap_err().to_string();
    assert!(error.contains(sentence), "{error:?} does not say {sentence:?}");
    let file = embeddings[0].file.display().to_string();
    assert!(error.contains(&file), "{error:?} does not name {file}");
}

#[test]
fn what_cannot_be_used_is_refused_in_a_sentence() {
    let folder = Folder::new();
    let refused = |tensors: &[(&str, &[usize])], widths: &[usize], sentence: &str| {
        assert_refused(&[folder.write("e.safetensors", tensors)], widths, sentence);
    };
    let sd1 = "Stable Diffusion 1.x, width 768";
    let sd2 = "Stable Diffusion 2.x, width 1024";
    let xl = "Stable Diffusion XL, width 768 and 1280";
    let trained = |a: &str, b: &str| format!("trained for {a}; this model is of {b}");
    refused(&[("emb_params", &[1, 1024])], &[768], &trained(sd2, sd1));
    refused(&[("<a>", &[768])], &[1024], &trained(sd1, sd2));
    refused(&[("<a>", &[768])], &[768, 1280], &trained(sd1, xl));
    refused(&[("clip_l", &[1, 768]), ("clip_g", &[1, 1280])], &[768], &trained(xl, sd1));
    refused(&[("emb_params", &[1, 8])], &[32], &trained("width 8", "width 32"));
    refused(&[("clip_l", &[1, 4]), ("clip_g", &[2, 6])], &[4, 6], "clip_l and clip_g have 1 and 2 vectors");
    refused(&[("a", &[4]), ("b", &[4])], &[4], "not a textual inversion: it has 2 tensors");
    refused(&[], &[4], "not a textual inversion: it has 0 tensors");
    refused(&[("emb_params", &[1, 1, 4])], &[4], "emb_params: its shape is [1, 1, 4]; expected vectors");
    refused(&[("emb_params", &[0, 4])], &[4], "its shape is [0, 4]");
    refused(&[("emb_params", &[])], &[4], "its shape is []");
    refused(&[(" ", &[4])], &[4], "has no name");

    let one = folder.write("one.safetensors", &[("emb_params", &[1, 4])]);
    assert_refused(&[named(&one, "One"), one.clone()], &[4], "another embedding is called \"one\"");

    let written = |name: &str, bytes: &[u8]| {
        fs::write(folder.path(name), bytes).unwrap();
        [Embedding { file: folder.path(name), name: None }]
    };
    assert_refused(&written("a.pt", b""), &[4], "a pickle");
    assert_refused(&written("zip.safetensors", b"PK\x03\x04..."), &[4], "a pickle");
    assert_refused(&written("empty.safetensors", b""), &[4], "not a safetensors file");
    assert_refused(&written("text.safetensors", b"what is this?"), &[4], "not a safetensors file");
    let integers = TensorView::new(Dtype::I32, vec![1], &[0; 4]).unwrap();
    let file = serialize([("emb_params", integers)], None).unwrap();
    assert_refused(&written("integers.safetensors", &file), &[4], "its dtype is I32");
    let nan = f32::NAN.to_le_bytes();
    let file =
        serialize([("emb_params", TensorView::new(Dtype::F32, vec![1], &nan).unwrap())], None).unwrap();
    assert_refused(&written("nan.safetensors", &file), &[1], "not finite");
    assert_refused(&[Embedding { file: folder.path("nowhere"), name: None }], &[4], "no such file");
}
