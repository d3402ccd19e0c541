//! What is painted to be measured: the flags that `bench` and `profile` share.

use anyhow::Result;
use clap::Args;
use sdrt::workload::Workload;

use super::SizeArgs;
use super::model::ModelOrShapes;

#[derive(Args)]
pub struct WorkloadArgs {
    #[command(flatten)]
    model: ModelOrShapes,
    /// Up to 1 is no guidance, as distilled models are used: the U-Net sees each picture once [default: the
    /// model's]
    #[arg(long, visible_alias = "cfg-scale", value_name = "X", help_heading = "Sampling")]
    guidance_scale: Option<f32>,
    #[command(flatten)]
    size: SizeArgs,
    /// Batch-invariant kernels, as `sdrt serve` uses them: an image's bytes are the same alone and in any batch,
    /// which takes longer for several images
    #[arg(long)]
    batch_invariant: bool,
    /// Measure the roofline of the GPU again: a large matrix product and a large copy, remembered for each card,
    /// driver and dtype
    #[arg(long)]
    pub remeasure: bool,
}

impl WorkloadArgs {
    /// With the model's files, downloaded if they have to be.
    pub fn workload(&self, steps: usize) -> Result<Workload> {
        Ok(Workload {
            model: self.model.model()?,
            steps,
            guidance_scale: self.guidance_scale,
            width: self.size.width,
            height: self.size.height,
            batch_invariant: self.batch_invariant,
        })
    }
}
