//! What the denoising loop calls, whatever it is made of: a network that reads noisy latents and predicts.
//!
//! What does not change between steps is computed outside of the step, into tables: one row for each timestep of a
//! schedule, one for each token of a prompt. A step finds its rows by number. So a backbone is three things: its
//! weights, planned by its constructor; its tables ([`Conditioned`]); and the step itself ([`Backbone::forward`]).

use super::blocks::Context;
use super::conditioned::Conditioned;
use super::controlnet::{ControlInputs, ControlNet};
use crate::ops::*;

/// The network of the denoising loop.
pub trait Backbone: Conditioned + Send + Sync {
    /// Channels of the input as the first layer reads it: filled up with zeros.
    fn input_channels(&self) -> usize;

    /// Whether the times take the prompt in, so that each row of guidance has a time table of its own.
    fn times_take_prompt(&self) -> bool;

    /// Whether the rows of guidance, which have the same latents and times, are alike up to the first layer that
    /// reads the prompt, and are computed once up to there.
    fn begins_without_context(&self) -> bool;

    /// The prediction `out` [b,h,w,latent channels] for latents `x` [b,h,w,input_channels], with the time table's row
    /// and the context of each image, steered by ControlNets.
    ///
    /// `x` may have fewer images, `b / n`, where [`Backbone::begins_without_context`]: image i of `out` is then for
    /// image i mod `b / n` of `x` and of the time rows, as in guidance, where each image has two contexts.
    fn forward(
        &self,
        ops: &mut dyn Ops,
        out: Tensor,
        x: Tensor,
        time: TableRow,
        context: Context,
        controls: &[(&ControlNet, ControlInputs)],
    );
}
