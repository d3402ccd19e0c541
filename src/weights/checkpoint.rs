//! Safetensors files of a model folder, looked up by key.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::Source;
use super::folder::ModelFolder;
use super::names;
use super::pack;
use super::plan::Request;
use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::{Bytes, Location};
use crate::ops::DType;

/// Components, and what their weight files are called.
const COMPONENTS: [(&str, &str); 3] =
    [("text_encoder", "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")];

/// Longest header that is read, as in the safetensors crate: a million tensors.
const LONGEST_HEADER: usize = 100_000_000;

/// The weights of a model folder.
///
/// Files on disk stay mapped: they must not be cut short while this lives.
pub struct Checkpoint {
    components: Vec<Component>,
}

struct Component {
    name: &'static str,
    /// The one file, or the index of several.
    file: Location,
    files: Vec<Shard>,
    /// By canonical key.
    tensors: HashMap<String, Stored>,
}

struct Shard {
    location: Location,
    bytes: Bytes,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As the file spells it.
    pub key: String,
    /// `F16`, `I64`, ...: what the file says, supported or not.
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    shard: usize,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens the weight files of all components and reads their headers.
    pub fn open(folder: &ModelFolder) -> Result<Self> {
        let components = COMPONENTS.iter().map(|&(name, base)| Component::open(&folder.location, name, base));
        Ok(Checkpoint { components: components.collect::<Result<_>>()? })
    }

    /// Every tensor with its component, in the order of components and keys.
    pub fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        let mut all: Vec<_> = self
            .components
            .iter()
            .flat_map(|component| component.tensors.values().map(|stored| (component.name, stored)))
            .collect();
        all.sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
        all
    }

    /// The files, in the order of components.
    pub fn files(&self) -> impl Iterator<Item = &Location> {
        self.components.iter().flat_map(|component| component.files.iter().map(|file| &file.location))
    }

    fn component(&self, name: &str) -> &Component {
        let found = self.components.iter().find(|component| component.name == name);
        found.unwrap_or_else(|| panic!("no component is called {name:?}"))
    }
}

impl Stored {
    /// Bytes in the file.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The dtype if it is one that weights can have.
    fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

impl Source for Checkpoint {
    fn check(&self, requests: &[Request]) -> Result<()> {
        requests.iter().try_for_each(|request| self.component(request.component).check(request))?;
        self.components.iter().try_for_each(|component| component.check_leftovers(requests))
    }

    fn fill(&self, request: &Request, rows: Range<usize>, out: &mut [u8]) {
        let component = self.component(request.component);
        pack::pack(request, rows, out, &|key, elements, out| {
            let key = &request.keys[key];
            let stored = component.find(key).unwrap_or_else(|| panic!("{key} was not checked"));
            let from = stored.float().unwrap_or_else(|| panic!("{key} was not checked"));
            let bytes = &component.files[stored.shard].bytes[stored.bytes.clone()];
            let bytes = &bytes[elements.start * from.size()..elements.end * from.size()];
            pack::convert(from, bytes, request.tensor.dtype, out);
        });
    }
}

impl Component {
    fn open(model: &Location, name: &'static str, base: &str) -> Result<Self> {
        let folder = model.join(name);
        let variants = [
            format!("{base}.safetensors"),
            format!("{base}.safetensors.index.json"),
            format!("{base}.fp16.safetensors"),
            format!("{base}.safetensors.index.fp16.json"),
            format!("{base}.fp16.safetensors.index.json"),
        ];
        let Some(file) = variants.iter().map(|file| folder.join(file)).find(Location::is_file) else {
            let pickled = folder.join(&format!("{base}.bin")).is_file();
            return Err(Error::file(
                &folder,
                if pickled {
                    format!(
                        "{base}.bin is a pickle, which sdrt does not read; save the model again with diffusers: \
                         save_pretrained(..., safe_serialization=True)"
                    )
                } else {
                    format!("no weights; expected {}, {} or {}", variants[0], variants[2], variants[1])
                },
            ));
        };
        let mut component = Component { name, file, files: Vec::new(), tensors: HashMap::new() };
        if component.file.name().ends_with(".json") {
            component.add_indexed(&folder)?;
        } else {
            component.add_file(component.file.clone())?;
        }
        Ok(component)
    }

    /// Adds the shards that the index, `self.file`, names.
    fn add_indexed(&mut self, folder: &Location) -> Result<()> {
        let index = Object::read(&self.file)?;
        let Some(weight_map) = index.get("weight_map").and_then(|map| map.as_object()) else {
            return Err(index.refuse("weight_map", "expected an object of keys and the files they are in"));
        };
        let mut shards = Vec::new();
        for (key, shard) in weight_map {
            let name = shard.as_str().unwrap_or_default();
            if Path::new(name).file_name().is_none_or(|file| file != name) {
                let message = format!("weight_map gives {shard} as its file; expected a file name");
                return Err(Error::tensor(&self.file, key, message));
            }
            shards.push(name);
        }
        shards.sort();
        shards.dedup();
        for shard in shards {
            let file = folder.join(shard);
            if !file.is_file() {
                let message = format!("missing, and {} names it; download the model again", self.file.name());
                return Err(Error::file(&file, message));
            }
            self.add_file(file)?;
        }
        for (key, shard) in weight_map {
            let canonical = names::canonical(self.name, key);
            let found = self.tensors.get(&*canonical).map(|stored| self.files[stored.shard].location.name());
            if found.is_none_or(|name| Some(&*name) != shard.as_str()) {
                return Err(Error::tensor(
                    &self.file,
                    key,
                    format!("is not in {shard}, where weight_map says it is; download the model again"),
                ));
            }
        }
        Ok(())
    }

    fn add_file(&mut self, location: Location) -> Result<()> {
        let bytes = location.read()?;
        let (header, start) = read_header(&bytes).map_err(|message| Error::file(&location, message))?;
        for key in header.offset_keys() {
            let info = header.info(&key).expect("a key of this header");
            let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
            let canonical = names::canonical(self.name, &key).into_owned();
            let stored =
                Stored { key, dtype: info.dtype, shape: info.shape.clone(), shard: self.files.len(), bytes };
            match self.tensors.entry(canonical) {
                Entry::Vacant(entry) => {
                    entry.insert(stored);
                }
                Entry::Occupied(entry) => {
                    let message = format!("means the same tensor as {}, which is there too", entry.get().key);
                    return Err(Error::tensor(&location, stored.key, message));
                }
            }
        }
        self.files.push(Shard { location, bytes });
        Ok(())
    }

    fn find(&self, key: &str) -> Option<&Stored> {
        self.tensors.get(&*names::canonical(self.name, key))
    }

    fn check(&self, request: &Request) -> Result<()> {
        for key in &request.keys {
            let Some(stored) = self.find(key) else {
                let message = format!("missing; {}/config.json describes a model that has it", self.name);
                return Err(Error::tensor(&self.file, key, message));
            };
            let file = &self.files[stored.shard].location;
            if stored.float().is_none() {
                let message = format!("its dtype is {:?}; expected F32, F16 or BF16", stored.dtype);
                return Err(Error::tensor(file, &stored.key, message));
            }
            if without_1x1(&stored.shape) != without_1x1(&request.shape) {
                let message = format!(
                    "its shape is {:?}; expected {:?}, by {}/config.json",
                    stored.shape, request.shape, self.name
                );
                return Err(Error::tensor(file, &stored.key, message));
            }
        }
        Ok(())
    }

    /// Refuses tensors that no request names. A component without requests is not in use.
    fn check_leftovers(&self, requests: &[Request]) -> Result<()> {
        let named: HashSet<_> = requests
            .iter()
            .filter(|request| request.component == self.name)
            .flat_map(|request| request.keys.iter().map(|key| names::canonical(self.name, key)))
            .collect();
        if named.is_empty() {
            return Ok(());
        }
        let mut leftovers: Vec<_> = self
            .tensors
            .iter()
            .filter(|(key, _)| !named.contains(key.as_str()) && !names::is_ignored(self.name, key))
            .map(|(_, stored)| stored)
            .collect();
        leftovers.sort_by(|a, b| a.key.cmp(&b.key));
        let Some(first) = leftovers.first() else { return Ok(()) };
        let others = match leftovers.len() - 1 {
            0 => String::new(),
            others => format!(" (and {others} more)"),
        };
        let message = format!("unexpected{others}; {}/config.json describes a model without it", self.name);
        Err(Error::tensor(&self.files[first.shard].location, &first.key, message))
    }
}

/// Old checkpoints keep some linear layers as 1x1 convs, and the numbers lie the same.
fn without_1x1(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        _ => shape,
    }
}

/// The header of a safetensors file, and where the bytes after it start. The error is the rest of a
/// sentence about the file.
fn read_header(file: &[u8]) -> Result<(Metadata, usize), String> {
    const AGAIN: &str = "download the model again";
    if file.is_empty() {
        return Err(format!("the file is empty; {AGAIN}"));
    }
    if file.starts_with(b"version https://git-lfs") {
        return Err("a Git LFS pointer instead of the weights; run `git lfs pull` in the model folder".into());
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are too few for a safetensors file; {AGAIN}", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    let Some(header) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
        return Err(format!(
            "its header would be {length} bytes long, the whole file has {}: it was cut short, or is no \
             safetensors file; {AGAIN}",
            file.len()
        ));
    };
    if header.len() > LONGEST_HEADER {
        return Err(format!(
            "its header of {length} bytes is longer than a safetensors file may have; {AGAIN}"
        ));
    }
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| format!("its header is malformed ({error}); {AGAIN}"))?;
    let (expected, found) = (metadata.data_len(), rest.len() - header.len());
    if expected != found {
        let what = if found < expected { "it was cut short" } else { "something was added" };
        return Err(format!(
            "its header tells of {expected} bytes of tensors, there are {found}: {what}; {AGAIN}"
        ));
    }
    Ok((metadata, 8 + header.len()))
}
