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
mod tiny_vae;
mod unet;
mod vae;

pub use self::autoencoder::{AutoencoderConfig, MIN_TILE, RGB};
pub use self::clip::ClipConfig;
pub use self::controlnet::ControlNetConfig;
pub use self::tiny_vae::{TinyCoderConfig, TinyVaeConfig};
pub use self::unet::{BlockKind, MidBlock, TextTimeConfig, UNetConfig};
pub use self::vae::VaeConfig;
use crate::error::{Error, Result};
use crate::location::Location;

/// The models of a checkpoint, known to fit one another.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The first text encoder, and the only one but of XL; XL's refiner has none of it.
    pub clip: Option<ClipConfig>,
    /// XL's second text encoder, whose pooled projection goes into the time embedding.
    pub clip_2: Option<ClipConfig>,
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
    /// Reads the `config.json` of each model of a folder.
    pub fn read(folder: &Location) -> Result<Self> {
        let unet_file = folder.join("unet/config.json");
        let unet = UNetConfig::read(&unet_file)?;
        let clip = |name: &str| ClipConfig::read(&folder.join(&format!("{name}/config.json")));
        let clip_2 = unet.text_time.map(|_| clip("text_encoder_2")).transpose()?;
        let is_left_out = clip_2.is_some() && !folder.join("text_encoder").is_folder();
        let unet = unet.with_pooled_dim(clip_2.as_ref());
        let config = ModelConfig {
            clip: (!is_left_out).then(|| clip("text_encoder")).transpose()?,
            clip_2,
            vae: AutoencoderConfig::read(&folder.join("vae/config.json"))?,
            controlnets: Vec::new(),
            preview_vae: None,
            unet,
        };
        config.check(&unet_file)?;
        Ok(config)
    }

    /// Checks that the models fit one another; `file` is where the U-Net is described.
    pub fn check(&self, file: &Location) -> Result<()> {
        let ModelConfig { clip_2, unet, vae, .. } = self;
        let refuse = |message: String| Err(Error::file(file, message));
        let hidden = self.text_encoders().map(|clip| clip.hidden_size).sum::<usize>();
        if unet.cross_attention_dim != hidden {
            let dim = unet.cross_attention_dim;
            let of = if self.text_encoders().count() == 2 {
                "s of both text encoders are"
            } else {
                " of the text encoder is"
            };
            return refuse(format!(
                "cross_attention_dim is {dim}; the hidden_size{of} {hidden}, and the two must be equal"
            ));
        }
        if let (Some(clip_2), Some(text_time)) = (clip_2, unet.text_time) {
            let (pooled, projection) = (text_time.pooled_dim, clip_2.projection_dim);
            if pooled != projection {
                return refuse(format!(
                    "projection_class_embeddings_input_dim leaves {pooled} for the pooled prompt; the second \
                     text encoder's projection_dim is {projection}, and the two must be equal"
                ));
            }
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

    /// Whether the U-Net sees a mask and a masked picture beside its latents: an inpainting model.
    pub fn paints_into_pictures(&self) -> bool {
        self.unet_input() == UNetInput::MaskedImage
    }

    /// The shapes of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        ModelConfig {
            clip: Some(ClipConfig::vit_l()),
            clip_2: None,
            unet: UNetConfig::sd15(),
            vae: VaeConfig::sd15().into(),
            controlnets: Vec::new(),
            preview_vae: None,
        }
    }

    /// The shapes of Stable Diffusion 2.1 for 768x768.
    pub fn sd21() -> Self {
        ModelConfig {
            clip: Some(ClipConfig::open_clip_h()),
            clip_2: None,
            unet: UNetConfig::sd21(),
            vae: VaeConfig { sample_size: 768, ..VaeConfig::sd15() }.into(),
            controlnets: Vec::new(),
            preview_vae: None,
        }
    }

    /// The shapes of Stable Diffusion XL.
    pub fn sdxl() -> Self {
        ModelConfig {
            clip: Some(ClipConfig::vit_l()),
            clip_2: Some(ClipConfig::open_clip_big_g()),
            unet: UNetConfig::sdxl(),
            vae: VaeConfig::sdxl().into(),
            controlnets: Vec::new(),
            preview_vae: None,
        }
    }

    /// The shapes of the refiner of Stable Diffusion XL.
    pub fn sdxl_refiner() -> Self {
        ModelConfig { clip: None, unet: UNetConfig::sdxl_refiner(), ..Self::sdxl() }
    }

    /// Text encoders in the order in which their hidden states stand side by side.
    pub fn text_encoders(&self) -> impl Iterator<Item = &ClipConfig> {
        self.clip.iter().chain(&self.clip_2)
    }

    /// Tokens that one pass of the text encoders takes.
    pub fn max_tokens(&self) -> usize {
        self.text_encoders().map(|clip| clip.max_position_embeddings).min().expect("a text encoder")
    }

    /// What the shapes of another VAE leave open is as in this: the model's own, or its family's.
    pub fn vae_to_infer(&self) -> VaeConfig {
        match &self.vae {
            AutoencoderConfig::Kl(vae) => vae.clone(),
            AutoencoderConfig::Tiny(_) if self.is_xl() => VaeConfig::sdxl(),
            AutoencoderConfig::Tiny(_) => VaeConfig::sd15(),
        }
    }

    pub fn is_xl(&self) -> bool {
        self.clip_2.is_some()
    }
}
