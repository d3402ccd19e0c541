//! From latents to the pixels of an image.

use super::Pipeline;
use super::programs::DecodeProgram;
use super::request::{Picture, Request};
use super::state::Canvas;
use crate::error::{Error, Result};

impl Pipeline {
    /// Decodes latents [h,w,c] of the images of a request, one after the other.
    ///
    /// # Errors
    /// Memory that is not there.
    pub fn decode(&mut self, request: &Request, canvas: Canvas, latents: &[f32]) -> Result<Vec<Picture>> {
        // A refiner decodes what it has refined.
        let refiner = self.refiner.as_deref_mut().filter(|_| request.refined_from().is_some());
        let Some(refiner) = refiner else { return self.decode_samples(request, canvas, false, latents) };
        match refiner.decode_samples(request, canvas, false, latents) {
            Err(Error::OutOfMemory { .. }) => self.drop_unused(),
            pictures => return pictures,
        }
        let refiner = self.refiner.as_deref_mut().expect("there was one");
        refiner.decode_samples(request, canvas, false, latents)
    }

    /// Decodes with the VAE for previews, if that is wanted and there is one.
    pub(super) fn decode_samples(
        &mut self,
        request: &Request,
        canvas: Canvas,
        preview: bool,
        latents: &[f32],
    ) -> Result<Vec<Picture>> {
        let Canvas { height, width, tile } = canvas;
        let program = DecodeProgram { images: request.images, size: [height, width], preview };
        let Pipeline { programs, backend, models, .. } = self;
        let rgb = match programs.decode(&mut **backend, models, program, tile, latents) {
            Err(Error::OutOfMemory { .. }) => {
                self.drop_unused();
                let Pipeline { programs, backend, models, .. } = self;
                programs.decode(&mut **backend, models, program, tile, latents)?
            }
            rgb => rgb?,
        };
        Ok(request.pictures(width, height, rgb))
    }
}
