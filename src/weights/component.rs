//! The tensors of one component of a model, wherever they are: in a file, in shards, in a part of a file.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::Dtype;

use super::header::read_header;
use super::names;
use super::pack;
use super::plan::Request;
use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::{Bytes, Location};
use crate::ops::DType;

/// Components, and what their weight files are called.
pub const COMPONENTS: [(&str, &str); 4] = [
    ("text_encoder", "model"),
    ("text_encoder_2", "model"),
    ("unet", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
];

pub struct Component {
    pub name: &'static str,
    /// The one file, or the index of several.
    pub file: Location,
    /// What says which tensors there are, as in "unet/config.json".
    described_by: String,
    pub files: Vec<Shard>,
    /// By canonical key.
    tensors: HashMap<String, Stored>,
}

/// A file that is open.
#[derive(Clone)]
pub struct Shard {
    pub location: Location,
    bytes: Arc<Bytes>,
    header_end: usize,
    /// `__metadata__` of the header.
    metadata: Arc<HashMap<String, String>>,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As the file spells it.
    pub key: String,
    /// `F16`, `I64`, ...: what the file says, supported or not.
    pub dtype: Dtype,
    /// Of the part that is meant.
    pub shape: Vec<usize>,
    shard: usize,
    /// Of the part, or of the whole matrix that is read transposed.
    bytes: Range<usize>,
    transposed: bool,
}

/// What of the stored tensor is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The rows of a third, counted from 0: OpenCLIP keeps q, k and v in one.
    Third(usize),
    /// The matrix with rows and columns exchanged.
    Transposed,
}

impl Stored {
    /// Bytes in the file.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The part of a tensor; `None` if its shape has no such part.
    pub fn part(self, part: Part) -> Option<Self> {
        match (part, &self.shape[..]) {
            (Part::Whole, _) => Some(self),
            (Part::Third(third), &[n, ..]) if n.is_multiple_of(3) => {
                let mut shape = self.shape.clone();
                shape[0] = n / 3;
                let size = self.bytes.len() / 3;
                let start = self.bytes.start + third * size;
                Some(Stored { shape, bytes: start..start + size, ..self })
            }
            (Part::Transposed, &[n, k]) => Some(Stored { shape: vec![k, n], transposed: true, ..self }),
            _ => None,
        }
    }

    /// The dtype if it is one that weights can have.
    pub fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }
}

impl Shard {
    /// Opens a file and reads its header: the tensors as if they were the only shard's.
    pub fn open(location: &Location) -> Result<(Self, Vec<Stored>)> {
        let bytes = location.read()?;
        let (header, start) = read_header(&bytes).map_err(|message| Error::file(location, message))?;
        let stored = |key: String| {
            let info = header.info(&key).expect("a key of this header");
            let (first, end) = info.data_offsets;
            let bytes = start + first..start + end;
            Stored { key, dtype: info.dtype, shape: info.shape.clone(), shard: 0, bytes, transposed: false }
        };
        let tensors = header.offset_keys().into_iter().map(stored).collect();
        let metadata = Arc::new(header.metadata().clone().unwrap_or_default());
        let shard = Shard { location: location.clone(), bytes: Arc::new(bytes), header_end: start, metadata };
        Ok((shard, tensors))
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the header ends.
    pub fn header_end(&self) -> usize {
        self.header_end
    }

    /// What the header's metadata says under a key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The elements of a whole tensor of this file.
    ///
    /// # Panics
    /// When [`Stored::float`] is none, or the tensor is a part of one.
    pub fn to_f32(&self, stored: &Stored) -> Vec<f32> {
        /// Elements that one task converts.
        const TASK: usize = 1 << 16;
        let from = stored.float().unwrap_or_else(|| panic!("{stored:?} is not a float"));
        let elements = stored.shape.iter().product::<usize>();
        assert!(!stored.transposed && elements * from.size() == stored.bytes.len(), "{stored:?} is a part");
        let mut floats = vec![0f32; elements];
        let parts = self.bytes[stored.bytes.clone()].par_chunks(TASK * from.size());
        floats.par_chunks_mut(TASK).zip(parts).for_each(|(floats, stored)| {
            pack::convert(from, stored, 1.0, DType::F32, bytemuck::cast_slice_mut(floats));
        });
        floats
    }

    /// The one element of a tensor, whatever kind of number it is.
    pub fn scalar(&self, stored: &Stored) -> Option<f64> {
        let bytes = &self.bytes[stored.bytes.clone()];
        match stored.dtype {
            _ if stored.shape.iter().product::<usize>() != 1 => None,
            Dtype::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?)),
            Dtype::I64 => Some(i64::from_le_bytes(bytes.try_into().ok()?) as f64),
            Dtype::I32 => Some(f64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
            _ => stored.float().map(|_| f64::from(self.to_f32(stored)[0])),
        }
    }
}

impl Component {
    /// A component without tensors.
    pub fn new(name: &'static str, file: Location, described_by: String) -> Self {
        Component { name, file, described_by, files: Vec::new(), tensors: HashMap::new() }
    }

    /// Opens the weights `base` of a component's folder, which has a `config.json`.
    pub fn in_folder(folder: &Location, name: &'static str, base: &str) -> Result<Self> {
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
                folder,
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
        let mut component = Component::new(name, file, format!("{}/config.json", folder.name()));
        if component.file.name().ends_with(".json") {
            component.add_indexed(folder)?;
        } else {
            component.add_file(&component.file.clone())?;
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
            self.add_file(&file)?;
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

    /// Adds all tensors of a file under their own keys.
    fn add_file(&mut self, location: &Location) -> Result<()> {
        let (shard, tensors) = Shard::open(location)?;
        self.files.push(shard);
        for stored in tensors {
            let key = stored.key.clone();
            self.add(&key, stored)?;
        }
        Ok(())
    }

    /// Adds a tensor of the last file under a key of diffusers or transformers.
    pub fn add(&mut self, key: &str, stored: Stored) -> Result<()> {
        let shard = self.files.len() - 1;
        match self.tensors.entry(names::canonical(self.name, key).into_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(Stored { shard, ..stored });
                Ok(())
            }
            Entry::Occupied(entry) => {
                let message = format!("means the same tensor as {}, which is there too", entry.get().key);
                Err(Error::tensor(&self.files[shard].location, stored.key, message))
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    pub fn stored(&self) -> impl Iterator<Item = &Stored> {
        self.tensors.values()
    }

    /// The shape of every tensor by canonical key.
    pub fn shapes(&self) -> BTreeMap<&str, &[usize]> {
        self.tensors.iter().map(|(key, stored)| (key.as_str(), &stored.shape[..])).collect()
    }

    /// Reads elements of a checked tensor, times `factor`, as `to`.
    pub fn read(&self, key: &str, elements: Range<usize>, factor: f32, to: DType, out: &mut [u8]) {
        let stored = self.find(key).unwrap_or_else(|| panic!("{key} was not checked"));
        let from = stored.float().unwrap_or_else(|| panic!("{key} was not checked"));
        let bytes = &self.files[stored.shard].bytes[stored.bytes.clone()];
        if !stored.transposed {
            let bytes = &bytes[elements.start * from.size()..elements.end * from.size()];
            return pack::convert(from, bytes, factor, to, out);
        }
        let (rows, columns) = (stored.shape[0], stored.shape[1]);
        for (element, out) in elements.zip(out.chunks_exact_mut(to.size())) {
            let start = (element % columns * rows + element / columns) * from.size();
            pack::convert(from, &bytes[start..start + from.size()], factor, to, out);
        }
    }

    pub fn find(&self, key: &str) -> Option<&Stored> {
        self.tensors.get(&*names::canonical(self.name, key))
    }

    pub fn check(&self, request: &Request) -> Result<()> {
        for key in &request.keys {
            let Some(stored) = self.find(key) else {
                let message = format!("missing; {} describes a model that has it", self.described_by);
                return Err(Error::tensor(&self.file, key, message));
            };
            let file = &self.files[stored.shard].location;
            if stored.float().is_none() {
                let message = format!("its dtype is {:?}; expected F32, F16 or BF16", stored.dtype);
                return Err(Error::tensor(file, &stored.key, message));
            }
            if without_1x1(&stored.shape) != without_1x1(&request.shape) {
                let message = format!(
                    "its shape is {:?}; expected {:?}, by {}",
                    stored.shape, request.shape, self.described_by
                );
                return Err(Error::tensor(file, &stored.key, message));
            }
        }
        Ok(())
    }

    /// Refuses tensors that no request names. A component without requests is not in use.
    pub fn check_leftovers(&self, requests: &[Request]) -> Result<()> {
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
        let message = format!("unexpected{others}; {} describes a model without it", self.described_by);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file of one tensor called `w` with the numbers 0, 1, 2, ...
    fn component(shape: &[usize], part: Part) -> (tempfile::TempDir, Component) {
        let numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&numbers);
        let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
        let location = Location::from(path);
        let (shard, mut tensors) = Shard::open(&location).unwrap();
        let mut component = Component::new("text_encoder", location, "nothing".into());
        component.files.push(shard);
        component.add("w", tensors.remove(0).part(part).unwrap()).unwrap();
        (folder, component)
    }

    fn read(component: &Component, elements: Range<usize>) -> Vec<f32> {
        let mut out = vec![0f32; elements.len()];
        component.read("w", elements, 2.0, DType::F32, bytemuck::cast_slice_mut(&mut out));
        out.iter().map(|x| x / 2.0).collect()
    }

    #[test]
    fn a_third_is_a_third_of_the_rows() {
        let (_folder, component) = component(&[6, 2], Part::Third(1));
        assert_eq!(component.find("w").unwrap().shape, [2, 2]);
        assert_eq!(read(&component, 0..4), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(read(&component, 1..3), [5.0, 6.0]);
    }

    #[test]
    fn a_transposed_matrix_is_read_column_by_column() {
        let (_folder, component) = component(&[2, 3], Part::Transposed);
        assert_eq!(component.find("w").unwrap().shape, [3, 2]);
        assert_eq!(read(&component, 0..6), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(read(&component, 3..5), [4.0, 2.0]);
    }
}
