//! Which attention kernel runs a shape, and its launch: the host's side of `cuda/attention.cu`.

/// One launch. Threads, queries a block and shared memory follow from the kernel's template arguments
/// and must agree with the table of contents at the end of `cuda/attention.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Kernel name without the dtype, as `attention_d40_q128` for `attention_d40_q128_f16`.
    pub kernel: &'static str,
    pub grid: (u32, u32, u32), // query tiles, heads, images
    pub threads: u32,
    pub shared_bytes: u32, // dynamic; above 48 KB the function's limit must be raised first
}

/// Template arguments of one instantiation: `warps · m_tiles · 16` queries a block, `keys` a tile.
struct Tile {
    kernel: &'static str,
    d: u32,
    warps: u32,
    m_tiles: u32,
    keys: u32,
}

const fn tile(kernel: &'static str, d: u32, warps: u32, m_tiles: u32, keys: u32) -> Tile {
    Tile { kernel, d, warps, m_tiles, keys }
}

impl Tile {
    fn queries(&self) -> usize {
        (self.warps * self.m_tiles * 16) as usize
    }

    /// Two stages of K and V; a row of K is padded to a multiple of 16 elements, and rows of both to
    /// an odd number of 16-byte chunks.
    fn shared_bytes(&self) -> u32 {
        let k_chunks = self.d.div_ceil(16) * 2 | 1;
        let v_chunks = self.d / 8 | 1;
        2 * self.keys * (k_chunks + v_chunks) * 16
    }
}

/// The widest head any kernel takes.
pub const MAX_HEAD_DIM: usize = 512;

const WIDE_QUERIES: usize = 32;
const WIDE_SHARED_BYTES: u32 = 2 * 32 * 1024 + 8 * 32 * 32 * 4 + 32 * 80 + 32 * 4; // K, V; partial S; P; factors

impl AttentionPlan {
    /// The kernel for `b` images of `heads` heads of `d` columns, `t` queries against `s` keys, on a
    /// chip of `sms` multiprocessors.
    ///
    /// Large query tiles read keys and values less often; where they would leave multiprocessors
    /// idle, small ones run instead. A function of the shape and the chip alone, so that a shape has
    /// the same bits every time.
    ///
    /// # Panics
    /// If `d` is not a multiple of 8 or exceeds [`MAX_HEAD_DIM`], or there is nothing to attend to.
    pub fn choose(b: usize, heads: usize, t: usize, s: usize, d: usize, sms: usize) -> AttentionPlan {
        assert!(d.is_multiple_of(8) && 0 < d && d <= MAX_HEAD_DIM, "head dim {d}");
        assert!(b > 0 && heads > 0 && t > 0 && s > 0, "b={b} heads={heads} t={t} s={s}");
        let blocks = |queries: usize| t.div_ceil(queries) * heads * b;
        let fills = blocks(128) >= sms;
        let tile = match (d, fills) {
            (..=32, true) => tile("attention_d32_q128", 32, 4, 2, 64),
            (..=32, false) => tile("attention_d32_q64", 32, 4, 1, 64),
            (..=40, true) => tile("attention_d40_q128", 40, 4, 2, 64),
            (..=40, false) => tile("attention_d40_q64", 40, 4, 1, 64),
            (..=64, true) => tile("attention_d64_q128", 64, 4, 2, 64),
            (..=64, false) => tile("attention_d64_q64", 64, 4, 1, 64),
            (..=80, true) => tile("attention_d80_q128", 80, 8, 1, 64),
            (..=80, false) => tile("attention_d80_q64", 80, 4, 1, 64),
            (..=128, _) => tile("attention_d128_q64", 128, 4, 1, 32),
            (..=160, _) => tile("attention_d160_q64", 160, 4, 1, 32),
            _ => return AttentionPlan::wide(b, heads, t),
        };
        AttentionPlan {
            kernel: tile.kernel,
            grid: (t.div_ceil(tile.queries()) as u32, heads as u32, b as u32),
            threads: tile.warps * 32,
            shared_bytes: tile.shared_bytes(),
        }
    }

    fn wide(b: usize, heads: usize, t: usize) -> AttentionPlan {
        AttentionPlan {
            kernel: "attention_wide",
            grid: (t.div_ceil(WIDE_QUERIES) as u32, heads as u32, b as u32),
            threads: 256,
            shared_bytes: WIDE_SHARED_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: usize = 132;

    fn kernel(b: usize, heads: usize, t: usize, s: usize, d: usize) -> &'static str {
        AttentionPlan::choose(b, heads, t, s, d, H100).kernel
    }

    #[test]
    fn shapes_of_stable_diffusion() {
        assert_eq!(kernel(2, 8, 4096, 4096, 40), "attention_d40_q128");
        assert_eq!(kernel(2, 8, 4096, 77, 40), "attention_d40_q128");
        assert_eq!(kernel(2, 8, 1024, 1024, 80), "attention_d80_q64");
        assert_eq!(kernel(8, 8, 1024, 1024, 80), "attention_d80_q128");
        assert_eq!(kernel(2, 8, 256, 256, 160), "attention_d160_q64");
        assert_eq!(kernel(2, 8, 64, 77, 160), "attention_d160_q64");
        assert_eq!(kernel(1, 12, 77, 77, 64), "attention_d64_q64");
        assert_eq!(kernel(1, 1, 4096, 4096, 512), "attention_wide");
    }

    #[test]
    fn every_query_has_a_block() {
        let plan = AttentionPlan::choose(2, 8, 4096, 4096, 40, H100);
        assert_eq!((plan.grid, plan.threads, plan.shared_bytes), ((32, 8, 2), 128, 2 * 64 * (7 + 5) * 16));
        let plan = AttentionPlan::choose(1, 12, 77, 77, 64, H100);
        assert_eq!((plan.grid, plan.threads), ((2, 12, 1), 128));
        let plan = AttentionPlan::choose(3, 1, 33, 1, 512, H100);
        assert_eq!((plan.grid, plan.threads, plan.shared_bytes), ((2, 1, 3), 256, 100_992));
    }

    #[test]
    fn every_head_dim_fits_its_kernel_and_99_kb() {
        for d in (8..=MAX_HEAD_DIM).step_by(8) {
            for t in [1, 64, 77, 16384] {
                let plan = AttentionPlan::choose(1, 8, t, 77, d, H100);
                assert!(plan.shared_bytes <= 99 * 1024, "{plan:?}");
                let widest = plan.kernel.strip_prefix("attention_d").and_then(|k| k.split('_').next());
                let widest = widest.map_or(MAX_HEAD_DIM, |n| n.parse().unwrap());
                assert!(d <= widest, "d={d}: {plan:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "head dim 20")]
    fn odd_head_dim_is_refused() {
        AttentionPlan::choose(1, 1, 1, 1, 20, H100);
    }
}
