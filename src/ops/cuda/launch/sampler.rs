//! What a step does around the U-Net.

use super::int;
use crate::error::Result;
use crate::gpu::kernels::{ModelInputArgs, SamplerStepArgs};
use crate::gpu::launch::Launch;
use crate::ops::cuda::Cuda;
use crate::ops::{ModelInput, SamplerStep};

impl Cuda {
    pub(super) fn model_input(&self, v: &ModelInput) -> Result<()> {
        let beside = v.beside.map(|beside| (beside.x.address, beside.x.c(), beside.shown.address));
        let (beside, e, shown) = beside.unwrap_or_default();
        let args = ModelInputArgs {
            out: v.out.address,
            x: v.x.address,
            beside,
            table: v.table.address,
            index: v.index.address,
            slot: v.slot.address,
            shown,
            rows: int(v.out.b()),
            pixels: int(v.out.tokens()),
            c: int(v.x.c()),
            e: int(e),
            out_c: int(v.out.c()),
            out_pitch: int(v.out.pitch),
        };
        self.start(&self.kernels.model_input, Launch::each(v.out.len()), &args)
    }

    pub(super) fn sampler_step(&self, v: &SamplerStep) -> Result<()> {
        let [mask, known, known_noise] =
            v.known.map_or([0; 3], |known| [known.mask, known.latents, known.noise].map(|t| t.address));
        let (images, n) = (v.rows.tokens(), v.x.tokens() * v.x.c());
        let args = SamplerStepArgs {
            x: v.x.address,
            saved: v.saved.address,
            history: v.history.address,
            output: v.output.address,
            rows: v.rows.address,
            noise: v.noise.address,
            table: v.table.address,
            index: v.index.address,
            slot: v.slot.address,
            guidance: v.guidance.address,
            mask,
            known,
            known_noise,
            b: int(images),
            n: int(n),
            c: int(v.x.c()),
            unused: 0,
        };
        // A block belongs to one image.
        let mut launch = Launch::each(n);
        launch.grid.1 = images as u32;
        self.start(&self.kernels.sampler_step, launch, &args)
    }
}
