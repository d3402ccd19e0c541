//! Previews as files.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;
use sdrt::error::{Error, Result};
use sdrt::image::{self, Format, Origin};
use sdrt::location::Location;
use sdrt::pipeline::{Description, OnPreview, Picture, PreviewMethod, Previews, Request};

use super::source::{self, ModelSource};
use crate::progress::Progress;

#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct PreviewArgs {
    #[arg(long, value_name = "N")]
    preview: Option<NonZeroUsize>,
    #[arg(long, value_name = "FILE", requires = "preview")]
    preview_path: Option<PathBuf>,
    #[arg(long, value_name = "NAME", requires = "preview")]
    preview_method: Option<PreviewMethod>,
    #[arg(
        long,
        value_name = "MODEL",
        requires = "preview",
        conflicts_with = "preview_method",
        value_parser = source::parser()
    )]
    preview_vae: Option<ModelSource>,
}

/// Where the previews of a request go, and how they are made.
pub struct PreviewFiles {
    every: usize,
    method: PreviewMethod,
    paths: Vec<PathBuf>,
}

impl PreviewArgs {
    /// Where the VAE for previews is, downloaded if it has to be.
    pub fn locate_vae(&self, progress: Progress) -> anyhow::Result<Option<Location>> {
        self.preview_vae.as_ref().map(|vae| vae.locate(progress)).transpose()
    }

    /// The files of so many previews beside those of `pictures`; `None` if nobody asks for previews. Checks that they
    /// can be made and written, and leaves everything as it was.
    pub fn files(
        &self,
        output: &Path,
        pictures: &[PathBuf],
        images: usize,
        model: &Description,
    ) -> Result<Option<PreviewFiles>> {
        let Some(every) = self.preview else { return Ok(None) };
        let method = self.preview_method.unwrap_or(PreviewMethod::default_of(model));
        method.check(model)?;
        let path = self.preview_path.clone().unwrap_or_else(|| beside(output));
        if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
            return Err(Error::invalid(format!(
                "--preview-path {}: previews are written as PNG; try {}",
                path.display(),
                path.with_extension("png").display()
            )));
        }
        let paths: Vec<PathBuf> = (0..images).map(|i| image::numbered(&path, i, images)).collect();
        if let Some(taken) = paths.iter().find(|path| pictures.contains(path)) {
            return Err(Error::invalid(format!(
                "--preview-path {}: a picture goes to {}; name another file",
                path.display(),
                taken.display()
            )));
        }
        paths.iter().try_for_each(|path| image::check_writable(path))?;
        Ok(Some(PreviewFiles { every: every.get(), method, paths }))
    }
}

/// `name-preview.png` for `name.png`.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.file_stem().unwrap_or_default().to_os_string();
    name.push("-preview.png");
    output.with_file_name(name)
}

impl PreviewFiles {
    pub fn previews<'a>(&self, on_preview: OnPreview<'a>) -> Previews<'a> {
        Previews { every: self.every, method: self.method, on_preview }
    }

    pub fn save(&self, pictures: &[Picture], request: &Request, origin: &Origin) -> Result<()> {
        pictures.iter().zip(&self.paths).enumerate().try_for_each(|(i, (picture, path))| {
            let parameters = origin.parameters(request, i).to_string();
            image::write(path, &Format::Png.encode(picture, &parameters))
        })
    }
}
