//! The interface of the generators.

/// A stream of standard normal numbers.
pub trait NoiseSource {
    /// Draws one tensor, in f32, elements in memory order (channels first, as torch lays it out).
    /// How many are drawn at once matters: two calls do not equal one call of the whole length.
    fn fill_normal(&mut self, out: &mut [f32]);
}
