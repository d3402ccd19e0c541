//! `sdrt bench`

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use sdrt::bench::{self, Settings};
use sdrt::image;
use sdrt::roofline;
use sdrt::workload::{self, Workload};

use super::DeviceArgs;
use super::workload::WorkloadArgs;

/// Measures how long the stages take, each after a warm-up, and prints medians beside the roofline.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Bench {
    #[command(flatten)]
    workload: WorkloadArgs,
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
            workload: self.workload.workload(self.steps)?,
            device: self.device.device,
            dtype: self.device.dtype,
            images: self.images.clone(),
            remeasure: self.workload.remeasure,
        };
        let rows = bench::measure(&settings, &mut super::say)?;
        if let Some(path) = &self.json {
            bench::write(path, &rows)?;
        }
        let Workload { model, steps, .. } = &settings.workload;
        let painted = workload::summary(&settings.workload.request(1)?, &model.describe()?);
        let unit = if *steps == 1 { "step" } else { "steps" };
        let heading = roofline::heading(&rows[0].machine, rows[0].ceiling);
        let table = bench::table(&rows, &before);
        write!(std::io::stdout(), "{model}\n{heading}\n{painted}, {steps} {unit}\n{table}")?;
        Ok(())
    }
}
