//! The colours of latents, near enough for a preview.

use crate::model::config::RGB;
use crate::ops::ToRgb8;

/// Red, green and blue by latent channel, and their offset, with colours from -1 to 1: least squares over the latents
/// of a VAE, as published for ComfyUI (`latent_rgb_factors`).
pub struct LatentColours {
    pub factors: [[f32; RGB]; 4],
    offset: [f32; RGB],
}

/// Of Stable Diffusion 1.x and 2.x.
pub const SD: LatentColours = LatentColours {
    factors: [
        [0.3512, 0.2297, 0.3227],
        [0.3250, 0.4974, 0.2350],
        [-0.2829, 0.1762, 0.2721],
        [-0.2120, -0.2616, -0.7177],
    ],
    offset: [0.0; RGB],
};

pub const XL: LatentColours = LatentColours {
    factors: [
        [0.3651, 0.4232, 0.4341],
        [-0.2533, -0.0042, 0.1068],
        [0.1076, 0.1111, -0.0362],
        [-0.3165, -0.2492, -0.2188],
    ],
    offset: [0.1084, -0.0175, -0.0011],
};

/// Of Playground 2.5.
pub const PLAYGROUND: LatentColours = LatentColours {
    factors: [
        [0.3920, 0.4054, 0.4549],
        [-0.2634, -0.0196, 0.0653],
        [0.0568, 0.1687, -0.0755],
        [-0.3112, -0.2359, -0.2076],
    ],
    offset: [0.0; RGB],
};

impl LatentColours {
    /// The colour of a latent pixel.
    pub fn colour(&self, pixel: &[f32]) -> [u8; RGB] {
        std::array::from_fn(|colour| {
            let terms = pixel.iter().zip(&self.factors).map(|(x, factors)| x * factors[colour]);
            ToRgb8::level(self.offset[colour] + terms.sum::<f32>())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_centred_and_clamped() {
        assert_eq!(SD.colour(&[0.0; 4]), [128; RGB]);
        assert_eq!(SD.colour(&[9.0, 9.0, 0.0, -9.0]), [255; RGB]);
    }
}
