//! From a prompt to token ids.

pub mod tokenizer;
pub mod vocabulary;

pub use tokenizer::{Encoding, Tokenizer};
pub use vocabulary::Vocabulary;
