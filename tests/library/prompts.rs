//! Prompts against A1111's grammar and chunks (tests/fixtures/prompts, from tools/fixtures/prompts.py).

use sdrt::text::{
    Chunks, Inversions, LongPrompt, LoraTag, Part, Prompt, PromptStyle, Tokenizer, extract_loras,
};
use serde_json::Value;

const FIXTURE: &str = include_str!("../fixtures/prompts/a1111.json");

fn fixture(section: &str) -> Vec<Value> {
    let mut fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    match fixture[section].take() {
        Value::Array(cases) => cases,
        other => panic!("{section} is {other}"),
    }
}

fn a1111(text: &str) -> Prompt {
    Prompt::read(text, PromptStyle::A1111).unwrap()
}

fn plain(text: &str) -> Prompt {
    Prompt::read(text, PromptStyle::Plain).unwrap()
}

fn chunks(prompt: &Prompt, long: LongPrompt) -> Chunks {
    Chunks::new(prompt, &Tokenizer::clip(), &Inversions::default(), long).unwrap()
}

fn dropped(prompt: &Prompt) -> String {
    chunks(prompt, LongPrompt::Truncate).dropped
}

fn number(value: &Value) -> f64 {
    value.as_str().unwrap().parse().unwrap()
}

/// The parts of a fixture: [text, weight], or null for a BREAK.
fn parts(pieces: &Value) -> Vec<Part> {
    let part = |piece: &Value| match piece {
        Value::Null => Part::Break,
        piece => Part::Text { text: piece[0].as_str().unwrap().into(), weight: number(&piece[1]) },
    };
    pieces.as_array().unwrap().iter().map(part).collect()
}

#[test]
fn the_grammar_is_a1111s() {
    let cases = fixture("parsed");
    assert!(cases.len() > 250, "{}", cases.len());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(a1111(text).parts, parts(&case["pieces"]), "{text:?}");
    }
}

#[test]
fn in_plain_style_every_character_is_text() {
    for case in fixture("parsed") {
        let text = case["text"].as_str().unwrap();
        let whole = Part::Text { text: text.into(), weight: 1.0 };
        assert_eq!(plain(text).parts, if text.is_empty() { vec![] } else { vec![whole] });
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_in_a_sentence() {
    for text in fixture("refused") {
        let text = text.as_str().unwrap();
        let error = Prompt::read(text, PromptStyle::A1111).unwrap_err().to_string();
        assert!(error.contains("expected a number, as in (word:1.3)"), "{text:?}: {error}");
        plain(text);
    }
    let endless = format!("{}a{}", "(".repeat(1000), ")".repeat(1000));
    let error = Prompt::read(&endless, PromptStyle::A1111).unwrap_err().to_string();
    assert_eq!(error, "the weights of \"a\" in the prompt multiply to infinity");
}

#[test]
fn what_only_a1111_does_is_named() {
    let warnings = |text: &str| a1111(text).warnings;
    for text in [
        "a cat",
        "ANDROID",
        "[a]",
        "[a:b]",
        "(a:1.3)",
        "a|b",
        r"\[a|b\]",
        "[(a|b)]",
        "(a:[b]:1.2)",
        "[a:nan]",
    ] {
        assert_eq!(warnings(text), [""; 0], "{text:?}");
    }
    for (text, construct) in [
        ("a cat AND a dog", "AND, "),
        ("[cat:dog:0.5]", "[from:to:when]"),
        ("a [dog: 10 ]", "[from:to:when]"),
        ("[cat::3][a|b", "[from:to:when]"),
        ("[(cat:1.2)|dog]", "[a|b]"),
        ("<hypernet:x:1>", "<hypernet:...>"),
    ] {
        let warnings = warnings(text);
        assert!(warnings[0].starts_with(construct), "{text:?}: {warnings:?}");
        assert!(warnings[0].ends_with("is not supported; it is read as text"), "{warnings:?}");
    }
    assert_eq!(warnings("[a|b] AND [c:2]").len(), 3);
    assert_eq!(plain("[a|b] AND [c:2]").warnings, [""; 0]);
}

#[test]
fn chunks_are_a1111s() {
    let tokenizer = Tokenizer::clip();
    for case in fixture("chunks") {
        let text = case["text"].as_str().unwrap();
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for chunk in case["chunks"].as_array().unwrap() {
            let full = ids.len() + 77;
            ids.push(tokenizer.start());
            ids.extend(chunk["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32));
            ids.resize(full, tokenizer.end());
            weights.push(1.0);
            for run in chunk["weights"].as_array().unwrap() {
                let run_length = run[1].as_u64().unwrap() as usize;
                weights.resize(weights.len() + run_length, number(&run[0]) as f32);
            }
            weights.resize(full, 1.0);
        }
        let expected = Chunks { ids, weights, length: 77, dropped: String::new() };
        assert_eq!(chunks(&a1111(text), LongPrompt::Chunk), expected, "{text:?}");
    }
}

#[test]
fn a_plain_prompt_is_cut_after_75_tokens() {
    let tokenizer = Tokenizer::clip();
    let text = "a small dog, ".repeat(40);
    let all: Vec<u32> = tokenizer.tokens(&text).unwrap().iter().map(|token| token.id).collect();
    let cut = chunks(&plain(&text), LongPrompt::Chunk);
    assert_eq!((cut.count(), cut.dropped.as_str()), (3, ""));
    for (ids, expected) in cut.ids.chunks(77).zip(all.chunks(75)) {
        assert_eq!(ids[1..=expected.len()], *expected);
        assert_eq!((ids[0], ids[expected.len() + 1]), (tokenizer.start(), tokenizer.end()));
    }
    assert!(cut.weights.iter().all(|&weight| weight == 1.0));
}

#[test]
fn what_is_truncated_is_named() {
    assert_eq!(dropped(&a1111(&format!("({}:1.2)[a fox]", "cat ".repeat(76)))), "cat a fox");
    assert_eq!(dropped(&a1111("a cat BREAK a (dog) BREAK a fox")), "a dog BREAK a fox");
    assert_eq!(dropped(&a1111("a cat BREAK")), "");
}

#[test]
fn the_end_is_where_a_pooled_output_is_taken() {
    let tokenizer = Tokenizer::clip();
    for (text, end) in [("", 1), ("a cat", 3), ("BREAK a cat", 1), (&*"cat ".repeat(75), 76)] {
        assert_eq!(chunks(&a1111(text), LongPrompt::Chunk).end(&tokenizer), end, "{text:?}");
    }
}

#[test]
fn the_shorter_of_two_prompts_gets_chunks_of_the_empty_one() {
    let tokenizer = Tokenizer::clip();
    let mut short = chunks(&a1111("(a cat:1.2)"), LongPrompt::Chunk);
    let (first, empty) = (short.clone(), chunks(&a1111(""), LongPrompt::Chunk));
    short.extend_to(3, &tokenizer);
    assert_eq!(short.ids, [first.ids, empty.ids.clone(), empty.ids].concat());
    assert_eq!(short.weights, [first.weights, empty.weights.clone(), empty.weights].concat());
    short.extend_to(2, &tokenizer);
    assert_eq!(short.count(), 3);
}

#[test]
fn lora_tags_are_taken_out() {
    let tag = |name: &str, text_encoder, unet| LoraTag { name: name.into(), text_encoder, unet };
    for (text, kept, tags) in [
        ("a cat", "a cat", vec![]),
        ("a <lora:fur:0.8>cat", "a cat", vec![tag("fur", 0.8, 0.8)]),
        ("<lora:fur>", "", vec![tag("fur", 1.0, 1.0)]),
        ("<lora:fur:0.8:0.5>", "", vec![tag("fur", 0.8, 0.5)]),
        ("<lora:fur:te=0.2:unet=-1>", "", vec![tag("fur", 0.2, -1.0)]),
        ("<lora:fur:0.5:unet=0>", "", vec![tag("fur", 0.5, 0.0)]),
        ("<lora:a b/c.d:1> x <lyco:e:2>", " x ", vec![tag("a b/c.d", 1.0, 1.0), tag("e", 2.0, 2.0)]),
        ("(<lora:\u{732b}:1>cat:1.2)", "(cat:1.2)", vec![tag("\u{732b}", 1.0, 1.0)]),
        ("<lora:> <lora:fur", "<lora:> <lora:fur", vec![]),
        ("a < b > c <3 <<lora:d>", "a < b > c <3 <", vec![tag("d", 1.0, 1.0)]),
    ] {
        assert_eq!(extract_loras(text).unwrap(), (kept.to_string(), tags), "{text:?}");
    }
    for text in
        ["<lora::1>", "<lora:a:strong>", "<lora:a:1:2:3>", "<lora:a:dyn=4>", "<lora:a:inf>", "<lora:a:>"]
    {
        let error = extract_loras(text).unwrap_err().to_string();
        assert!(error.starts_with(text) && error.contains("expected <lora:name>"), "{error}");
    }
}

/// Anything may be typed: characters that the grammar knows, words, and others.
#[test]
fn no_text_is_a_panic() {
    const PIECES: [&str; 25] = [
        "(",
        ")",
        "[",
        "]",
        "\\",
        ":",
        ":1.3)",
        ": .5 )",
        "BREAK",
        " BREAK ",
        "AND",
        "<lora:",
        "<",
        ">",
        "|",
        ",",
        " ",
        "\n",
        "cat",
        "\u{732b}",
        "\u{1f98a}",
        "e\u{301}",
        "\0",
        "\u{3000}",
        "<|endoftext|>",
    ];
    let tokenizer = Tokenizer::clip();
    let mut state = 1u64;
    let mut draw = |n: usize| {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..4000 {
        let text: String = (0..draw(40)).map(|_| PIECES[draw(PIECES.len())]).collect();
        let text = extract_loras(&text).map_or(text, |(kept, _)| kept);
        for style in [PromptStyle::Plain, PromptStyle::A1111] {
            let Ok(prompt) = Prompt::read(&text, style) else { continue };
            for long in [LongPrompt::Chunk, LongPrompt::Truncate] {
                let chunks = Chunks::new(&prompt, &tokenizer, &Inversions::default(), long).unwrap();
                assert_eq!(
                    (chunks.ids.len(), chunks.weights.len()),
                    (chunks.count() * 77, chunks.count() * 77)
                );
                assert!(long == LongPrompt::Chunk || chunks.count() == 1, "{text:?}");
            }
        }
    }
}
