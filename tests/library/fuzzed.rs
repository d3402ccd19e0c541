//! What fuzzing has found or begun with (fuzz/corpus): no byte of a file or a prompt makes sdrt panic.

use std::fs;

use crate::common::{fuzzed, root};

fn all(target: &str, run: fn(&[u8])) {
    let folder = root().join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("a corpus") {
        let path = entry.expect("an entry").path();
        run(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        count += 1;
    }
    assert!(count >= 5, "{count} files in {}", folder.display());
}

#[test]
fn model_files() {
    all("model_file", fuzzed::model_file);
}

#[test]
fn embeddings() {
    all("embedding", fuzzed::embedding);
}

#[test]
fn loras() {
    all("lora", fuzzed::lora);
}

#[test]
fn prompts() {
    all("prompt", fuzzed::prompt);
}

#[test]
fn pictures() {
    all("picture", fuzzed::picture);
}
