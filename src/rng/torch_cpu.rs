//! The Mersenne Twister and the Box-Muller transforms of torch's CPU generator.
//!
//! Sources: Matsumoto and Nishimura 1998 (MT19937); ATen `DistributionTemplates.h` (`normal_fill`) and
//! `DistributionsHelper.h` (`normal_distribution`).

use std::f32::consts::TAU;

use super::source::NoiseSource;

/// `torch.Generator("cpu")`; draws `torch.randn` of dtype float32, bit for bit as on a CPU with AVX2.
#[derive(Clone, Debug)]
pub struct TorchCpu {
    words: Mt19937,
    /// The second number of a pair that a small tensor left over. It outlives large tensors.
    spare: Option<f64>,
}

impl TorchCpu {
    /// Only the low 32 bits of a seed count.
    pub fn new(seed: u64) -> Self {
        TorchCpu { words: Mt19937::new(seed as u32), spare: None }
    }

    /// Uniform in 0..1 with 24 bits.
    fn uniform(&mut self) -> f32 {
        (self.words.next() & 0xFF_FFFF) as f32 / (1 << 24) as f32
    }

    /// Uniform in 0..1 with 53 bits.
    fn uniform_double(&mut self) -> f64 {
        let high = u64::from(self.words.next());
        let low = u64::from(self.words.next());
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// One number at a time, in f64: tensors of fewer than 16 elements.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_double(), self.uniform_double());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

impl NoiseSource for TorchCpu {
    fn fill_normal(&mut self, out: &mut [f32]) {
        if out.len() < 16 {
            out.fill_with(|| self.normal() as f32);
            return;
        }
        out.fill_with(|| self.uniform());
        let (blocks, tail) = out.as_chunks_mut::<16>();
        blocks.iter_mut().for_each(box_muller);
        if !tail.is_empty() {
            // The last 16 elements are drawn anew, over some that are already normal.
            let start = out.len() - 16;
            let last: &mut [f32; 16] = (&mut out[start..]).try_into().expect("16 elements");
            last.fill_with(|| self.uniform());
            box_muller(last);
        }
    }
}

/// Eight pairs at once, in the arithmetic of torch's AVX2 path.
fn box_muller(block: &mut [f32; 16]) {
    for i in 0..8 {
        let radius = (-2.0 * ln(1.0 - block[i])).sqrt();
        let (sin, cos) = sin_cos(TAU * block[i + 8]);
        // The mean, 0, is added: it makes 0 of -0.
        block[i] = radius * cos + 0.0;
        block[i + 8] = radius * sin + 0.0;
    }
}

/// Cephes' `logf` for normal positive numbers, with fused multiply-adds.
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LN2_HIGH: f32 = 0.693_359_4;
    // x = mantissa · 2^exponent with the mantissa in sqrt(1/2)..sqrt(2).
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let mut mantissa = f32::from_bits(bits & 0x007F_FFFF | 0.5f32.to_bits());
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        mantissa += mantissa;
    }
    let m = mantissa - 1.0;
    let square = m * m;
    let polynomial = P[1..].iter().fold(P[0], |sum, p| sum.mul_add(m, *p)) * m;
    let correction = (-0.5f32).mul_add(square, polynomial.mul_add(square, exponent * LN2_LOW));
    exponent.mul_add(LN2_HIGH, m + correction)
}

/// Cephes' `sinf` and `cosf` for positive angles, with fused multiply-adds.
fn sin_cos(angle: f32) -> (f32, f32) {
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    const FOUR_OVER_PI: f32 = 1.273_239_5;
    // pi/4 in three parts, so that multiples of the first two are exact.
    const QUARTER: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];
    let octant = ((angle * FOUR_OVER_PI) as u32 + 1) & !1;
    let count = octant as f32;
    let x = QUARTER.iter().fold(angle, |x, part| (-count).mul_add(*part, x));
    let square = x * x;
    let cos = COS[1..].iter().fold(COS[0], |sum, p| sum.mul_add(square, *p)) * square;
    let cos = cos.mul_add(square, -0.5 * square) + 1.0;
    let sin = (SIN[1..].iter().fold(SIN[0], |sum, p| sum.mul_add(square, *p)) * square).mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    (if octant & 4 == 0 { sin } else { -sin }, if matches!(octant & 6, 2 | 4) { -cos } else { cos })
}

/// MT19937.
#[derive(Clone, Debug)]
struct Mt19937 {
    state: [u32; Self::N],
    used: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(previous ^ previous >> 30).wrapping_add(i as u32);
        }
        Mt19937 { state, used: Self::N }
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let joined = self.state[i] & 0x8000_0000 | self.state[(i + 1) % Self::N] & 0x7FFF_FFFF;
            let mixed = joined >> 1 ^ if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ mixed;
        }
        self.used = 0;
    }

    fn next(&mut self) -> u32 {
        if self.used == Self::N {
            self.twist();
        }
        let mut word = self.state[self.used];
        self.used += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9D2C_5680;
        word ^= word << 15 & 0xEFC6_0000;
        word ^ word >> 18
    }
}
