//! `sdrt bench`

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use sdrt::bench::{self, Settings};
use sdrt::image;

use super::model::ModelOrShapes;
use super::{DeviceArgs, SizeArgs};

/// Measures how long the stages take, each after a warm-up, and prints medians beside the roofline.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Bench {
    #[command(flatten)]
    model: ModelOrShapes,
    /// Pictures at once: 1,4 measures both
    #[arg(
        short = 'b',
        long,
        visible_alias = "num-images",
        value_name = "N,..",
        value_delimiter = ',',
        default_value = "1"
    )]
    images: Vec<usize>,
    /// Denoising steps of a picture
    #[arg(long, value_name = "N", default_value_t = 50)]
    steps: usize,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where the numbers go, a line of JSON for each stage
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A file of an earlier --json to compare with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

impl Bench {
    pub fn run(&self) -> Result<()> {
        let before = self.against.as_deref().map(bench::read).transpose()?.unwrap_or_default();
        self.json.as_deref().map(image::check_writable).transpose()?;
        let settings = Settings {
            model: self.model.model()?,
            device: self.device.device,
            dtype: self.device.dtype,
            images: self.images.clone(),
            steps: self.steps,
            width: self.size.width,
            height: self.size.height,
        };
        let rows = bench::measure(&settings, &mut super::say)?;
        if let Some(path) = &self.json {
            bench::write(path, &rows)?;
        }
        let (model, machine) = (&settings.model, &rows[0].machine);
        write!(std::io::stdout(), "{model}\n{machine}\n{}", bench::table(&rows, &before))?;
        Ok(())
    }
}
