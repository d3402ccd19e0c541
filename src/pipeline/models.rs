//! The networks of a model on a backend.

use crate::model::autoencoder::Autoencoder;
use crate::model::blocks::Carried;
use crate::model::clip::ClipText;
use crate::model::config::{AutoencoderConfig, ClipConfig, ModelConfig, UNetInput};
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
    pub text_encoder: ClipText,
    /// Of XL.
    pub text_encoder_2: Option<ClipText>,
    pub unet: UNet,
    pub vae: Autoencoder,
    pub controlnets: Vec<ControlNet>,
    /// A tiny one, where previews are not left to `vae`.
    pub preview_vae: Option<Autoencoder>,
}

impl Models {
    /// Plans the weights of all, with room for `new_tokens` in the text encoders. Prompts are as long as
    /// those allow.
    pub fn new(config: &ModelConfig, new_tokens: usize, plan: &mut Plan) -> Self {
        let mut clip = |name, config: &ClipConfig, projected| {
            plan.component(name, |plan| ClipText::new(config, projected, new_tokens, plan))
        };
        let text_encoder = clip("text_encoder", config.clip.as_ref().expect("refused without"), false);
        let text_encoder_2 = config.clip_2.as_ref().map(|config| clip("text_encoder_2", config, true));
        // The pipelines of Stable Diffusion 1.x and 2.x decode in halves whatever the file says.
        let upcast = matches!(&config.vae, AutoencoderConfig::Kl(vae) if vae.force_upcast);
        let overflows = config.is_xl() && upcast && plan.dtype() == DType::F16;
        let carried = if overflows { Carried::IN_A_HALF } else { Carried::WHOLE };
        let mut controlnet = |(config, name)| plan.component(name, |plan| ControlNet::new(config, plan));
        let controlnets = config.controlnets.iter().zip(controlnet::NAMES).map(&mut controlnet).collect();
        Models {
            text_encoder,
            text_encoder_2,
            controlnets,
            unet: plan.component("unet", |plan| UNet::new(&config.unet, plan)),
            vae: plan.component("vae", |plan| Autoencoder::new(&config.vae, carried, plan)),
            preview_vae: config
                .preview_vae
                .as_ref()
                .map(|vae| plan.component(PREVIEW_VAE, |plan| Autoencoder::Tiny(TinyVae::new(vae, plan)))),
            tokens: config.max_tokens(),
            config: config.clone(),
        }
    }

    pub fn text_encoders(&self) -> impl Iterator<Item = &ClipText> {
        std::iter::once(&self.text_encoder).chain(&self.text_encoder_2)
    }

    /// Time tables of an image: XL's take in the prompt, so that the rows of guidance have one each.
    pub(super) fn time_tables(&self) -> usize {
        if self.config.unet.text_time.is_some() { 2 } else { 1 }
    }

    /// Whether guidance leads away from the prompt and from the image apart, as in InstructPix2Pix.
    pub(super) fn has_image_guidance(&self) -> bool {
        self.config.unet_input() == UNetInput::Image
    }

    /// The most rows of an image in the U-Net's batch.
    pub(super) fn most_rows(&self) -> usize {
        if self.has_image_guidance() { 3 } else { 2 }
    }

    /// Height and width of the latents of an image of this height and width.
    pub(super) fn latent_size(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        let scale = self.config.vae.scale_factor();
        [height / scale, width / scale]
    }
}
