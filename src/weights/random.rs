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
        pack::pack(request, rows, out, &|key, elements, dtype, out| {
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
                    *float = request.factor * (mean + deviation * unit_deviation(seed.wrapping_add(i)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::DType;
    use crate::weights::Plan;

    /// The packed tensor, `chunk` rows at a time.
    fn fill(request: &Request, chunk: usize) -> Vec<f32> {
        let c = request.tensor.c();
        let mut out = vec![f32::NAN; request.tensor.len()];
        for (i, part) in out.chunks_mut(c * chunk).enumerate() {
            let rows = i * chunk..i * chunk + part.len() / c;
            RandomWeights.fill(request, rows, bytemuck::cast_slice_mut(part));
        }
        out
    }

    fn mean_and_deviation(x: &[f32]) -> (f32, f32) {
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        (mean, (x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / x.len() as f32).sqrt())
    }

    #[test]
    fn values_depend_on_key_and_position_alone() {
        let mut plan = Plan::measure(DType::F32);
        plan.conv("conv.weight", 16, 60, 3);
        plan.conv("other.weight", 16, 60, 3);
        plan.stacked_matrices(&["first.weight", "conv.weight"], 16, 540);
        let conv = fill(&plan.requests[0], 1);
        assert_eq!(conv, fill(&plan.requests[0], 7));
        assert_ne!(conv, fill(&plan.requests[1], 1));
        let sorted = |x: &[f32]| {
            let mut x = x.to_vec();
            x.sort_by(f32::total_cmp);
            x
        };
        assert_eq!(sorted(&fill(&plan.requests[2], 5)[conv.len()..]), sorted(&conv));
    }

    #[test]
    fn values_have_the_scale_of_a_trained_model() {
        let mut plan = Plan::measure(DType::F32);
        plan.conv("conv.weight", 16, 60, 3);
        plan.vector("norm.weight", 512);
        plan.vector("norm.bias", 512);
        let [conv, scale, bias] = [0, 1, 2].map(|i| mean_and_deviation(&fill(&plan.requests[i], 3)));
        assert!(conv.0.abs() < 1e-3 && (conv.1 * 540f32.sqrt() - 1.0).abs() < 0.02, "{conv:?}");
        assert!((scale.0 - 1.0).abs() < 0.01 && scale.1 < 0.03, "{scale:?}");
        assert!(bias.0.abs() < 0.01 && bias.1 < 0.03, "{bias:?}");
    }
}
