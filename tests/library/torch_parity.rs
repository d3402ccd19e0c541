//! The first hop of trust: every verb of `Cpu` against what torch and diffusers compute
//! (`tools/fixtures/verbs.py`), in f32; the sampler's verbs against their formula.

use crate::common::verbs::{agrees_with_torch, model_input_scales, sampler_step_follows_its_formula};
use sdrt::ops::cpu::Cpu;

/// Rounding of f32 sums of a few hundred terms, in another order than torch's.
const SUMS: f64 = 1e-6;

#[test]
fn conv2d() {
    agrees_with_torch(&mut Cpu::new(), "conv2d", SUMS);
}

#[test]
fn linear() {
    agrees_with_torch(&mut Cpu::new(), "linear", SUMS);
}

#[test]
fn group_norm() {
    // Around a mean of ten deviations, torch's f32 statistics have lost a digit.
    agrees_with_torch(&mut Cpu::new(), "group_norm", 1e-5);
}

#[test]
fn layer_norm() {
    agrees_with_torch(&mut Cpu::new(), "layer_norm", 1e-5);
}

#[test]
fn attention() {
    agrees_with_torch(&mut Cpu::new(), "attention", 2.0 * SUMS);
}

#[test]
fn activate() {
    agrees_with_torch(&mut Cpu::new(), "activate", SUMS);
}

#[test]
fn geglu() {
    agrees_with_torch(&mut Cpu::new(), "geglu", SUMS);
}

#[test]
fn accumulate() {
    agrees_with_torch(&mut Cpu::new(), "accumulate", SUMS);
}

#[test]
fn embed() {
    agrees_with_torch(&mut Cpu::new(), "embed", 0.0);
}

#[test]
fn emphasize() {
    agrees_with_torch(&mut Cpu::new(), "emphasize", SUMS);
}

#[test]
fn timestep_embedding() {
    // One last bit of a frequency moves an angle of 999 by 6e-5.
    agrees_with_torch(&mut Cpu::new(), "timestep_embedding", 2e-5);
}

#[test]
fn scale() {
    agrees_with_torch(&mut Cpu::new(), "scale", 1e-7);
}

#[test]
fn to_rgb8() {
    agrees_with_torch(&mut Cpu::new(), "to_rgb8", 0.0);
}

#[test]
fn model_input() {
    model_input_scales(&mut Cpu::new(), 1e-7);
}

#[test]
fn sampler_step() {
    sampler_step_follows_its_formula(&mut Cpu::new(), SUMS);
}
