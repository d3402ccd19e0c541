//! What a user writes to name a model of the hub.

use std::fmt;

use super::select::is_relative;

/// The branch that is meant where none is named.
const MAIN: &str = "main";
/// Letters in the name of an owner or of a model.
const LONGEST_NAME: usize = 96;
/// What ends the name of a file, and of no model.
const FILE_ENDINGS: [&str; 6] = [".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".git"];

/// `owner/name`, `owner/name@revision`, `owner/name:file.safetensors`, or both: `owner/name@revision:file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit; `main` where none was named.
    pub revision: String,
    /// The one file that is meant.
    pub file: Option<String>,
}

impl Id {
    /// `None` for what the hub would not allow as an id; that may be a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (text, file) = match text.split_once(':') {
            Some((text, file)) => (text, Some(file)),
            None => (text, None),
        };
        let (repository, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, name) = repository.split_once('/')?;
        let file_is_one = file.is_none_or(|file| is_relative(file) && file.ends_with(".safetensors"));
        if !is_name(owner) || !is_name(name) || !is_revision(revision) || !file_is_one {
            return None;
        }
        if FILE_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            return None;
        }
        Some(Id { repository: repository.into(), revision: revision.into(), file: file.map(String::from) })
    }

    /// The name without its owner, as pictures name their model.
    pub fn name(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.repository)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// huggingface_hub's `validate_repo_id`.
fn is_name(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=LONGEST_NAME).contains(&name.len())
        && name.chars().all(|c| is_word(c) || c == '-' || c == '.')
        && name.starts_with(is_word)
        && name.ends_with(is_word)
        && !name.contains("--")
        && !name.contains("..")
}

/// A part of a path in the cache and of an address: `main`, `v1.0`, `refs/pr/7`, a commit.
fn is_revision(revision: &str) -> bool {
    is_relative(revision) && revision.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for text in ["owner/name", "o/n.1_2-3", "owner/name@fp16", "a/b@refs/pr/7:unet/x.safetensors"] {
            assert_eq!(Id::parse(text).map(|id| id.to_string()).as_deref(), Some(text));
        }
        let id = Id::parse("owner/name@main").unwrap();
        assert_eq!((id.to_string(), id.name()), ("owner/name".to_string(), "name"));
        for path in [
            "name",
            "a/b/c",
            "/a",
            "a/",
            "./a",
            "../a",
            "~/a",
            "a/.b",
            "a/b c",
            "a/b--c",
            "a/b..c",
            "a/é",
            "a/b.safetensors",
            "a/b.ckpt",
            "a/b@",
            "a/b@../c",
            "a/b@/c",
            "a/b@c d",
            "a/b:",
            "a/b:c.ckpt",
            "a/b:../c.safetensors",
            "a/b:/c.safetensors",
            "C:/a/b",
            "a/b:c\\d.safetensors",
            "",
            "/",
            "a//b",
        ] {
            assert_eq!(Id::parse(path), None, "{path}");
        }
    }
}
