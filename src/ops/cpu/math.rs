//! Functions of many numbers, written as plain loops that the compiler turns into vector code.

use crate::ops::Activation;

/// Defines functions that are compiled for AVX-512, for AVX2 and for any CPU, and pick at run time.
///
/// For that, what they call must be `inline(always)`, closures included: loops, not `for_each`.
/// No `mul_add`: without FMA it is a library call.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $visibility fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn any($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    any($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    any($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("fma")
                {
                    // SAFETY: this CPU has these features.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            any($($arg),*)
        }
    )*};
}
pub(super) use vectorized;

/// `e^x` to 2 ulp; 0 below -87.3 (where f32 becomes subnormal), constant above 88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; n times the first is exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // (e^r - 1 - r) / r² on ±ln(2)/2, Chebyshev fit; together 8e-9 off.
    const C: [f32; 5] = [0.5, 0.166_665_77, 0.041_666_556, 0.008_363_173, 0.001_392_617_7];

    let clamped = x.clamp(-87.3, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2[0] - n * LN2[1];
    let tail = C[0] + r * (C[1] + r * (C[2] + r * (C[3] + r * C[4])));
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let result = (1.0 + (r + r * r * tail)) * f32::from_bits(exponent << 23);
    if x < -87.3 { 0.0 } else { result }
}

#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
pub fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

/// `x·Φ(x)`. Φ comes from `erfc(z) = t·exp(-z² + g(t))`, `t = 1/(1 + z/2)`, for the tail that x is in.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    // g on 1/6 ≤ t ≤ 1, that is z ≤ 10: Chebyshev fit, 5e-8 off.
    const G: [f32; 10] = [
        -1.265_454_9,
        0.998_782_46,
        0.385_283_63,
        0.041_395_964,
        -0.019_508_004,
        -0.039_866_318,
        -0.746_469_9,
        1.195_327_7,
        -0.697_536_6,
        0.148_046_05,
    ];
    let z = (x.abs() * std::f32::consts::FRAC_1_SQRT_2).min(10.0);
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut g = G[9];
    for i in (0..9).rev() {
        g = g * t + G[i];
    }
    let tail = 0.5 * t * exp(g - z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

vectorized! {
    pub fn activate(activation: Activation, xs: &mut [f32]) {
        match activation {
            Activation::Silu => {
                for x in xs {
                    *x = silu(*x);
                }
            }
            Activation::Gelu => {
                for x in xs {
                    *x = gelu(*x);
                }
            }
            Activation::QuickGelu => {
                for x in xs {
                    *x = quick_gelu(*x);
                }
            }
            Activation::Relu => {
                for x in xs {
                    *x = if *x < 0.0 { 0.0 } else { *x };
                }
            }
            Activation::Tanh3 => {
                for x in xs {
                    *x = 3.0 * (*x / 3.0).tanh();
                }
            }
            Activation::FromUnit => {
                for x in xs {
                    *x = *x * 2.0 - 1.0;
                }
            }
            Activation::ToUnit => {
                for x in xs {
                    *x = *x * 0.5 + 0.5;
                }
            }
            Activation::Identity => {}
        }
    }
}

/// Sum of `(x - origin)^power` over a slice, in f64; `power` is 1 or 2.
#[inline(always)]
pub fn moment(xs: &[f32], origin: f32, power: u32) -> f64 {
    let mut lanes = [0.0; 16];
    let (chunks, rest) = xs.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(if power == 2 { (x - origin) * (x - origin) } else { x - origin });
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(if power == 2 { (x - origin) * (x - origin) } else { x - origin });
    }
    let mut width = lanes.len();
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> impl Iterator<Item = f32> {
        (-12_000..=12_000).map(|i| i as f32 * 1e-3)
    }

    #[test]
    fn exp_is_accurate_and_saturates() {
        for x in grid().map(|x| 7.0 * x) {
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 2.5e-7, "exp({x}) = {}", exp(x));
        }
        assert_eq!((exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 1.0));
        assert!(exp(f32::NAN).is_nan() && exp(1000.0).is_finite());
    }

    /// Φ by the alternating series of erf, which f64 carries to |x| = 5.
    fn phi(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / (2.0 * n as f64);
            sum += term / (2 * n + 1) as f64;
        }
        0.5 + sum / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn gelu_is_the_exact_one() {
        for x in grid().filter(|x| x.abs() < 5.0) {
            let want = f64::from(x) * phi(f64::from(x));
            let got = f64::from(gelu(x));
            assert!((got - want).abs() < 6e-7 * want.abs().max(0.1), "gelu({x}) = {got}, not {want}");
        }
        assert!(gelu(f32::NAN).is_nan() && gelu(-30.0) == 0.0 && gelu(30.0) == 30.0);
    }
}
