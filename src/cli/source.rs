//! What `--model` names: the model inside sdrt, a path, or a model of the hub.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use clap::builder::{PathBufValueParser, TypedValueParser};
use sdrt::columns::bytes;
use sdrt::hub::{self, Id};
use sdrt::location::Location;

use super::{emoji, say};
use crate::progress::Progress;

/// A model as the user named it; nothing is known of it yet.
#[derive(Clone, Debug)]
pub enum ModelSource {
    Location(Location),
    Hub(Id),
}

/// Takes the name of the model inside sdrt, written exactly so, then the path of what exists, then the id of
/// a model of the hub; all else is the path of what does not exist.
pub fn parser() -> impl TypedValueParser<Value = ModelSource> {
    PathBufValueParser::new().map(|path: PathBuf| {
        if path.as_os_str() == emoji::NAME {
            return ModelSource::Location(emoji::location());
        }
        ModelSource::of_path(path)
    })
}

impl ModelSource {
    /// What exists, an id of the hub, or the path of what does not exist.
    pub fn of_path(path: PathBuf) -> Self {
        let id = path.to_str().filter(|_| !path.exists()).and_then(Id::parse);
        id.map_or_else(|| ModelSource::Location(path.into()), ModelSource::Hub)
    }

    /// Where its files are, once they are there.
    pub fn locate(&self, progress: Progress) -> Result<Location> {
        let id = match self {
            ModelSource::Location(location) => return Ok(location.clone()),
            ModelSource::Hub(id) => id,
        };
        let mut bar = None;
        let location = hub::fetch(id, &mut |transfer| {
            let bar = bar.get_or_insert_with(|| {
                if !progress.quiet {
                    say(&format!("downloading {id}, {}", bytes(transfer.bytes as usize)));
                }
                progress.downloading(transfer.bytes, transfer.done)
            });
            bar.set_message(transfer.file.to_string());
            bar.set_position(transfer.done);
        });
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(location?)
    }

    /// What a picture says of where it is.
    pub fn recorded(&self) -> String {
        match self {
            ModelSource::Location(Location::Disk(path)) => {
                let path = recorded_path(path);
                // Not to be taken for an id once the file has moved.
                if Id::parse(&path).is_some() { format!("./{path}") } else { path }
            }
            ModelSource::Location(location) => location.to_string(),
            ModelSource::Hub(id) => id.to_string(),
        }
    }

    /// What [`ModelSource::recorded`] says, if it is there or can be downloaded; nothing that it never says.
    pub fn of_recorded(text: &str) -> Option<Self> {
        match ModelSource::of_path(text.into()) {
            ModelSource::Location(Location::Disk(path))
                if !path.exists() || recorded_path(&path) != path.to_string_lossy() =>
            {
                None
            }
            source => Some(source),
        }
    }

    /// As pictures name their model: a file without its extension.
    pub fn name(&self) -> String {
        match self {
            ModelSource::Location(location) => {
                let name = location.name();
                name.strip_suffix(".safetensors").map_or(name.clone(), String::from)
            }
            ModelSource::Hub(id) => id.name().into(),
        }
    }
}

/// A path as pictures tell it: pictures are shown around, so that of what is not below the working directory they
/// tell the name alone.
pub fn recorded_path(path: &Path) -> String {
    let below = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    if !path.components().all(below) {
        return Location::from(path).name();
    }
    path.to_string_lossy().into_owned()
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ModelSource::Location(location) => location.fmt(f),
            ModelSource::Hub(id) => id.fmt(f),
        }
    }
}
