//! `sdrt profile`

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use sdrt::image;
use sdrt::pipeline::Stage;
use sdrt::profile;
use sdrt::roofline;
use sdrt::workload;

use super::workload::WorkloadArgs;
use super::{DeviceArgs, say_notice};

/// Measures how long each verb and shape takes, slowest first, or runs the stages once for nsys and ncu.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Profile {
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Pictures at once
    #[arg(short = 'b', long, visible_alias = "num-images", value_name = "N", default_value_t = 1)]
    images: usize,
    /// The part of the painting to look at
    #[arg(long, default_value = "denoise")]
    stage: StageName,
    /// Measurements of each verb, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Runs one encode, N steps and one decode verb by verb, in NVTX ranges with the checkpoint's names,
    /// and measures nothing
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1", conflicts_with_all = ["stage", "repeat", "json"])]
    trace: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Where the numbers go, a line of JSON for each verb and shape
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum StageName {
    /// Prompt to keys and values
    Encode,
    /// One step
    Denoise,
    /// Latents to pixels
    Decode,
}

/// Steps of the picture whose shape is looked at, and which fills the memory before anything is measured.
const STEPS: usize = 2;

impl Profile {
    pub fn run(&self) -> Result<()> {
        let workload = self.workload.workload(STEPS)?;
        let request = workload.request(self.images)?;
        let model = &workload.model;
        self.json.as_deref().map(image::check_writable).transpose()?;
        let mut opened = self.device.device.open(self.device.dtype)?;
        say_notice(opened.notice.as_deref());
        let machine = opened.backend.describe();
        let ceiling = match self.trace {
            None => roofline::ceiling(&mut *opened.backend, self.workload.remeasure)?,
            Some(_) => None,
        };
        let mut pipeline = workload.load(opened.backend)?;
        if let Some(steps) = self.trace {
            pipeline.trace(&request, Stage::Encode)?;
            (0..steps).try_for_each(|_| pipeline.trace(&request, Stage::Denoise).map(drop))?;
            pipeline.trace(&request, Stage::Decode)?;
            return Ok(());
        }
        let stage = match self.stage {
            StageName::Encode => Stage::Encode,
            StageName::Denoise => Stage::Denoise,
            StageName::Decode => Stage::Decode,
        };
        let entries = profile::profile(&mut pipeline, &request, stage, self.repeat.max(1), ceiling)?;
        if let Some(path) = &self.json {
            profile::write(path, &entries)?;
        }
        let painted = workload::summary(&request, pipeline.description());
        let pictures = if self.images == 1 { "picture" } else { "pictures" };
        let (images, table) = (self.images, profile::table(&entries));
        let heading = roofline::heading(&machine, ceiling);
        write!(std::io::stdout(), "{model}\n{heading}\n{images} {pictures} of {painted}\n{table}")?;
        Ok(())
    }
}
