//! Noise levels that do not follow from timesteps.

use statrs::distribution::{Beta, ContinuousCDF};

/// The rho of Karras et al. 2022.
pub const KARRAS: Ramp = Ramp::Karras { rho: 7.0 };

/// The levels of ten steps by Align Your Steps (Sabour et al. 2024): `AysSchedules` of diffusers, but for the last
/// level, which is the one of the paper's code. Where the noise ends at zero, zero takes its place.
pub type AlignedLevels = &'static [f64; 11];

/// Of Stable Diffusion 1.5.
pub const ALIGNED_SD: AlignedLevels =
    &[14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029];

/// Of Stable Diffusion XL.
pub const ALIGNED_XL: AlignedLevels =
    &[14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029];

/// How the noise levels of the steps are spaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ramp {
    /// Karras et al. 2022, equation 5 (`_convert_to_karras`).
    Karras { rho: f64 },
    /// Evenly in the logarithm (`_convert_to_exponential`).
    Exponential,
    /// By quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024, `_convert_to_beta`).
    Beta,
    /// Whatever the model's range is.
    Aligned(AlignedLevels),
}

impl Ramp {
    /// `count` levels between and with `first` and `last`; the aligned ones are those before their last.
    pub fn levels(self, first: f64, last: f64, count: usize) -> Vec<f64> {
        let step = 1.0 / (count.max(2) - 1) as f64;
        let along = (0..count).map(|i| if i > 0 && i + 1 == count { 1.0 } else { i as f64 * step });
        match self {
            Ramp::Karras { rho } => {
                let (first, last) = (first.powf(1.0 / rho), last.powf(1.0 / rho));
                along.map(|a| (first + a * (last - first)).powf(rho)).collect()
            }
            Ramp::Exponential => {
                let (first, last) = (first.ln(), last.ln());
                along.map(|a| (first + a * (last - first)).exp()).collect()
            }
            Ramp::Beta => {
                let beta = Beta::new(0.6, 0.6).expect("two positive parameters");
                along.map(|a| last + beta.inverse_cdf(1.0 - a) * (first - last)).collect()
            }
            Ramp::Aligned(levels) => {
                let intervals = levels.len() - 1;
                (0..count)
                    .map(|i| {
                        let at = (i * intervals) as f64 / count as f64;
                        let low = i * intervals / count;
                        let (a, b) = (levels[low].ln(), levels[low + 1].ln());
                        (a + (at - low as f64) * (b - a)).exp()
                    })
                    .collect()
            }
        }
    }

    /// Whether a schedule's last level is its own: where the noise does not end at zero, it stays there.
    pub fn has_end(self) -> bool {
        !matches!(self, Ramp::Aligned(_))
    }
}
