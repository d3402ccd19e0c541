//! Where a model's files are: in a folder on disk, or in the memory of the program.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// No text file of a model is near this size; a larger one is some other file.
const LARGEST_TEXT: usize = 64 << 20;

/// A file or a folder of a model, there or not.
///
/// Errors name it by its path, or as `emoji:unet/config.json`.
#[derive(Clone, Debug)]
pub enum Location {
    Disk(PathBuf),
    Memory {
        folder: &'static MemoryFolder,
        /// From the folder on, `/` between the names; empty for the folder itself.
        path: String,
    },
}

/// A folder that is part of the program.
#[derive(Debug)]
pub struct MemoryFolder {
    /// The only name of the model, and how errors begin.
    pub name: &'static str,
    /// Bytes by path, `/` between the names. They need no alignment.
    pub files: &'static [(&'static str, &'static [u8])],
}

/// What stands at a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
}

/// The bytes of a file.
///
/// Those of a file on disk are mapped: it must not be cut short while this lives.
pub enum Bytes {
    Mapped(Mmap),
    Memory(&'static [u8]),
}

impl Location {
    pub fn join(&self, name: &str) -> Self {
        match self {
            Location::Disk(path) => Location::Disk(path.join(name)),
            Location::Memory { folder, path } if path.is_empty() => {
                Location::Memory { folder, path: name.into() }
            }
            Location::Memory { folder, path } => Location::Memory { folder, path: format!("{path}/{name}") },
        }
    }

    /// Its own name, also where the path is `.` or ends in `..`.
    pub fn name(&self) -> String {
        match self {
            Location::Disk(path) => {
                let whole = if path.file_name().is_none() { path.canonicalize().ok() } else { None };
                let path = whole.as_ref().unwrap_or(path);
                path.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
            Location::Memory { folder, path } if path.is_empty() => folder.name.into(),
            Location::Memory { path, .. } => path.rsplit('/').next().unwrap_or_default().into(),
        }
    }

    pub fn kind(&self) -> io::Result<Kind> {
        match self {
            Location::Disk(path) => Ok(if fs::metadata(path)?.is_dir() { Kind::Folder } else { Kind::File }),
            Location::Memory { .. } if self.bytes_in_memory().is_some() => Ok(Kind::File),
            Location::Memory { .. } if self.names_in_memory().next().is_some() => Ok(Kind::Folder),
            Location::Memory { .. } => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub fn is_file(&self) -> bool {
        self.kind().is_ok_and(|kind| kind == Kind::File)
    }

    pub fn is_folder(&self) -> bool {
        self.kind().is_ok_and(|kind| kind == Kind::Folder)
    }

    /// The names of what a folder holds.
    pub fn names(&self) -> Result<Vec<String>> {
        match self {
            Location::Disk(path) => {
                let names = || -> io::Result<Vec<String>> {
                    let name = |entry: io::Result<fs::DirEntry>| {
                        Ok(entry?.file_name().to_string_lossy().into_owned())
                    };
                    fs::read_dir(path)?.map(name).collect()
                };
                names().map_err(|error| self.cannot_read(error))
            }
            Location::Memory { .. } => {
                let names: BTreeSet<&str> = self.names_in_memory().collect();
                Ok(names.into_iter().map(String::from).collect())
            }
        }
    }

    pub fn read(&self) -> Result<Bytes> {
        match self {
            Location::Disk(path) => {
                let map = || -> io::Result<Mmap> {
                    let file = File::open(path)?;
                    // SAFETY: the map is only read; that nobody cuts the file short is required of the user.
                    unsafe { Mmap::map(&file) }
                };
                Ok(Bytes::Mapped(map().map_err(|error| self.cannot_read(error))?))
            }
            Location::Memory { .. } => match self.bytes_in_memory() {
                Some(bytes) => Ok(Bytes::Memory(bytes)),
                None => Err(self.cannot_read(io::ErrorKind::NotFound.into())),
            },
        }
    }

    pub fn read_text(&self) -> Result<String> {
        let bytes = match self {
            // A copy: nothing on disk may change under a `str`.
            Location::Disk(path) => {
                let size = fs::metadata(path).map_err(|error| self.cannot_read(error))?.len();
                if size > LARGEST_TEXT as u64 {
                    return Err(Error::file(
                        self,
                        format!("{size} bytes are too many for a file of its name"),
                    ));
                }
                fs::read(path).map_err(|error| self.cannot_read(error))?
            }
            Location::Memory { .. } => self.read()?.to_vec(),
        };
        String::from_utf8(bytes).map_err(|_| Error::file(self, "not text in UTF-8"))
    }

    pub fn cannot_read(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::NotFound => Error::file(self, "no such file"),
            _ => Error::file(self, format!("cannot be read: {error}")),
        }
    }

    fn bytes_in_memory(&self) -> Option<&'static [u8]> {
        let Location::Memory { folder, path } = self else { return None };
        folder.files.iter().find(|(name, _)| name == path).map(|&(_, bytes)| bytes)
    }

    /// The names of what a folder in memory holds, one for each file below it.
    fn names_in_memory(&self) -> impl Iterator<Item = &'static str> {
        let (files, folder): (&[_], &str) = match self {
            Location::Disk(_) => (&[], ""),
            Location::Memory { folder, path } => (folder.files, path),
        };
        files.iter().filter_map(move |(path, _)| {
            let below =
                if folder.is_empty() { path } else { path.strip_prefix(folder)?.strip_prefix('/')? };
            below.split('/').next()
        })
    }
}

impl MemoryFolder {
    /// Bytes of all files.
    pub fn size(&self) -> usize {
        self.files.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Location::Disk(path)
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Location::Disk(path.into())
    }
}

impl From<&'static MemoryFolder> for Location {
    fn from(folder: &'static MemoryFolder) -> Self {
        Location::Memory { folder, path: String::new() }
    }
}

/// As errors name it.
impl From<&Location> for PathBuf {
    fn from(location: &Location) -> Self {
        match location {
            Location::Disk(path) => path.clone(),
            Location::Memory { .. } => location.to_string().into(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Location::Disk(path) => path.display().fmt(f),
            Location::Memory { folder, path } if path.is_empty() => f.write_str(folder.name),
            Location::Memory { folder, path } => write!(f, "{}:{path}", folder.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{DType, Tensor};
    use crate::pipeline::ModelFiles;
    use crate::weights::{Checkpoint, ModelFolder, Packing, Request, Source};

    const INDEX: &[u8] = br#"{"_class_name": "StableDiffusionPipeline"}"#;
    const CONFIGS: [&str; 4] = [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ];
    const WEIGHTS: [&str; 3] = [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ];

    /// A safetensors file with three halves called `w`, at an odd address.
    fn weights() -> &'static [u8] {
        let header = r#"{"w": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend([1.0, 2.0, 3.0].map(|x| half::f16::from_f32(x).to_le_bytes()).as_flattened());
        let room = vec![0; file.len() + 1].leak();
        let start = 1 - room.as_ptr().addr() % 2;
        let odd = &mut room[start..][..file.len()];
        odd.copy_from_slice(&file);
        odd
    }

    /// A model in memory. `changed` has these bytes instead of its own; without any, it is not there.
    fn model(changed: &'static str, bytes: Option<&'static [u8]>) -> Location {
        let mut files: Vec<(&'static str, &'static [u8])> = vec![("model_index.json", INDEX)];
        files.extend(CONFIGS.map(|path| (path, &b"{}"[..])));
        files.extend(WEIGHTS.map(|path| (path, weights())));
        files.retain(|(path, _)| *path != changed);
        files.extend(bytes.map(|bytes| (changed, bytes)));
        Location::from(&*Box::leak(Box::new(MemoryFolder { name: "toy", files: files.leak() })))
    }

    #[track_caller]
    fn assert_refused<T>(result: Result<T>, sentence: &str) {
        let error = result.err().expect("refused").to_string();
        assert!(error.starts_with(sentence), "{error:?}, not {sentence:?}");
    }

    #[test]
    fn files_in_memory_are_found_by_their_paths() {
        let model = model("", None);
        assert_eq!((model.to_string(), model.name()), ("toy".to_string(), "toy".to_string()));
        let names = ["model_index.json", "scheduler", "text_encoder", "unet", "vae"];
        assert_eq!(model.names().unwrap(), names);
        assert!(model.is_folder() && model.join("unet").is_folder() && !model.join("une").is_folder());
        let file = model.join("unet").join("config.json");
        assert_eq!((file.to_string(), file.name()), ("toy:unet/config.json".into(), "config.json".into()));
        assert!(file.is_file() && file.read_text().unwrap() == "{}");
        assert_refused(model.join("unet/a.json").read(), "toy:unet/a.json: no such file");
        assert_refused(model.join("unet").read_text(), "toy:unet: no such file");
    }

    #[test]
    fn a_model_in_memory_opens_and_reads_at_any_address() {
        let folder = ModelFolder::open(&model("", None)).unwrap();
        assert!(folder.tokenizer("tokenizer").is_none());
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let requests = ["unet", "vae", "text_encoder"].map(|component| Request {
            component,
            keys: vec!["w".into()],
            shape: vec![3],
            packing: Packing::Rows,
            factor: 1.0,
            tensor: Tensor::new(0, [1, 1, 1, 3], DType::F32),
        });
        checkpoint.check(&requests).unwrap();
        let mut read = [0f32; 3];
        checkpoint.fill(&requests[0], 0..1, bytemuck::cast_slice_mut(&mut read));
        assert_eq!(read, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn what_is_wrong_in_memory_is_named() {
        type Bytes = Option<&'static [u8]>;
        let open = |file, bytes: Bytes| ModelFolder::open(&model(file, bytes));
        assert_refused(open("model_index.json", None), "toy: has no model_index.json");
        assert_refused(open("model_index.json", Some(b"{")), "toy:model_index.json: not valid JSON");
        assert_refused(open("vae/config.json", None), "toy: vae/config.json is missing");

        let describe = |file, bytes: Bytes| ModelFiles::from(model(file, bytes)).describe();
        let config = br#"{"sample_size": "large"}"#;
        let sentence = "toy:unet/config.json: sample_size is \"large\"; expected";
        assert_refused(describe("unet/config.json", Some(config)), sentence);
        assert_refused(describe("vae/config.json", Some(b"\xff")), "toy:vae/config.json: not text");

        let load = |file, bytes: Bytes| Checkpoint::open(&open(file, bytes)?);
        assert_refused(load(WEIGHTS[0], None), "toy:unet: no weights");
        let short = &weights()[..weights().len() - 1];
        let sentence = format!("toy:{}: its header tells of 6 bytes of tensors, there are 5", WEIGHTS[0]);
        assert_refused(load(WEIGHTS[0], Some(short)), &sentence);
    }

    #[test]
    fn a_folder_on_disk_has_the_name_that_it_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a model");
        fs::create_dir_all(path.join("unet")).unwrap();
        for same in [path.clone(), path.join("unet/.."), path.join(".")] {
            assert_eq!(Location::from(same).name(), "a model");
        }
    }
}
