//! Whether a model can use the values of a request.

use super::control;
use super::model::Description;
use super::request::{Request, SizeConditioning};
use super::tiling::Tiled;
use crate::error::{Error, Invalid, Result};
use crate::model::config::{ModelConfig, UNetInput};
use crate::parameter::{Parameter, Part, sentence};

/// Pixels of a side. The convolution's coordinates have 16 bits, with a sign.
const LARGEST_SIDE: usize = 1 << 14;

impl Request {
    /// Checks every value but those that decide its passes.
    pub(super) fn check_values(&self, model: &Description) -> Result<()> {
        let config = &model.config;
        let scale = config.vae.scale_factor();
        for (parameter, side) in [(Parameter::Width, self.width), (Parameter::Height, self.height)] {
            if side == 0 || !side.is_multiple_of(scale) {
                let nearest = (side.saturating_add(scale / 2) / scale).max(1) * scale;
                return Err(Invalid::value(parameter, side)
                    .expected(format!("a multiple of {scale}"))
                    .advice(format!("try {nearest}"))
                    .error());
            }
            if side > LARGEST_SIDE {
                return Err(Invalid::value(parameter, side)
                    .problem("too many pixels")
                    .expected(format!("at most {LARGEST_SIDE}"))
                    .error());
            }
        }
        let configs = || std::iter::once(config).chain(model.refiner.iter().map(|refiner| &refiner.config));
        let encoders = configs().flat_map(|config| &config.text_encoders);
        let layers = encoders.map(|encoder| encoder.clip.num_hidden_layers);
        let layers = layers.min().unwrap_or(0);
        if let Some(skip) = self.clip_skip.filter(|skip| !(1..=layers).contains(skip)) {
            let expected = format!("1, for the last layer of the text encoder, to {layers}");
            return Err(Invalid::value(Parameter::ClipSkip, skip).expected(expected).error());
        }
        Parameter::NumImages.check(self.images)?;
        Parameter::GuidanceScale.check(self.guidance_scale)?;
        Parameter::GuidanceRescale.check(self.guidance_rescale)?;
        self.check_guidance_interval()?;
        self.check_image_guidance(model)?;
        self.tiling.check()?;
        self.check_size(config, self.width, self.height)?;
        control::check(&self.controls, config.controlnets.len())?;
        if self.size != SizeConditioning::default() && config.unet.text_time.is_none() {
            let parameters = [Parameter::OriginalSize, Parameter::Crop, Parameter::TargetSize];
            return Err(Invalid::of(parameters)
                .problem(format!("supported by Stable Diffusion XL only; this model is {}", model.family))
                .error());
        }
        self.check_scores(model)?;
        self.check_init(model)
    }

    /// Checks the shares of the schedule between which guidance acts.
    fn check_guidance_interval(&self) -> Result<()> {
        let (start, end) = (self.guidance_start, self.guidance_end);
        Parameter::GuidanceStart.check(start)?;
        Parameter::GuidanceEnd.check(end)?;
        let interval = Invalid::value(Parameter::GuidanceStart, start).and(Parameter::GuidanceEnd, end);
        if start >= end {
            return Err(interval.expected("the start below the end").error());
        }
        Ok(())
    }

    fn check_scores(&self, model: &Description) -> Result<()> {
        let scores = [
            (Parameter::AestheticScore, self.aesthetic_score),
            (Parameter::NegativeAestheticScore, self.negative_aesthetic_score),
        ];
        for (parameter, score) in scores {
            let Some(score) = score else { continue };
            if !model.reads_score() && !model.refiner.as_ref().is_some_and(|refiner| refiner.reads_score()) {
                return Err(Invalid::value(parameter, score)
                    .problem(format!(
                        "read by the refiner of Stable Diffusion XL only; this model is {}",
                        model.family
                    ))
                    .error());
            }
            parameter.check(score)?;
        }
        Ok(())
    }

    fn check_image_guidance(&self, model: &Description) -> Result<()> {
        let Some(scale) = self.image_guidance_scale else { return Ok(()) };
        if model.config.unet_input() != UNetInput::Image {
            return Err(Invalid::value(Parameter::ImageGuidanceScale, scale)
                .problem(format!("supported by InstructPix2Pix models only; this model is {}", model.family))
                .error());
        }
        Parameter::ImageGuidanceScale.check(scale)
    }

    fn check_init(&self, model: &Description) -> Result<()> {
        let input = model.config.unet_input();
        let Some(init) = &self.init else {
            return match input {
                UNetInput::Latents => Ok(()),
                UNetInput::MaskedImage => Err(Error::invalid(sentence![
                    "this is an inpainting model; give it an image with ",
                    Parameter::InitImage,
                    " and ",
                    Parameter::Mask
                ])),
                UNetInput::Image => Err(Error::invalid(sentence![
                    "this is an InstructPix2Pix model; give it an image to edit with ",
                    Parameter::InitImage
                ])),
            };
        };
        if self.hires.is_some() {
            return Err(Invalid::of([Parameter::HiresScale])
                .problem("enlarges what is generated from noise")
                .advice(sentence!["leave ", Parameter::InitImage, " out"])
                .error());
        }
        if !model.config.vae.encodes() {
            return Err(Invalid::of([Parameter::InitImage])
                .problem("this VAE has no encoder")
                .advice(sentence![
                    "try a ",
                    Parameter::Vae,
                    " with both halves, as a folder in the layout of diffusers, or none"
                ])
                .error());
        }
        match (input, &init.mask) {
            (UNetInput::MaskedImage, None) => Err(Invalid::of([Parameter::Mask])
                .problem("missing")
                .advice("this is an inpainting model, which generates where a mask is light: give it one")
                .error()),
            (UNetInput::Image, Some(_)) => Err(Invalid::of([Parameter::Mask])
                .problem("an InstructPix2Pix model edits the whole image")
                .advice(sentence!["leave ", Parameter::Mask, " out"])
                .error()),
            _ => Ok(()),
        }
    }

    /// Checks that a pass is not too large.
    pub(super) fn check_size(&self, config: &ModelConfig, width: usize, height: usize) -> Result<()> {
        let images = self.images;
        let scale = config.vae.scale_factor();
        let is_short = width.max(height) <= LARGEST_SIDE;
        let rows = images.saturating_mul(self.rows(config));
        let others_fit = is_short
            && is_countable(rows, config.unet.largest_map(height / scale, width / scale))
            && config.controlnets.iter().all(|net| is_countable(1, net.largest_map(height, width)));
        let vae_fits = is_short
            && match self.tile(config, width, height) {
                Some([h, w]) => is_countable(1, largest_vae_map(config, scale * h, scale * w)),
                None => is_countable(images, largest_vae_map(config, height, width)),
            };
        if !(others_fit && vae_fits) {
            let pictures = if images == 1 { "picture" } else { "pictures at once" };
            let mut advice = sentence!["lower ", Parameter::NumImages];
            if self.hires.is_some() {
                advice.0.extend([Part::from(", "), Parameter::HiresScale.into()]);
            }
            let sides = [Part::from(", "), Parameter::Width.into(), " or ".into(), Parameter::Height.into()];
            advice.0.extend(sides);
            if others_fit && self.tiling.when == Tiled::Off {
                advice.0.extend([", or leave ".into(), Parameter::VaeTiling.into(), " off out".into()]);
            }
            let problem = format!("{images} {pictures} of {width}x{height}: too many pixels");
            return Err(Invalid::default().problem(problem).advice(advice).error());
        }
        Ok(())
    }

    /// The largest tile, where a pass's picture is encoded and decoded in tiles from the outset: because the user
    /// says so, or because the kernels cannot count the whole.
    pub(super) fn tile(&self, config: &ModelConfig, width: usize, height: usize) -> Option<[usize; 2]> {
        let whole = is_countable(self.images, largest_vae_map(config, height, width));
        self.possible_tile(config, width, height).filter(|_| self.tiling.when == Tiled::On || !whole)
    }

    /// The largest tile of a picture of this size where it may be encoded and decoded in tiles.
    pub(super) fn possible_tile(
        &self,
        config: &ModelConfig,
        width: usize,
        height: usize,
    ) -> Option<[usize; 2]> {
        let scale = config.vae.scale_factor();
        self.tiling.tile(&config.vae, [height / scale, width / scale])
    }
}

/// Elements of the largest map of the VAEs that a picture of h x w passes through.
fn largest_vae_map(config: &ModelConfig, h: usize, w: usize) -> usize {
    let preview = config.preview_vae.as_ref().map_or(0, |vae| vae.largest_map(h, w));
    config.vae.largest_map(h, w).max(preview)
}

/// Kernels count the elements of a tensor with 31 bits.
fn is_countable(images: usize, elements: usize) -> bool {
    images.checked_mul(elements).is_some_and(|n| n <= i32::MAX as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::KnownShapes;
    use crate::sampler::Sampler;

    #[test]
    fn an_interval_is_two_shares_the_first_below_the_second() {
        for (start, end, sentence) in [
            (-0.1, 1.0, "--guidance-start -0.1: expected a number from 0 to 1"),
            (0.0, 1.5, "--guidance-end 1.5: expected a number from 0 to 1"),
            (0.0, f64::NAN, "--guidance-end NaN: expected a number from 0 to 1"),
            (0.5, 0.5, "--guidance-start 0.5 and --guidance-end 0.5: expected the start below the end"),
        ] {
            let (request, model) = interval(start, end);
            let error = request.check(&model).unwrap_err().to_string();
            assert!(error.starts_with(sentence), "{error}");
        }
        for (start, end) in [(0.0, 1.0), (0.2, 1.0), (0.1, 0.3)] {
            let (request, model) = interval(start, end);
            assert!(request.check(&model).is_ok(), "{start} to {end}");
        }
    }

    fn interval(guidance_start: f64, guidance_end: f64) -> (Request, Description) {
        let model = KnownShapes::Sd15.describe();
        let defaults = Request::defaults(&model, Sampler::Ddim);
        (Request { guidance_start, guidance_end, ..defaults }, model)
    }
}
