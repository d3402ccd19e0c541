//! Weights that come from nowhere, to measure a model without its checkpoint.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::Source;
use super::names;
use super::pack;
use super::plan::Request;
use crate::error::Result;

/// A value for every element of every tensor, a function of key and position alone: norm scales near 1,
/// biases near 0, matrices of standard deviation `1/sqrt(fan_in)`, so that activations stay finite.
pub struct RandomWeights;

impl Source for RandomWeights {
    fn check(&self, _requests: &[Request]) -> Result<()> {
        Ok(())
    }

    fn fill(&self, request: &Request, rows: Range<usize>, out: &mut [u8]) {
        let dtype = request.tensor.dtype;
        pack::pack(request, rows, out, &|key, elements, out| {
            let key = &request.keys[key];
            let mut hasher = DefaultHasher::new();
            (request.component, names::canonical(request.component, key)).hash(&mut hasher);
            let seed = hasher.finish();
            let fan_in: usize = request.shape[1..].iter().product();
            let (mean, deviation) = match request.shape.len() {
                1 if key.ends_with("weight") => (1.0, 0.02),
                1 => (0.0, 0.02),
                _ => (0.0, 1.0 / (fan_in as f32).sqrt()),
            };
            let mut floats = [0f32; 1024];
            for (chunk, out) in out.chunks_mut(floats.len() * dtype.size()).enumerate() {
                let start = elements.start + chunk * floats.len();
                let floats = &mut floats[..out.len() / dtype.size()];
                for (float, i) in floats.iter_mut().zip(start as u64..) {
                    *float = mean + deviation * unit_deviation(seed.wrapping_add(i));
                }
                pack::from_f32(floats, dtype, out);
            }
        });
    }
}

/// A uniform number of mean 0 and standard deviation 1 for a position: splitmix64's output function.
fn unit_deviation(position: u64) -> f32 {
    let mut bits = position.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let uniform = (bits >> 40) as f32 / (1 << 24) as f32;
    (2.0 * uniform - 1.0) * 3f32.sqrt()
}
