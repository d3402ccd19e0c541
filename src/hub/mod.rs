//! Models by their ids on the hub: what is not in the cache yet is downloaded into it.
//!
//! The cache is that of Python's huggingface_hub, in both directions: a model that either has downloaded is
//! there for the other. A model that is complete in the cache is used without a word to the network.

mod cache;
mod client;
mod download;
mod id;
mod select;
mod settings;

use std::collections::{BTreeMap, BTreeSet};

pub use id::Id;
pub use settings::Settings;

use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;
use cache::{Cache, Cached};
use client::{Client, Listing};
use download::Downloads;

/// How far a download is.
pub struct Transfer<'a> {
    /// The file that arrives, as the repository names it.
    pub file: &'a str,
    /// Bytes that are there, with those of earlier attempts.
    pub done: u64,
    /// Bytes of all files that were missing.
    pub bytes: u64,
}

/// Called often while files arrive, and never where nothing is missing.
pub type OnTransfer<'a> = &'a mut dyn FnMut(&Transfer);

/// The folder of a model or of a component by itself, or the checkpoint where it is a single file.
pub fn fetch(id: &Id, on_transfer: OnTransfer) -> Result<Location> {
    fetch_with(&Settings::from_env()?, id, on_transfer)
}

/// [`fetch`] with settings other than those of the environment.
pub fn fetch_with(settings: &Settings, id: &Id, on_transfer: OnTransfer) -> Result<Location> {
    let cache = Cache::new(&settings.cache, id);
    let checkpoint = match cache.find(id) {
        Some(Cached::Model(location)) => return Ok(location),
        Some(Cached::Checkpoint(location)) => Some(location),
        None => None,
    };
    if settings.offline {
        return checkpoint.ok_or_else(|| {
            let cache = settings.cache.display();
            let message = format!(
                "not, or not all of it, in the cache ({cache}), and HF_HUB_OFFLINE forbids downloads; unset \
                 it, or give the path of a model's folder"
            );
            Error::hub(id, message)
        });
    }
    let client = Client::new(settings, id)?;
    let listing = match (client.list(), checkpoint) {
        (Ok(listing), _) => listing,
        (Err(failure), Some(checkpoint)) if failure.is_passing() => return Ok(checkpoint),
        (Err(failure), _) => return Err(client.explain(failure, None)),
    };
    let downloads = Downloads { id, cache: &cache, client: &client, commit: &listing.commit };
    let location = fetch_listed(&listing, &downloads, on_transfer)?;
    cache.note(&listing.commit)?;
    Ok(location)
}

fn fetch_listed(listing: &Listing, downloads: &Downloads, on_transfer: OnTransfer) -> Result<Location> {
    let Downloads { id, cache, commit, .. } = downloads;
    let refuse = |message: String| Error::hub(id, message);
    let snapshot = Location::from(cache.snapshot(commit));
    let names: BTreeSet<String> = listing.files.keys().cloned().collect();

    let component = select::component(&names);
    let single = match &id.file {
        Some(file) if !names.contains(file) => return Err(refuse(format!("the model has no file {file}"))),
        Some(file) => Some(file.clone()),
        None if names.contains(select::MODEL_INDEX) || component.is_some() => None,
        None => Some(select::checkpoint(&id.repository, &names).map_err(refuse)?),
    };
    if let Some(file) = single {
        fetch_all(listing, downloads, &[&file], on_transfer)?;
        return Ok(snapshot.join(&file));
    }

    // Texts of some kilobytes that say what else is needed: no news of them.
    let read = |name: &str| {
        fetch_all(listing, downloads, &[name], &mut |_| ())?;
        Object::read(&snapshot.join(name))
    };
    let selection = match component {
        Some(component) => component,
        None => select::select(&read(select::MODEL_INDEX)?, &names).map_err(refuse)?,
    };
    let mut files = selection.texts;
    files.extend(selection.weights);
    for index in &selection.indices {
        files.extend(select::shards(&read(index)?, index)?);
    }
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    fetch_all(listing, downloads, &files, on_transfer)?;
    Ok(snapshot)
}

/// Fetches files one after the other.
fn fetch_all(
    listing: &Listing,
    downloads: &Downloads,
    names: &[&str],
    on_transfer: OnTransfer,
) -> Result<()> {
    let mut missing = BTreeMap::new();
    for &name in names {
        let Some(file) = listing.files.get(name) else {
            return Err(Error::hub(downloads.id, format!("has no {name}, which its index names")));
        };
        missing.insert(name, (file, downloads.present(file)));
    }
    missing.retain(|_, (file, present)| *present < file.size);
    let bytes = missing.values().fold(0u64, |sum, (file, _)| sum.saturating_add(file.size));
    let mut present: u64 = missing.values().map(|(_, present)| present).sum();
    downloads.check_room(bytes - present)?;
    for name in names {
        let file = &listing.files[*name];
        let others = present - missing.get(name).map_or(0, |(_, present)| *present);
        downloads.fetch(name, file, &mut |length| {
            on_transfer(&Transfer { file: name, done: others + length, bytes });
        })?;
        if missing.contains_key(name) {
            present = others + file.size;
        }
    }
    Ok(())
}
