//! The networks of a model on a backend.

use crate::model::autoencoder::Autoencoder;
use crate::model::backbone::Backbone;
use crate::model::blocks::Carried;
use crate::model::clip::ClipText;
use crate::model::config::{AutoencoderConfig, ModelConfig, TextEncoderConfig};
use crate::model::controlnet::ControlNet;
use crate::model::tiny_vae::TinyVae;
use crate::model::unet::UNet;
use crate::ops::DType;
use crate::weights::names::PREVIEW_VAE;
use crate::weights::{Plan, controlnet};

/// The networks of a model: their weights are on the backend, nothing has run.
pub struct Models {
    pub config: ModelConfig,
    /// Tokens of a chunk of a prompt, at most as many as the text encoders have positions for.
    pub tokens: usize,
    pub text_encoders: Vec<ClipText>,
    pub backbone: Box<dyn Backbone>,
    pub vae: Autoencoder,
    pub controlnets: Vec<ControlNet>,
    /// A tiny one, where previews are not left to `vae`.
    pub preview_vae: Option<Autoencoder>,
}

impl Models {
    /// Plans the weights of all, with room for `new_tokens` in the text encoders. Prompts are as long as
    /// those allow.
    pub fn new(config: &ModelConfig, new_tokens: usize, plan: &mut Plan) -> Self {
        let text_encoder = |TextEncoderConfig { role, clip }: &TextEncoderConfig| {
            plan.component(role.component, |plan| ClipText::new(clip, role.is_pooled, new_tokens, plan))
        };
        let text_encoders = config.text_encoders.iter().map(text_encoder).collect();
        let upcast = matches!(&config.vae, AutoencoderConfig::Kl(vae) if vae.force_upcast);
        let overflows = upcast && plan.dtype() == DType::F16;
        let carried = if overflows { Carried::IN_A_HALF } else { Carried::WHOLE };
        let mut controlnet = |(config, name)| plan.component(name, |plan| ControlNet::new(config, plan));
        let controlnets = config.controlnets.iter().zip(controlnet::NAMES).map(&mut controlnet).collect();
        Models {
            text_encoders,
            controlnets,
            backbone: Box::new(plan.component("unet", |plan| UNet::new(&config.unet, plan))),
            vae: plan.component("vae", |plan| Autoencoder::new(&config.vae, carried, plan)),
            preview_vae: config
                .preview_vae
                .as_ref()
                .map(|vae| plan.component(PREVIEW_VAE, |plan| Autoencoder::Tiny(TinyVae::new(vae, plan)))),
            tokens: config.max_tokens(),
            config: config.clone(),
        }
    }

    /// Time tables of an image.
    pub(super) fn time_tables(&self) -> usize {
        if self.backbone.times_take_prompt() { 2 } else { 1 }
    }

    /// Whether guidance leads away from the prompt and from the image apart.
    pub(super) fn has_image_guidance(&self) -> bool {
        self.config.most_rows() > 2
    }

    /// Height and width of the latents of an image of this height and width.
    pub(super) fn latent_size(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        let scale = self.config.vae.scale_factor();
        [height / scale, width / scale]
    }
}
