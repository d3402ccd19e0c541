//! What a step does around the U-Net.

use super::int;
use crate::error::Result;
use crate::gpu::kernels::{Launch, ModelInputArgs, SamplerStepArgs};
use crate::ops::cuda::Cuda;
use crate::ops::{ModelInput, SamplerStep, Tensor};

impl Cuda {
    pub(super) fn model_input(&self, v: &ModelInput) -> Result<()> {
        assert!(v.x.is_dense());
        let args = ModelInputArgs {
            out: v.out.address,
            x: v.x.address,
            table: v.table.address,
            index: v.index.address,
            rows: int(v.out.b()),
            b: int(v.x.b()),
            n: int(v.x.len() / v.x.b()),
            c: int(v.x.c()),
            out_pitch: int(v.out.pitch),
            unused: 0,
        };
        self.start(&self.kernels.model_input, Launch::each(v.out.len()), &args)
    }

    pub(super) fn sampler_step(&self, v: &SamplerStep) -> Result<()> {
        let dense = [v.x, v.saved, v.history, v.output, v.noise, v.table];
        let known = v.known.map(|known| [known.mask, known.latents, known.noise]);
        assert!(dense.iter().chain(known.iter().flatten()).all(Tensor::is_dense), "{v:?}");
        let [mask, known, known_noise] = known.map_or([0; 3], |known| known.map(|t| t.address));
        let args = SamplerStepArgs {
            x: v.x.address,
            saved: v.saved.address,
            history: v.history.address,
            output: v.output.address,
            noise: v.noise.address,
            table: v.table.address,
            index: v.index.address,
            guidance: v.guidance.address,
            guidance_rescale: v.guidance_rescale.address,
            b: int(v.x.b()),
            mask,
            known,
            known_noise,
            n: int(v.x.len() / v.x.b()),
            c: int(v.x.c()),
            guided: int(v.output.b() - v.x.b()),
        };
        // A block belongs to one image.
        let mut launch = Launch::each(v.x.len() / v.x.b());
        launch.grid.1 = v.x.b() as u32;
        self.start(&self.kernels.sampler_step, launch, &args)
    }
}
