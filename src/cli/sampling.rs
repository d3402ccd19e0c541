//! Flags of the steps and of guidance.

use clap::Args;
use sdrt::error::Error;
use sdrt::pipeline::{Description, Request};
use sdrt::rng::{self, Rng};
use sdrt::sampler::{NoiseLevels, Sampler, Schedule};

#[derive(Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How far to follow the prompt; up to 1 is no guidance, at half the time [default: the model's]
    #[arg(long, visible_alias = "cfg-scale", value_name = "X")]
    guidance_scale: Option<f32>,
    /// Against washed-out or harsh colours of strong guidance, 0 to 1; 0.7 suits models with v_prediction
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    guidance_rescale: f32,
    /// ddim, pndm, euler, euler-a, heun, dpm2, dpm2-a, dpm++2s-a, dpm++2m, dpm++2m-sde, dpm++3m-sde, deis,
    /// ipndm, lms, unipc, lcm, tcd or ddpm [default: the model's]
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// model, leading, linspace, trailing, sgm_uniform, karras, exponential, beta or ays (Align Your Steps)
    #[arg(long, value_name = "NAME", default_value = "model")]
    schedule: Schedule,
    /// How much of the noise that a step takes away is drawn anew, 0 to 1; for ddim, tcd, and the samplers
    /// with -a or -sde in their names [default: ddim 0, tcd 0.3, else 1]
    #[arg(long, value_name = "X")]
    eta: Option<f64>,
    /// Noise levels of the steps, from high to low, instead of a schedule: "14.6,7.8,3.1,0" are three steps
    #[arg(long, value_name = "X,X,...")]
    sigmas: Option<NoiseLevels>,
    /// The same seed paints the same picture; picture i of several has seed N + i [default: random]
    #[arg(short, long, value_name = "N", value_parser = seed)]
    seed: Option<u64>,
    /// Whose noise a seed gives: cpu (torch's CPU generator, as diffusers) or cuda (Philox, as A1111)
    #[arg(long, value_name = "NAME", default_value_t)]
    rng: Rng,
}

fn seed(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| {
        Error::invalid(format!(
            "--seed {text}: expected a whole number from 0 to {}; leave --seed out for a random one",
            u64::MAX
        ))
    })
}

impl SamplingArgs {
    /// The model's suggestion with what the flags say instead.
    pub fn request(&self, model: &Description) -> Result<Request, Error> {
        let sampler = self.sampler.map_or_else(|| model.scheduler.default_sampler(), Ok)?;
        let defaults = Request::defaults(model, sampler);
        let by_hand = self.sigmas.as_ref().map(NoiseLevels::steps);
        Ok(Request {
            steps: self.steps.or(by_hand).unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            guidance_rescale: self.guidance_rescale,
            schedule: self.schedule,
            eta: self.eta,
            sigmas: self.sigmas.clone(),
            seed: self.seed.unwrap_or_else(rng::random_seed),
            rng: self.rng,
            ..defaults
        })
    }
}
