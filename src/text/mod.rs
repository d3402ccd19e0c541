//! From a prompt to token ids.
//!
//! ```text
//! text -> [lora_tag: <lora:...> taken out] -> prompt (weights, BREAK) -> chunks (ids, weights)
//! ```
//! [`Chunks`] asks the [`Tokenizer`] for the ids of words, and [`Inversions`] for those of embeddings.

pub mod chunks;
pub mod inversion;
pub mod lora_tag;
pub mod prompt;
pub mod tokenizer;
mod unsupported;
pub mod vocabulary;

pub use chunks::{Chunks, LongPrompt};
pub use inversion::{Embedding, Inversions};
pub use lora_tag::{LoraTag, extract_loras};
pub use prompt::{Part, Prompt, PromptStyle};
pub use tokenizer::{Token, Tokenizer};
pub use vocabulary::Vocabulary;
