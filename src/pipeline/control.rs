//! ControlNets of a request: what steers a picture, and what is written of it in front of a run.

use super::denoising::Denoising;
use super::numbers::write_floats;
use super::request::{Pass, Request};
use super::tensors::Shape;
use crate::error::{Error, Invalid, Result};
use crate::location::Location;
use crate::model::conditioned::Conditioned;
use crate::model::config::{ControlNetConfig, ModelConfig};
use crate::model::controlnet::ControlNet;
use crate::ops::{Backend, DType, Ops, Tensor};
use crate::parameter::{Parameter, sentence};
use crate::raster::Raster;
use crate::weights::controlnet;

/// What a ControlNet is.
const LAYOUT: &str = "a .safetensors file, or a folder in the diffusers layout: config.json, \
                      diffusion_pytorch_model.safetensors; one of the hub is named owner/name";

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
    fn gain(&self, i: usize, n: usize) -> f32 {
        let share = |i: usize| i as f64 / n as f64;
        if share(i) < self.start || share(i + 1) > self.end { 0.0 } else { self.strength }
    }
}

/// Adds ControlNets of the shapes that were published for the model's family.
pub(super) fn add_random_controlnets(config: &mut ModelConfig, count: usize) -> Result<()> {
    check_count(count, Parameter::RandomControlnets)?;
    config.controlnets = vec![ControlNetConfig::of_family(&config.unet); count];
    Ok(())
}

fn check_count(count: usize, parameter: Parameter) -> Result<()> {
    let most = controlnet::NAMES.len();
    if count > most {
        let message = sentence![format!("{count} ControlNets: expected at most {most} "), parameter];
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// Reads the configurations of ControlNets, and checks that they fit the model.
pub(super) fn read_controlnets(config: &mut ModelConfig, files: &[Location]) -> Result<()> {
    check_count(files.len(), Parameter::Controlnet)?;
    for (file, name) in files.iter().zip(controlnet::NAMES) {
        let description = file.join("config.json");
        let controlnet = if description.is_file() {
            ControlNetConfig::read(&description)?
        } else if !file.is_file() {
            let what = if file.is_folder() { "has no config.json" } else { "no such ControlNet" };
            return Err(Error::file(file, format!("{what}; a ControlNet is {LAYOUT}")));
        } else {
            let component = controlnet::open(file, name)?;
            ControlNetConfig::infer(file, &component.shapes(), &config.unet)?
        };
        controlnet.check(file, config)?;
        config.controlnets.push(controlnet);
    }
    Ok(())
}

/// Checks what a request says of ControlNets against a model.
pub(super) fn check(request: &Request, config: &ModelConfig) -> Result<()> {
    let (given, there) = (request.controls.len(), config.controlnets.len());
    if given > there {
        return Err(Invalid::of([Parameter::ControlImage])
            .problem(format!("{given} images"))
            .expected(sentence![format!("at most {there}, one for each "), Parameter::Controlnet])
            .error());
    }
    for Control { strength, start, end, .. } in &request.controls {
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

/// What one ControlNet reads and keeps from one replay to the next.
pub(super) struct ControlTensors {
    pub hint: Tensor,       // [1,height,width,4], the fourth channel empty
    pub embedding: Tensor,  // [inputs,h,w,c]
    pub time_table: Tensor, // [rows or 1,1,evaluations,time columns]
    pub context: Tensor,    // [rows,1,tokens,context columns]
    pub gains: Tensor,      // f32 [rows or 1,1,evaluations,1]
}

impl ControlTensors {
    /// Beside those of the U-Net.
    pub fn new(ops: &mut dyn Ops, net: &ControlNet, shape: &Shape, unet: &Denoising) -> Self {
        let [time_rows, _, n, _] = unet.time_table.shape;
        let [rows, _, tokens, _] = unet.context.shape;
        let [h, w] = unet.shape.map;
        let c = net.config.encoder.block_out_channels[0];
        ControlTensors {
            hint: ops.alloc([1, shape.height, shape.width, 4]),
            embedding: ops.alloc([unet.inputs, h, w, c]),
            time_table: ops.alloc([time_rows, 1, n, net.time_columns()]),
            context: ops.alloc([rows, 1, tokens, net.context_columns()]),
            gains: ops.arena().alloc([time_rows, 1, n, 1], DType::F32),
        }
    }
}

/// Writes the pictures that ControlNets read, and how much they act at each step.
pub(super) fn write_controls(
    backend: &mut dyn Backend,
    controls: &[ControlTensors],
    request: &Request,
    config: &ModelConfig,
    pass: &Pass,
) -> Result<()> {
    let evaluations = pass.table.evaluations();
    for ((control, tensors), net) in request.controls.iter().zip(controls).zip(&config.controlnets) {
        let order = if net.is_bgr { [2, 1, 0] } else { [0, 1, 2] };
        let image = control.image.resized(pass.width, pass.height);
        let pixels = image.rgb.chunks_exact(3).flat_map(|pixel| {
            let [r, g, b] = order.map(|channel| f32::from(pixel[channel]) / 255.0);
            [r, g, b, 0.0]
        });
        write_floats(backend, tensors.hint, &pixels.collect::<Vec<f32>>())?;

        let [rows, _, n, _] = tensors.gains.shape;
        let gain = |i| if i < evaluations { control.gain(i, evaluations) } else { 0.0 };
        let gains: Vec<f32> = (0..n).map(gain).collect();
        backend.write(tensors.gains, bytemuck::cast_slice(&gains.repeat(rows)))?;
    }
    Ok(())
}
