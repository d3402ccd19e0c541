//! Linear combinations over the basis of [`SamplerStep`](crate::ops::SamplerStep), written as formulas.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Coefficients of `x, e, saved, noise, h0, h1, h2, h3`: the latents, the guided output of the
/// model, the saved tensor, fresh noise, and the history from its newest entry on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms(pub [f64; 8]);

pub const X: Terms = Terms::unit(0);
pub const E: Terms = Terms::unit(1);
pub const SAVED: Terms = Terms::unit(2);
pub const NOISE: Terms = Terms::unit(3);
pub const HISTORY: [Terms; 4] = [Terms::unit(4), Terms::unit(5), Terms::unit(6), Terms::unit(7)];

impl Terms {
    const fn unit(index: usize) -> Self {
        let mut terms = [0.0; 8];
        terms[index] = 1.0;
        Terms(terms)
    }

    /// The place of a basis vector in the basis.
    pub(super) fn index(self) -> usize {
        self.0.iter().position(|&c| c == 1.0).expect("a basis vector")
    }

    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Terms(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    /// Terms that are absent stay absent, also where the factor is infinite.
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Terms(self.0.map(|c| if c == 0.0 { 0.0 } else { f(c) }))
    }
}

impl Add for Terms {
    type Output = Terms;
    fn add(self, other: Terms) -> Terms {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Terms {
    type Output = Terms;
    fn sub(self, other: Terms) -> Terms {
        self.zip(other, |a, b| a - b)
    }
}

impl Neg for Terms {
    type Output = Terms;
    fn neg(self) -> Terms {
        self.map(|c| -c)
    }
}

impl Mul<Terms> for f64 {
    type Output = Terms;
    fn mul(self, terms: Terms) -> Terms {
        terms.map(|c| self * c)
    }
}

impl Div<f64> for Terms {
    type Output = Terms;
    fn div(self, divisor: f64) -> Terms {
        self.map(|c| c / divisor)
    }
}
