//! cuRAND's Philox 4x32-10 (Salmon et al. 2011), as `torch.randn` on a CUDA device uses it.

use super::source::NoiseSource;

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// `torch.Generator("cuda")`, on a GPU with as many threads as there are elements.
///
/// Each element has a subsequence of its own and takes the first of the four normals that a block
/// gives, so the numbers do not depend on the GPU. torch itself does so up to about 270,000 elements
/// on an H100 and 41,000 on a T4, A1111 (`NV`) and sd.cpp (`--rng cuda`) always.
///
/// The numbers are those of the formula, rounded once; a GPU's fast sine differs in the last bits.
#[derive(Clone, Debug)]
pub struct Philox {
    seed: u64,
    /// Tensors drawn so far.
    calls: u64,
}

impl Philox {
    pub fn new(seed: u64) -> Self {
        Philox { seed, calls: 0 }
    }
}

/// The block of four random words with this counter.
fn block(seed: u64, mut counter: [u32; 4]) -> [u32; 4] {
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..ROUNDS {
        let [a, b] = [(0, 0), (1, 2)].map(|(m, c)| u64::from(MULTIPLIERS[m]) * u64::from(counter[c]));
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

impl NoiseSource for Philox {
    fn fill_normal(&mut self, out: &mut [f32]) {
        const UNIT: f64 = 1.0 / (1u64 << 32) as f64;
        // cuRAND's constant is an f32.
        const TURN: f64 = (std::f32::consts::TAU / (1u64 << 32) as f32) as f64;
        let calls = [self.calls as u32, (self.calls >> 32) as u32];
        for (i, out) in (0u64..).zip(out) {
            let [x, y, ..] = block(self.seed, [calls[0], calls[1], i as u32, (i >> 32) as u32]);
            let u = f64::from(x) * UNIT + UNIT / 2.0;
            let angle = f64::from(y) * TURN + TURN / 2.0;
            *out = ((-2.0 * u.ln()).sqrt() * angle.sin()) as f32;
        }
        self.calls += 1;
    }
}
