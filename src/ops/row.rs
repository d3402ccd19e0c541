//! Layout of a row of a sampler's table.
//!
//! A sampler packs its rows ([`sampler::Row::pack`](crate::sampler::Row::pack)); the verbs
//! [`ModelInput`](super::ModelInput) and [`SamplerStep`](super::SamplerStep) read them. cuda/sampler.cu has the same
//! numbers.

use std::ops::Range;

/// Floats of one packed row.
pub const ROW_WIDTH: usize = 22;
/// Factor of the latents in the model's input.
pub const IN_SCALE: usize = 0;
/// Coefficients of `x, e, saved, noise, h0, h1, h2, h3` in the next `x`.
pub const NEXT: Range<usize> = 1..9;
/// Coefficients of `x, e, saved, noise, h0, h1, h2, h3` in the next `saved`.
pub const SAVE: Range<usize> = 9..17;
/// 1 if the step adds an entry to the history, else 0.
pub const REMEMBER: usize = 17;
/// Coefficients of `x` and `e` in the new entry of the history.
pub const REMEMBERED: Range<usize> = 18..20;
/// Signal and noise of the known part of the next `x` ([`Known`](super::Known)).
pub const KNOWN: Range<usize> = 20..22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_fill_the_row_and_the_kernel_has_the_same() {
        let mut fields = vec![IN_SCALE];
        fields.extend(NEXT.chain(SAVE).chain([REMEMBER]).chain(REMEMBERED).chain(KNOWN));
        assert_eq!(fields, (0..ROW_WIDTH).collect::<Vec<_>>());
        let kernel = include_str!("../../cuda/sampler.cu");
        let constants = format!(
            "constexpr int ROW_WIDTH = {ROW_WIDTH}, IN_SCALE = {IN_SCALE}, NEXT = {}, SAVE = {}, REMEMBER = \
             {REMEMBER}, KNOWN = {};",
            NEXT.start, SAVE.start, KNOWN.start
        );
        assert!(kernel.contains(&constants), "{constants}");
        assert_eq!(REMEMBERED.start, REMEMBER + 1, "as the kernel counts");
    }
}
