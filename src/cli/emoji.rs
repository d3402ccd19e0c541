//! The model that is part of `sdrt`: `models/emoji`.

use sdrt::columns;
use sdrt::location::{Location, MemoryFolder};
use sdrt::pipeline::{Model, ModelFiles};

/// How flags name it.
pub const NAME: &str = "emoji";

/// What it is, and what the license of its training data asks to be told.
const ABOUT: &str =
    "3D emoji of 256x256, learned from Fluent Emoji (Copyright (c) Microsoft Corporation, MIT license)";

macro_rules! files {
    ($($path:literal)*) => {
        &[$(($path, include_bytes!(concat!("../../models/emoji/", $path)))),*]
    };
}

static FOLDER: MemoryFolder = MemoryFolder {
    name: NAME,
    files: files![
        "model_index.json"
        "scheduler/scheduler_config.json"
        "text_encoder/config.json"
        "text_encoder/model.safetensors"
        "tokenizer/merges.txt"
        "tokenizer/special_tokens_map.json"
        "tokenizer/tokenizer_config.json"
        "tokenizer/vocab.json"
        "unet/config.json"
        "unet/diffusion_pytorch_model.safetensors"
        "vae/config.json"
        "vae/diffusion_pytorch_model.safetensors"
    ],
};

/// Where its files are.
pub fn location() -> Location {
    Location::from(&FOLDER)
}

/// What `sdrt info` says of it besides; nothing about other models.
pub fn about(model: &Model) -> Option<String> {
    let Model::Files(ModelFiles { location: Location::Memory { folder, .. }, .. }) = model else {
        return None;
    };
    Some(format!("{ABOUT}; {} inside sdrt", columns::bytes(folder.size())))
}
