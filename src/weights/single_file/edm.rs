//! What a single file says of EDM: noise, and latents, that are not those of Stable Diffusion.

use super::super::component::{Shard, Stored};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::ops::Statistics;

/// The tensors of a model that was trained as EDM, and of which kind it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EdmTensors {
    /// Playground 2.5, by `edm_mean` and `edm_std`: of its latents.
    Playground { latents: Statistics },
    /// CosXL, by `edm_vpred.sigma_min` and `edm_vpred.sigma_max`: the noise levels of its training.
    CosXl { sigma_min: f64, sigma_max: f64 },
}

impl EdmTensors {
    pub(super) fn find(location: &Location, shard: &Shard, tensors: &[Stored]) -> Result<Option<Self>> {
        let find = |key: &str| tensors.iter().find(|stored| stored.key == key);
        let refuse = |stored: &Stored, expected: &str| Error::tensor(location, &stored.key, expected);
        if let (Some(mean), Some(deviation)) = (find("edm_mean"), find("edm_std")) {
            let numbers = |stored: &Stored| -> Result<[f32; Statistics::CHANNELS]> {
                let count = stored.shape.iter().product::<usize>();
                if stored.float().is_none() || !(1..=Statistics::CHANNELS).contains(&count) {
                    return Err(refuse(stored, "expected a number for each channel of the latents"));
                }
                let numbers = shard.to_f32(stored);
                Ok(std::array::from_fn(|channel| numbers[channel % count]))
            };
            let latents = Statistics { mean: numbers(mean)?, deviation: numbers(deviation)? };
            if !latents.deviation.iter().all(|&number| number > 0.0 && number.is_finite()) {
                return Err(refuse(deviation, "expected numbers above 0"));
            }
            return Ok(Some(EdmTensors::Playground { latents }));
        }
        if let (Some(min), Some(max)) = (find("edm_vpred.sigma_min"), find("edm_vpred.sigma_max")) {
            let number = |stored| shard.scalar(stored).ok_or_else(|| refuse(stored, "expected one number"));
            let (sigma_min, sigma_max) = (number(min)?, number(max)?);
            if !(0.0 < sigma_min && sigma_min < sigma_max && sigma_max.is_finite()) {
                return Err(refuse(
                    max,
                    &format!(
                        "it is {sigma_max}, and edm_vpred.sigma_min {sigma_min}; expected \
                                                 noise levels above 0, the larger one here"
                    ),
                ));
            }
            return Ok(Some(EdmTensors::CosXl { sigma_min, sigma_max }));
        }
        Ok(None)
    }
}
