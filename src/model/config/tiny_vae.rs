//! The tiny VAE.

use super::fields::{MAX_CHANNELS, channels, only};
use super::shapes::Shapes;
use crate::error::Result;
use crate::json::Object;
use crate::location::Location;

/// diffusers' `AutoencoderTiny` (TAESD, TAESDXL): a few convolutions that decode to almost the picture that
/// `AutoencoderKL` would.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyVaeConfig {
    pub latent_channels: usize,
    /// Latents are what the encoder gives, times this.
    pub scaling_factor: f32,
    pub decoder: TinyCoderConfig,
    /// Files for decoding alone have none.
    pub encoder: Option<TinyCoderConfig>,
}

/// One half.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyCoderConfig {
    /// Of all layers but the first and the last.
    pub channels: usize,
    /// Residual blocks of a level, in the order in which they run.
    pub blocks: Vec<usize>,
}

/// The blocks of the published ones; the encoder's are the reverse.
const BLOCKS: [usize; 4] = [3, 3, 3, 1];
const MAX_BLOCKS: usize = 16;

impl TinyVaeConfig {
    pub const CLASS_NAME: &str = "AutoencoderTiny";

    pub fn read(file: &Location) -> Result<Self> {
        let json = Object::read(file)?;
        for (key, supported) in [
            ("_class_name", "\"AutoencoderTiny\""),
            ("act_fn", "\"relu\""),
            ("upsample_fn", "\"nearest\""),
            ("in_channels", "3"),
            ("out_channels", "3"),
            ("upsampling_scaling_factor", "2"),
            ("shift_factor", "0"),
        ] {
            only(&json, key, &[supported])?;
        }
        let decoder = TinyCoderConfig::read(&json, "decoder", BLOCKS)?;
        let mut reversed = BLOCKS;
        reversed.reverse();
        let encoder = TinyCoderConfig::read(&json, "encoder", reversed)?;
        if encoder.blocks.len() != decoder.blocks.len() {
            return Err(json.refuse("num_encoder_blocks", "expected as many as num_decoder_blocks"));
        }
        Ok(TinyVaeConfig {
            latent_channels: channels(&json, "latent_channels", 4, 4, MAX_CHANNELS)?,
            scaling_factor: json.positive("scaling_factor", 1.0)?,
            decoder,
            encoder: Some(encoder),
        })
    }

    /// The configuration of a file by its shapes, if it is a tiny VAE.
    pub fn of_shapes(shapes: &Shapes) -> Option<Self> {
        let [channels, latent_channels, 3, 3] = **shapes.get("decoder.layers.0.weight")? else { return None };
        let usable =
            |c: usize, multiple: usize| c.is_multiple_of(multiple) && (multiple..=MAX_CHANNELS).contains(&c);
        let fits = usable(channels, 8) && usable(latent_channels, 4);
        let has = |key: String| shapes.contains_key(key.as_str());
        let decoder = TinyCoderConfig {
            channels,
            blocks: blocks(2, 2, |layer| has(format!("decoder.layers.{layer}.conv.0.weight")))?,
        };
        let encoder = has("encoder.layers.0.weight".into())
            .then(|| blocks(1, 1, |layer| has(format!("encoder.layers.{layer}.conv.0.weight"))));
        let encoder = match encoder {
            Some(blocks) => {
                let [channels, 3, 3, 3] = **shapes.get("encoder.layers.0.weight")? else { return None };
                Some(TinyCoderConfig { channels, blocks: blocks? })
            }
            None => None,
        };
        let matches = |encoder: &TinyCoderConfig| {
            usable(encoder.channels, 8) && encoder.blocks.len() == decoder.blocks.len()
        };
        (fits && encoder.as_ref().is_none_or(matches)).then_some(TinyVaeConfig {
            latent_channels,
            scaling_factor: 1.0,
            decoder,
            encoder,
        })
    }

    /// Picture pixels along one latent pixel.
    pub fn scale_factor(&self) -> usize {
        1 << (self.decoder.blocks.len() - 1)
    }

    /// Elements of the largest map between layers, for one picture of h x w.
    pub fn largest_map(&self, h: usize, w: usize) -> usize {
        let encoder = self.encoder.as_ref().map_or(0, |encoder| encoder.channels);
        h * w * self.decoder.channels.max(encoder)
    }
}

impl TinyCoderConfig {
    /// `half` is `encoder` or `decoder`.
    fn read(json: &Object, half: &str, default: [usize; 4]) -> Result<Self> {
        let (blocks, widths) = (format!("num_{half}_blocks"), format!("{half}_block_out_channels"));
        let levels = |key: &str| json.get(key).and_then(|list| list.as_array()).map(|list| list.len());
        let n = levels(&blocks).unwrap_or(default.len());
        if !(1..=8).contains(&n) {
            return Err(json.refuse(&blocks, "expected a list of 1 to 8 numbers of blocks"));
        }
        let counts = match json.get(&blocks) {
            Some(_) => json.counts(&blocks, 0, n, 1..=MAX_BLOCKS)?,
            None => default.to_vec(),
        };
        let widths_of = json.counts(&widths, 64, n, 8..=MAX_CHANNELS)?;
        if widths_of.iter().any(|&c| c != widths_of[0] || !c.is_multiple_of(8)) {
            return Err(json.refuse(&widths, "expected the same multiple of 8 for all levels"));
        }
        Ok(TinyCoderConfig { channels: widths_of[0], blocks: counts })
    }
}

/// Blocks of each level, by the layers that are blocks: the first has number `first`, and between two levels are
/// `between` layers.
fn blocks(first: usize, between: usize, is_block: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
    let (mut blocks, mut layer) = (Vec::new(), first);
    loop {
        let count = (0..MAX_BLOCKS).take_while(|i| is_block(layer + i)).count();
        if count == 0 {
            break;
        }
        blocks.push(count);
        layer += count + between;
    }
    (1..=8).contains(&blocks.len()).then_some(blocks)
}
