//! Shapes of the models, read from the `config.json` of each, checked against what the engine can run.
//!
//! Absent keys have the defaults of diffusers (`UNet2DConditionModel`, `AutoencoderKL`) and transformers
//! (`CLIPTextConfig`).

mod autoencoder;
mod clip;
mod controlnet;
mod fields;
mod inferred;
mod shapes;
mod text_encoder;
mod tiny_vae;
mod unet;
mod vae;

pub use self::autoencoder::{AutoencoderConfig, MIN_TILE, RGB};
pub use self::clip::ClipConfig;
pub use self::controlnet::ControlNetConfig;
pub use self::text_encoder::{TextEncoderConfig, TextEncoderRole};
pub use self::tiny_vae::{TinyCoderConfig, TinyVaeConfig};
pub use self::unet::{BlockKind, MidBlock, TextTimeConfig, UNetConfig};
pub use self::vae::VaeConfig;
use crate::error::{Error, Result};
use crate::location::Location;

/// The models of a checkpoint, known to fit one another.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// In the order in which their hidden states stand side by side; one at least.
    pub text_encoders: Vec<TextEncoderConfig>,
    pub unet: UNetConfig,
    pub vae: AutoencoderConfig,
    /// What steers the U-Net.
    pub controlnets: Vec<ControlNetConfig>,
    /// What decodes previews instead of the VAE; of the same latents.
    pub preview_vae: Option<TinyVaeConfig>,
}

/// What a U-Net sees, in the order of its input channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UNetInput {
    /// The noisy latents.
    Latents,
    /// The noisy latents, a mask and the latents of a masked image: inpainting.
    MaskedImage,
    /// The noisy latents and those of an image: InstructPix2Pix.
    Image,
}

impl UNetInput {
    fn of_channels(channels: usize, latent: usize) -> Option<Self> {
        match channels {
            _ if channels == latent => Some(UNetInput::Latents),
            _ if channels == 2 * latent + 1 => Some(UNetInput::MaskedImage),
            _ if channels == 2 * latent => Some(UNetInput::Image),
            _ => None,
        }
    }
}

impl ModelConfig {
    /// Reads the `config.json` of each model of a folder that has these text encoders.
    pub fn read(folder: &Location, text_encoders: &[&str]) -> Result<Self> {
        let unet_file = folder.join("unet/config.json");
        let unet = UNetConfig::read(&unet_file)?;
        // XL's refiner has the second alone.
        let is_there = |role: &&TextEncoderRole| {
            **role != TextEncoderRole::FIRST || text_encoders.contains(&role.component)
        };
        let roles = TextEncoderRole::of_unet(unet.text_time.is_some()).iter().filter(is_there);
        let text_encoders = roles.map(|role| role.read(folder)).collect::<Result<Vec<_>>>()?;
        let config = ModelConfig {
            unet: unet.with_pooled_dim(pooled_dim(&text_encoders)),
            text_encoders,
            vae: AutoencoderConfig::read(&folder.join("vae/config.json"))?,
            controlnets: Vec::new(),
            preview_vae: None,
        };
        config.check(&unet_file)?;
        Ok(config)
    }

    /// Checks that the models fit one another; `file` is where the U-Net is described.
    pub fn check(&self, file: &Location) -> Result<()> {
        let ModelConfig { text_encoders, unet, vae, .. } = self;
        let refuse = |message: String| Err(Error::file(file, message));
        let hidden = self.context_dim();
        if unet.cross_attention_dim != hidden {
            let dim = unet.cross_attention_dim;
            let of = if text_encoders.len() > 1 {
                "s of both text encoders are"
            } else {
                " of the text encoder is"
            };
            return refuse(format!(
                "cross_attention_dim is {dim}; the hidden_size{of} {hidden}, and the two must be equal"
            ));
        }
        if let (Some(projection), Some(TextTimeConfig { pooled_dim, .. })) =
            (self.pooled_dim(), unet.text_time)
            && pooled_dim != projection
        {
            return refuse(format!(
                "projection_class_embeddings_input_dim leaves {pooled_dim} for the pooled prompt; the second text \
                 encoder's projection_dim is {projection}, and the two must be equal"
            ));
        }
        let (i, o, latent) = (unet.in_channels, unet.out_channels, vae.latent_channels());
        if UNetInput::of_channels(i, latent).is_none() || o != latent {
            return refuse(format!(
                "in_channels is {i} and out_channels is {o}; both must be the VAE's latent_channels, {latent}, or the \
                 former {} for inpainting or {} for InstructPix2Pix: depth models are not supported, try a \
                 text-to-image one",
                2 * latent + 1,
                2 * latent
            ));
        }
        Ok(())
    }

    /// What the U-Net sees.
    pub fn unet_input(&self) -> UNetInput {
        UNetInput::of_channels(self.unet.in_channels, self.vae.latent_channels()).expect("checked")
    }

    /// Rows of an image in the U-Net's batch with guidance: InstructPix2Pix leads away from the prompt and from the
    /// image apart.
    pub fn most_rows(&self) -> usize {
        if self.unet_input() == UNetInput::Image { 3 } else { 2 }
    }

    /// The shapes of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        ModelConfig {
            text_encoders: vec![TextEncoderRole::ONLY.of(ClipConfig::vit_l())],
            unet: UNetConfig::sd15(),
            vae: VaeConfig::sd15().into(),
            controlnets: Vec::new(),
            preview_vae: None,
        }
    }

    /// The shapes of Stable Diffusion 2.1 for 768x768.
    pub fn sd21() -> Self {
        ModelConfig {
            text_encoders: vec![TextEncoderRole::ONLY.of(ClipConfig::open_clip_h())],
            unet: UNetConfig::sd21(),
            vae: VaeConfig { sample_size: 768, ..VaeConfig::sd15() }.into(),
            controlnets: Vec::new(),
            preview_vae: None,
        }
    }

    /// The shapes of Stable Diffusion XL.
    pub fn sdxl() -> Self {
        ModelConfig {
            text_encoders: vec![
                TextEncoderRole::FIRST.of(ClipConfig::vit_l()),
                TextEncoderRole::SECOND.of(ClipConfig::open_clip_big_g()),
            ],
            unet: UNetConfig::sdxl(),
            vae: VaeConfig::sdxl().into(),
            controlnets: Vec::new(),
            preview_vae: None,
        }
    }

    /// The shapes of the refiner of Stable Diffusion XL.
    pub fn sdxl_refiner() -> Self {
        let text_encoders = vec![TextEncoderRole::SECOND.of(ClipConfig::open_clip_big_g())];
        ModelConfig { text_encoders, unet: UNetConfig::sdxl_refiner(), ..Self::sdxl() }
    }

    /// Width of the hidden states of a prompt: those of all text encoders side by side.
    pub fn context_dim(&self) -> usize {
        self.text_encoders.iter().map(|encoder| encoder.clip.hidden_size).sum()
    }

    /// Width of the pooled projection of a prompt, where the model reads it.
    pub fn pooled_dim(&self) -> Option<usize> {
        pooled_dim(&self.text_encoders)
    }

    /// Tokens that one pass of the text encoders takes.
    pub fn max_tokens(&self) -> usize {
        self.text_encoders
            .iter()
            .map(|encoder| encoder.clip.max_position_embeddings)
            .min()
            .expect("a text encoder")
    }
}

fn pooled_dim(text_encoders: &[TextEncoderConfig]) -> Option<usize> {
    let pooled = text_encoders.iter().find(|encoder| encoder.role.is_pooled);
    pooled.map(|encoder| encoder.clip.projection_dim)
}
