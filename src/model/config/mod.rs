//! Shapes of the models, read from the `config.json` of each, checked against what the engine can run.
//!
//! Absent keys have the defaults of diffusers (`UNet2DConditionModel`, `AutoencoderKL`) and transformers
//! (`CLIPTextConfig`).

mod autoencoder;
mod clip;
mod controlnet;
mod inferred;
mod tiny_vae;
mod unet;
mod vae;

use serde_json::Value;

pub use self::autoencoder::{AutoencoderConfig, MIN_TILE, RGB};
pub use self::clip::ClipConfig;
pub use self::controlnet::ControlNetConfig;
pub use self::tiny_vae::{TinyCoderConfig, TinyVaeConfig};
pub use self::unet::{BlockKind, MidBlock, TextTimeConfig, UNetConfig};
pub use self::vae::VaeConfig;
use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;

/// Most channels of a level, and the widest hidden states. Layer norm's rows are no wider, and group norm's
/// twice as wide, as a concatenation is. Stable Diffusion has 1280.
const MAX_WIDTH: usize = 1 << 11;
/// Most of any other count of channels: far from overflowing anything.
const MAX_CHANNELS: usize = 1 << 14;
/// Largest head of the attention kernels; the VAE's single head has its own limit.
const MAX_HEAD_DIM: usize = 160;
const MAX_VAE_HEAD_DIM: usize = 512;

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

/// Refuses every value but the `supported` ones, given as JSON. A list must have supported entries only.
fn only(json: &Object, key: &str, supported: &[&str]) -> Result<()> {
    let Some(value) = json.get(key) else { return Ok(()) };
    let fits = |value: &Value| {
        let written = value.to_string();
        let number = value.as_f64();
        supported
            .iter()
            .any(|text| *text == written || number.is_some_and(|number| text.parse() == Ok(number)))
    };
    let supported_here = match value {
        Value::Array(list) => list.iter().all(fits),
        value => fits(value),
    };
    if supported_here {
        return Ok(());
    }
    let verb = if supported.len() == 1 { "is" } else { "are" };
    Err(json.refuse(key, format!("only {} {verb} supported", supported.join(" and "))))
}

fn channels(json: &Object, key: &str, default: usize, multiple: usize, most: usize) -> Result<usize> {
    let count = json.count(key, default, 1..=most)?;
    if count.is_multiple_of(multiple) {
        Ok(count)
    } else {
        Err(json.refuse(key, format!("expected a multiple of {multiple}")))
    }
}

/// `block_out_channels`, the key that says how many levels there are.
fn levels(json: &Object, default: &[usize]) -> Result<Vec<usize>> {
    let key = "block_out_channels";
    let Some(value) = json.get(key) else { return Ok(default.to_vec()) };
    let n = value.as_array().map_or(0, |list| list.len());
    if !(1..=8).contains(&n) {
        return Err(json.refuse(key, "expected a list of 1 to 8 channel counts"));
    }
    let channels = json.counts(key, 0, n, 8..=MAX_WIDTH)?;
    if channels.iter().any(|count| !count.is_multiple_of(8)) {
        return Err(json.refuse(key, "expected multiples of 8"));
    }
    Ok(channels)
}

/// `plain` is the block without attention: `DownBlock2D` or `UpBlock2D`.
fn block_kinds(
    json: &Object,
    key: &str,
    plain: &str,
    levels: usize,
    default: Vec<BlockKind>,
) -> Result<Vec<BlockKind>> {
    let kinds = match json.texts(key)? {
        None => Some(default),
        Some(names) => names
            .into_iter()
            .map(|name| match name.strip_prefix("CrossAttn") {
                None if name == plain => Some(BlockKind::Resnets),
                Some(rest) if rest == plain => Some(BlockKind::CrossAttention),
                _ => None,
            })
            .collect(),
    };
    kinds.filter(|kinds| kinds.len() == levels).ok_or_else(|| {
        json.refuse(key, format!("expected {levels} blocks, each \"{plain}\" or \"CrossAttn{plain}\""))
    })
}

fn check_groups(json: &Object, channels: &[usize], groups: usize) -> Result<()> {
    match channels.iter().find(|count| !count.is_multiple_of(groups)) {
        None => Ok(()),
        Some(count) => Err(json
            .refuse("norm_num_groups", format!("{count} channels cannot be divided into that many groups"))),
    }
}

fn check_heads(json: &Object, key: &str, channels: usize, heads: usize) -> Result<()> {
    let d = channels / heads;
    if channels.is_multiple_of(heads) && d.is_multiple_of(8) && (8..=MAX_HEAD_DIM).contains(&d) {
        return Ok(());
    }
    let expected = format!(
        "it is a number of heads, and must divide {channels} channels into heads of a multiple of 8, \
         at most {MAX_HEAD_DIM}"
    );
    Err(json.refuse(key, expected))
}
