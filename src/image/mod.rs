//! Pictures as files that say how they were painted, and what such files ask for; pictures in a terminal.
//!
//! ```text
//! Request, Origin -> Parameters -> text -> Format::encode -> files::write
//! Recorded        <- Parameters <- text <- read_text      <- a file's bytes
//! ```

pub mod a1111_names;
mod civitai;
mod controlnet;
mod exif;
mod files;
mod format;
mod lora;
mod origin;
mod parameters;
mod png_text;
mod read;
mod recorded;
pub mod terminal;

pub use controlnet::{UsedControlNet, image_hash};
pub use files::{check_writable, numbered, write};
pub use format::Format;
pub use lora::UsedLora;
pub use origin::Origin;
pub use parameters::Parameters;
pub use read::{read, read_text};
pub use recorded::Recorded;
