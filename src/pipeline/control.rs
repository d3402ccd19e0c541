//! What ControlNets are given of a request.

use crate::error::{Invalid, Result};
use crate::parameter::{Parameter, sentence};
use crate::raster::Raster;

/// What a ControlNet is given, as `StableDiffusionControlNetPipeline` takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    /// The edges, depths, poses, ... that a ControlNet reads; brought to the size of the picture.
    pub image: Raster,
    /// `controlnet_conditioning_scale`: how much of what it says is added, 1 being all.
    pub strength: f32,
    /// `control_guidance_start`: the share of the steps, from 0 to below `end`, in which it does not act yet.
    pub start: f64,
    /// `control_guidance_end`: the share of the steps, up to 1, after which it does not act any more.
    pub end: f64,
}

impl Control {
    /// With all its strength, at every step.
    pub fn new(image: Raster) -> Self {
        Control { image, strength: 1.0, start: 0.0, end: 1.0 }
    }

    /// With a grey picture: for measuring, where its pixels do not matter.
    pub fn blank() -> Self {
        Control::new(Raster { width: 1, height: 1, rgb: vec![128; 3] })
    }

    /// The strength at model evaluation `i` of `n`, as `controlnet_keep` of diffusers has it.
    pub(super) fn gain(&self, i: usize, n: usize) -> f32 {
        let share = |i: usize| i as f64 / n as f64;
        if share(i) < self.start || share(i + 1) > self.end { 0.0 } else { self.strength }
    }
}

/// Checks what a request gives ControlNets, of which the model has so many.
pub(super) fn check(controls: &[Control], there: usize) -> Result<()> {
    let given = controls.len();
    if given > there {
        return Err(Invalid::of([Parameter::ControlImage])
            .problem(format!("{given} images"))
            .expected(sentence![format!("at most {there}, one for each "), Parameter::Controlnet])
            .error());
    }
    for Control { strength, start, end, .. } in controls {
        Parameter::ControlStrength.check(*strength)?;
        if !(0.0 <= *start && start < end && *end <= 1.0) {
            return Err(Invalid::value(Parameter::ControlStart, start)
                .and(Parameter::ControlEnd, end)
                .expected("two numbers from 0 to 1, the start below the end")
                .error());
        }
    }
    Ok(())
}
