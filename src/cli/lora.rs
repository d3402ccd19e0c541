//! LoRAs: the flags, and tags in prompts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use sdrt::error::{Error, Result};
use sdrt::location::Location;
use sdrt::pipeline::LoraUse;
use sdrt::text::extract_loras;
use sdrt::weights::Lora;

use super::source::ModelSource;
use crate::progress::Progress;

#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct LoraArgs {
    /// A LoRA, a .safetensors file or owner/name:file of the hub, and how strong it is [default: 1]; may be
    /// given several times
    #[arg(long = "lora", value_name = "FILE[:WEIGHT]")]
    loras: Vec<LoraFile>,
    /// Where the LoRAs are that prompts name, as in <lora:name:0.8>: name.safetensors, or in a folder below
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
    folder: Option<Folder>,
    opened: HashMap<PathBuf, Arc<Lora>>,
}

/// What is left of a prompt without its tags, and the LoRAs it is painted with.
pub struct Tagged {
    pub text: String,
    pub loras: Vec<LoraUse>,
}

/// The files under `--lora-dir`.
struct Folder {
    path: PathBuf,
    /// Names, without `.safetensors`, and paths.
    files: Vec<(String, PathBuf)>,
}

impl LoraArgs {
    /// Opens those of the flags, downloaded if they have to be.
    pub fn open(&self, progress: Progress) -> anyhow::Result<Loras> {
        let mut flags = Vec::new();
        for LoraFile { source, weight } in &self.loras {
            flags.push(LoraUse::new(Arc::new(Lora::open(&source.locate(progress)?)?), *weight));
        }
        let folder = self.lora_dir.as_deref().map(Folder::read).transpose()?;
        Ok(Loras { flags, folder, opened: HashMap::new() })
    }
}

impl Loras {
    /// Takes the tags out of a prompt, and opens what they name.
    pub fn of_prompt(&mut self, prompt: &str) -> Result<Tagged> {
        let (text, tags) = extract_loras(prompt)?;
        let mut loras = self.flags.clone();
        for tag in tags {
            let Some(folder) = &self.folder else {
                return Err(Error::invalid(format!(
                    "<lora:{}> in the prompt: say with --lora-dir where its file is, or name the file with \
                     --lora instead",
                    tag.name
                )));
            };
            let path = folder.find(&tag.name)?;
            let lora = match self.opened.get(path) {
                Some(lora) => lora.clone(),
                None => {
                    let lora = Arc::new(Lora::open(&Location::from(path))?);
                    self.opened.entry(path.into()).or_insert(lora).clone()
                }
            };
            loras.push(LoraUse { lora, text_encoder: tag.text_encoder, unet: tag.unet });
        }
        Ok(Tagged { text, loras })
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

    /// The file of a name, whatever its case.
    fn find(&self, name: &str) -> Result<&Path> {
        let lower = name.to_lowercase();
        let mut found = self.files.iter().filter(|(stem, _)| stem.to_lowercase() == lower);
        let refuse = |what: String| {
            Error::invalid(format!("<lora:{name}> in the prompt: --lora-dir {} {what}", self.path.display()))
        };
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
