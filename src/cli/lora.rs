//! LoRAs: the flags, and tags in prompts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use sdrt::error::{Error, Result};
use sdrt::image::UsedLora;
use sdrt::location::Location;
use sdrt::pipeline::LoraUse;
use sdrt::text::extract_loras;
use sdrt::weights::Lora;

use super::source::{ModelSource, recorded_path};
use crate::progress::Progress;

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct LoraArgs {
    #[arg(long = "lora", value_name = "FILE[:WEIGHT]")]
    loras: Vec<LoraFile>,
    #[arg(long, value_name = "DIR")]
    lora_dir: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct LoraFile {
    source: ModelSource,
    weight: f32,
}

/// `FILE` or `FILE:WEIGHT`; a file whose path ends like a weight is taken as it is.
impl FromStr for LoraFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let file = |file: &str, weight| LoraFile { source: ModelSource::of_path(file.into()), weight };
        let Some((before, after)) = text.rsplit_once(':').filter(|_| !Path::new(text).exists()) else {
            return Ok(file(text, 1.0));
        };
        match after.trim().parse::<f32>() {
            Ok(weight) if weight.is_finite() && !before.is_empty() => Ok(file(before, weight)),
            Err(_) if !Path::new(before).is_file() => Ok(file(text, 1.0)),
            _ => Err(Error::invalid(format!(
                "--lora {text}: expected FILE or FILE:WEIGHT with a number, such as {before}:0.8"
            ))),
        }
    }
}

/// The LoRAs of a run, each opened once.
pub struct Loras {
    /// Of every prompt.
    flags: Vec<LoraUse>,
    /// What pictures say of these.
    pub used: Vec<UsedLora>,
    folder: Option<Folder>,
    /// With their hashes.
    opened: HashMap<PathBuf, (Arc<Lora>, String)>,
}

/// What is left of a prompt without its tags, and the LoRAs it is painted with.
pub struct Tagged {
    pub text: String,
    pub loras: Vec<LoraUse>,
    /// Names and hashes of all of them.
    pub hashes: Vec<(String, String)>,
}

/// The files under `--lora-dir`.
struct Folder {
    path: PathBuf,
    /// Names, without `.safetensors`, and paths.
    files: Vec<(String, PathBuf)>,
}

impl LoraArgs {
    /// Opens those of the flags, downloaded if they have to be; where there are none, those that a picture was
    /// painted with.
    pub fn open(&self, recorded: Vec<UsedLora>, progress: Progress) -> anyhow::Result<Loras> {
        let folder = self.lora_dir.as_deref().map(Folder::read).transpose()?;
        let mut loras = Loras { flags: Vec::new(), used: Vec::new(), folder, opened: HashMap::new() };
        for LoraFile { source, weight } in &self.loras {
            loras.add(
                &source.locate(progress)?,
                UsedLora {
                    name: source.name(),
                    hash: None,
                    file: Some(source.recorded()),
                    text_encoder: *weight,
                    unet: *weight,
                },
            )?;
        }
        for used in recorded.into_iter().filter(|_| self.loras.is_empty()) {
            match used.file.as_deref().and_then(ModelSource::of_recorded) {
                Some(source) => loras.add(&source.locate(progress)?, used)?,
                None => {
                    let path = loras.find(&used)?.to_path_buf();
                    loras.add(
                        &Location::from(path.as_path()),
                        UsedLora { file: Some(recorded_path(&path)), ..used },
                    )?;
                }
            }
        }
        Ok(loras)
    }
}

impl Loras {
    fn add(&mut self, location: &Location, used: UsedLora) -> Result<()> {
        let lora = Arc::new(Lora::open(location)?);
        self.used.push(UsedLora { hash: Some(lora.hash()), ..used });
        self.flags.push(LoraUse { lora, text_encoder: used.text_encoder, unet: used.unet });
        Ok(())
    }

    /// Where `--lora-dir` has a LoRA of a picture.
    fn find(&self, used: &UsedLora) -> Result<&Path> {
        let UsedLora { name, file, .. } = used;
        let Some(folder) = &self.folder else {
            let there = file.as_ref().map(|file| format!(", and there is no {file}")).unwrap_or_default();
            return Err(Error::invalid(format!(
                "--from: the picture was painted with the LoRA {name}{there}; say with --lora-dir where its file \
                 is, or name the file with --lora"
            )));
        };
        folder.find(name).map_err(|what| Error::invalid(format!("--from: --lora-dir {what}")))
    }

    /// Takes the tags out of a prompt, and opens what they name.
    pub fn of_prompt(&mut self, prompt: &str) -> Result<Tagged> {
        let (text, tags) = extract_loras(prompt)?;
        let mut loras = self.flags.clone();
        let of_flags = self.used.iter().filter_map(|used| Some((used.name.clone(), used.hash.clone()?)));
        let mut hashes: Vec<_> = of_flags.collect();
        for tag in tags {
            let Some(folder) = &self.folder else {
                return Err(Error::invalid(format!(
                    "<lora:{}> in the prompt: say with --lora-dir where its file is, or name the file with \
                     --lora instead",
                    tag.name
                )));
            };
            let path = folder.find(&tag.name).map_err(|what| {
                Error::invalid(format!("<lora:{}> in the prompt: --lora-dir {what}", tag.name))
            })?;
            let (lora, hash) = match self.opened.get(path) {
                Some(opened) => opened.clone(),
                None => {
                    let lora = Arc::new(Lora::open(&Location::from(path))?);
                    let hash = lora.hash();
                    self.opened.entry(path.into()).or_insert((lora, hash)).clone()
                }
            };
            hashes.push((tag.name, hash));
            loras.push(LoraUse { lora, text_encoder: tag.text_encoder, unet: tag.unet });
        }
        Ok(Tagged { text, loras, hashes })
    }
}

impl Folder {
    fn read(path: &Path) -> Result<Self> {
        /// Folders in folders; a link may lead back up.
        const DEEPEST: usize = 8;
        let mut files = Vec::new();
        let mut folders = vec![(Location::from(path), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for name in folder.names()? {
                let inner = folder.join(&name);
                if inner.is_folder() && depth < DEEPEST {
                    folders.push((inner, depth + 1));
                } else if let Some(stem) = name.strip_suffix(".safetensors") {
                    files.push((stem.to_string(), PathBuf::from(&inner)));
                }
            }
        }
        files.sort();
        Ok(Folder { path: path.into(), files })
    }

    /// The file of a name, whatever its case. The error is what to say of the folder.
    fn find(&self, name: &str) -> Result<&Path, String> {
        let lower = name.to_lowercase();
        let mut found = self.files.iter().filter(|(stem, _)| stem.to_lowercase() == lower);
        let refuse = |what: String| format!("{} {what}", self.path.display());
        match (found.next(), found.next()) {
            (Some((_, path)), None) => Ok(path),
            (Some((_, one)), Some((_, other))) => {
                Err(refuse(format!("has {} and {}; rename one", one.display(), other.display())))
            }
            (None, _) => {
                let near = self.near(&lower);
                let near = if near.is_empty() { String::new() } else { format!("; near it are {near}") };
                Err(refuse(format!("has no {name}.safetensors{near}")))
            }
        }
    }

    /// The names that are most like one, the nearest first.
    fn near(&self, lower: &str) -> String {
        const NAMED: usize = 3;
        const ALIKE: f64 = 0.6;
        let alike = |stem: &str| {
            let stem = stem.to_lowercase();
            let within = stem.contains(lower) || lower.contains(&stem);
            strsim::jaro_winkler(&stem, lower).max(f64::from(u8::from(within)))
        };
        let mut near: Vec<(f64, &str)> =
            self.files.iter().map(|(stem, _)| (alike(stem), stem.as_str())).collect();
        near.retain(|(alike, _)| *alike > ALIKE);
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        near.iter().take(NAMED).map(|(_, stem)| *stem).collect::<Vec<_>>().join(", ")
    }
}
