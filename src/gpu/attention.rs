//! Which attention kernel runs a shape, and its launch: the host's side of `cuda/attention.cu`.

/// One launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Index into [`TILES`].
    pub tile: usize,
    pub grid: (u32, u32, u32), // query tiles, heads, images
    pub threads: u32,
    pub shared_bytes: usize, // dynamic; above 48 KB the function's limit must be raised first
}

/// One instantiation of the kernel: up to `d` columns a head, `warps · m_tiles · 16` queries a block,
/// `keys` keys at a time. Agrees with the table of contents at the end of `cuda/attention.cu`.
#[derive(Debug, PartialEq, Eq)]
pub struct Tile {
    /// Kernel name without the dtype: `attention_d40_q128` for `attention_d40_q128_f16`.
    pub name: &'static str,
    d: usize,
    warps: usize,
    m_tiles: usize,
    keys: usize,
}

const fn tile(name: &'static str, d: usize, warps: usize, m_tiles: usize, keys: usize) -> Tile {
    Tile { name, d, warps, m_tiles, keys }
}

/// The widest head any kernel takes.
pub const MAX_HEAD_DIM: usize = 512;

/// By head dim; of two for the same head dim, the one with more queries second.
pub static TILES: [Tile; 12] = [
    tile("attention_d32_q64", 32, 4, 1, 64),
    tile("attention_d32_q128", 32, 4, 2, 64),
    tile("attention_d40_q64", 40, 4, 1, 64),
    tile("attention_d40_q128", 40, 4, 2, 64),
    tile("attention_d64_q64", 64, 4, 1, 64),
    tile("attention_d64_q128", 64, 4, 2, 64),
    tile("attention_d80_q64", 80, 4, 1, 64),
    tile("attention_d80_q128", 80, 4, 2, 32),
    tile("attention_d128_q64", 128, 4, 1, 32),
    tile("attention_d160_q32", 160, 2, 1, 32),
    tile("attention_d160_q64", 160, 4, 1, 64),
    // Its warps share the queries and split the head dim between them.
    tile("attention_wide", MAX_HEAD_DIM, 8, 2, 32),
];

impl Tile {
    fn is_wide(&self) -> bool {
        self.d == MAX_HEAD_DIM
    }

    fn queries(&self) -> usize {
        self.m_tiles * 16 * if self.is_wide() { 1 } else { self.warps }
    }

    /// Dynamic shared memory of a block.
    pub fn shared_bytes(&self) -> usize {
        if self.is_wide() {
            // K and V; each warp's part of S; P; the factors of the rows.
            return 2 * 32 * 1024 + 8 * 32 * 32 * 4 + 32 * 80 + 32 * 4;
        }
        // Two stages of K and V; a row of K is padded to a multiple of 16 elements, and rows of both to
        // an odd number of 16-byte chunks.
        let k_chunks = (self.d.div_ceil(16) * 2) | 1;
        let v_chunks = (self.d / 8) | 1;
        2 * self.keys * (k_chunks + v_chunks) * 16
    }
}

impl AttentionPlan {
    /// The kernel for `b` images of `heads` heads of `d` columns, `t` queries against `s` keys, on a
    /// chip of `sms` multiprocessors.
    ///
    /// Large query tiles read keys and values less often; where they would leave more than a tenth of
    /// the multiprocessors idle, small ones run instead, but none with other tiles of keys than `reference`
    /// images have ([`super::Company::reference`]).
    ///
    /// # Panics
    /// If `d` is not a multiple of 8 or exceeds [`MAX_HEAD_DIM`], or there is nothing to attend to.
    pub fn choose(
        b: usize,
        reference: usize,
        heads: usize,
        t: usize,
        s: usize,
        d: usize,
        sms: usize,
    ) -> AttentionPlan {
        assert!(d.is_multiple_of(8) && 0 < d && d <= MAX_HEAD_DIM, "head dim {d}");
        assert!(b > 0 && heads > 0 && t > 0 && s > 0, "b={b} heads={heads} t={t} s={s}");
        let blocks = |tile: &Tile, b: usize| t.div_ceil(tile.queries()) * heads * b;
        let smaller = TILES.iter().position(|tile| d <= tile.d).expect("the last one takes any head");
        let larger = TILES.get(smaller + 1).filter(|tile| tile.d == TILES[smaller].d);
        let best = |b: usize| {
            let fills = larger.is_some_and(|tile| 10 * blocks(tile, b) >= 9 * sms);
            smaller + usize::from(fills)
        };
        let reference = best(reference);
        let index = if TILES[best(b)].keys == TILES[reference].keys { best(b) } else { reference };
        let tile = &TILES[index];
        AttentionPlan {
            tile: index,
            grid: (t.div_ceil(tile.queries()) as u32, heads as u32, b as u32),
            threads: tile.warps as u32 * 32,
            shared_bytes: tile.shared_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::REFERENCE_IMAGES;

    const H100: usize = 132;

    fn kernel(b: usize, heads: usize, t: usize, s: usize, d: usize) -> &'static str {
        TILES[AttentionPlan::choose(b, REFERENCE_IMAGES, heads, t, s, d, H100).tile].name
    }

    #[test]
    fn shapes_of_stable_diffusion() {
        assert_eq!(kernel(2, 8, 4096, 4096, 40), "attention_d40_q128");
        assert_eq!(kernel(2, 8, 4096, 77, 40), "attention_d40_q128");
        assert_eq!(kernel(1, 8, 512, 1024, 40), "attention_d40_q64");
        assert_eq!(kernel(1, 8, 1024, 1024, 80), "attention_d80_q128");
        assert_eq!(kernel(2, 8, 1024, 1024, 80), "attention_d80_q128");
        assert_eq!(kernel(8, 8, 1024, 1024, 80), "attention_d80_q128");
        assert_eq!(kernel(2, 8, 256, 256, 160), "attention_d160_q32");
        assert_eq!(kernel(8, 8, 256, 256, 160), "attention_d160_q32");
        assert_eq!(kernel(2, 8, 64, 77, 160), "attention_d160_q32");
        assert_eq!(kernel(1, 12, 77, 77, 64), "attention_d64_q64");
        assert_eq!(kernel(1, 1, 4096, 4096, 512), "attention_wide");
    }

    #[test]
    fn tiles_of_keys_do_not_depend_on_the_batch() {
        for sms in [H100, 20] {
            for (heads, t, s, d) in [
                (8, 4096, 4096, 40),
                (8, 1024, 77, 80),
                (8, 256, 256, 160),
                (8, 64, 64, 160),
                (10, 4096, 77, 64),
            ] {
                let keys =
                    |b| TILES[AttentionPlan::choose(b, REFERENCE_IMAGES, heads, t, s, d, sms).tile].keys;
                for b in [1, 3, 4, 8, 16] {
                    assert_eq!(keys(b), keys(REFERENCE_IMAGES), "{b} images of {t} queries, d={d}");
                }
            }
        }
    }

    #[test]
    fn every_query_has_a_block() {
        let plan = AttentionPlan::choose(2, REFERENCE_IMAGES, 8, 4096, 4096, 40, H100);
        assert_eq!((plan.grid, plan.threads, plan.shared_bytes), ((32, 8, 2), 128, 2 * 64 * (7 + 5) * 16));
        let plan = AttentionPlan::choose(1, REFERENCE_IMAGES, 12, 77, 77, 64, H100);
        assert_eq!((plan.grid, plan.threads), ((2, 12, 1), 128));
        let plan = AttentionPlan::choose(3, REFERENCE_IMAGES, 1, 33, 1, 512, H100);
        assert_eq!((plan.grid, plan.threads, plan.shared_bytes), ((2, 1, 3), 256, 100_992));
    }

    #[test]
    fn every_head_dim_fits_its_kernel_and_99_kb() {
        for d in (8..=MAX_HEAD_DIM).step_by(8) {
            for t in [1, 64, 77, 16384] {
                let plan = AttentionPlan::choose(1, REFERENCE_IMAGES, 8, t, 77, d, H100);
                assert!(plan.shared_bytes <= 99 * 1024, "{plan:?}");
                assert!(TILES[plan.tile].d >= d && plan.shared_bytes <= 99 << 10, "{d}: {plan:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "head dim 20")]
    fn odd_head_dim_is_refused() {
        AttentionPlan::choose(1, REFERENCE_IMAGES, 1, 1, 1, 20, H100);
    }
}
