//! Where pictures go: files, and the terminal.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use rayon::prelude::*;
use sdrt::error::Error;
use sdrt::image::terminal::Terminal;
use sdrt::image::{self, Format, Origin};
use sdrt::pipeline::{Picture, Request};

#[derive(Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    #[arg(short, long, value_name = "FILE", default_value = "sdrt.png")]
    pub output: PathBuf,
    #[arg(long, value_name = "N")]
    quality: Option<u8>,
    #[arg(long)]
    show: bool,
}

/// The files of all pictures.
pub struct Files {
    pub paths: Vec<PathBuf>,
    format: Format,
}

impl OutputArgs {
    /// The files of so many pictures. Checks that they can be written, and leaves everything as it was.
    pub fn files(&self, count: usize) -> Result<Files, Error> {
        let format = Format::of(&self.output, self.quality)?;
        let paths: Vec<PathBuf> = (0..count).map(|i| image::numbered(&self.output, i, count)).collect();
        paths.iter().try_for_each(|path| image::check_writable(path))?;
        Ok(Files { paths, format })
    }

    /// The terminal to draw in, or what there is to say if there should be one.
    pub fn terminal(&self, json: bool) -> (Option<Terminal>, Option<&'static str>) {
        if !self.show {
            return (None, None);
        }
        if json {
            return (None, Some("--show: nothing is drawn beside --json"));
        }
        let terminal = Terminal::of_stdout();
        let why = terminal.is_none().then_some("--show: nothing is drawn, stdout is not a terminal");
        (terminal, why)
    }
}

impl Files {
    /// Checks that the pictures' parameters have room.
    pub fn check(&self, request: &Request, origin: &Origin) -> Result<(), Error> {
        (0..request.images).try_for_each(|i| self.format.check(&origin.parameters(request, i).to_string()))
    }

    /// Saves a request's pictures to `paths`, some of these.
    pub fn save(
        &self,
        paths: &[PathBuf],
        pictures: &[Picture],
        request: &Request,
        origin: &Origin,
    ) -> Result<(), Error> {
        pictures.par_iter().zip(paths).enumerate().try_for_each(|(i, (picture, path))| {
            let parameters = origin.parameters(request, i).to_string();
            image::write(path, &self.format.encode(picture, &parameters))
        })
    }
}

/// Draws pictures, each under the one before.
pub fn show(terminal: &Terminal, pictures: &[Picture]) -> Result<()> {
    let mut out = std::io::stdout();
    pictures.iter().try_for_each(|picture| out.write_all(&terminal.draw(picture)))?;
    Ok(out.flush()?)
}
