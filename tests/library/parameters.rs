//! The table of parameters against what is written elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::root;

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The lines of a source file that may say something: no comments, no tests.
fn said(text: &str) -> impl Iterator<Item = &str> {
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    product.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn the_library_names_no_flags() {
    let source = root().join("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    assert!(files.len() > 100);
    for file in files {
        let path = file.strip_prefix(&source).unwrap();
        if path.starts_with("cli") || path == Path::new("main.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for line in said(&text) {
            let flag = line.match_indices("--").find(|(at, _)| {
                let before = line[..*at].chars().next_back();
                let after = line[at + 2..].chars().next();
                after.is_some_and(|c| c.is_ascii_lowercase()) && before.is_none_or(|c| " \"({`".contains(c))
            });
            assert!(flag.is_none(), "{}: {line}", path.display());
        }
    }
}
