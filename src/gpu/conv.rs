//! Which tile of the portable convolution a shape gets, and how often k is split.
//!
//! `cuda/conv.cu` computes an [m,k] x [k,n] product tile by tile, one block per tile. A large tile reads
//! less from L2 per operation, but a map of SD's lower levels has fewer large tiles than a GPU has
//! multiprocessors, and the last wave of blocks may be nearly empty. So every tile and every sensible
//! number of splits is priced with one formula ([`Tile::cost`]), and the cheapest is taken. Equal
//! shapes on equal devices get equal plans, and images of one shape equal splits ([`REFERENCE_IMAGES`]).

/// Elements of k that a block works on at a time.
pub const K_TILE: usize = 64;

/// Bytes that the f32 partial sums of the splits may take.
pub const PARTIAL_BYTES: usize = 64 << 20;

/// What starting a block, filling its pipeline and writing its tile costs, whatever k is.
const BLOCK_NS: f64 = 1500.0;

/// What one more kernel costs, the reduction of the splits.
const LAUNCH_NS: f64 = 1500.0;

/// Partial sums are written and read once, mostly in L2.
const PARTIAL_BYTES_PER_NS: f64 = 3000.0;

/// The fewest k tiles of a split: fewer would not fill the pipeline.
const MIN_K_TILES: usize = 4;

/// One instantiation of the kernel: `conv2d_{f16,bf16}_{name}`.
#[derive(Debug, PartialEq)]
pub struct Tile {
    pub name: &'static str,
    pub m: usize,
    pub n: usize,
    pub threads: usize,
    /// k tiles in shared memory: the one in use and those under way.
    pub stages: usize,
    /// Elements per copy; i and the pitch of x are multiples of it.
    pub vector: usize,
    /// Time that a busy H100 multiprocessor spends on one k tile of one block. Other GPUs are slower
    /// by factors that are much the same for all tiles.
    pub k_tile_ns: f64,
}

/// - 256x128: least traffic per operation; the VAE's maps and large batches, which have tiles to spare.
///   Needs 146 KB of shared memory, so not on sm_86 and sm_89.
/// - 128x160: 320, 640 and 1280 channels are multiples of 160. At 64x64 with batch 2 there are
///   64 x 2 = 128 tiles, one wave on an H100 (132 multiprocessors).
/// - 128x128: two blocks per multiprocessor, one starts or ends while the other computes.
/// - 64x160, 128x64, 64x64: maps of 32x32 and less without many splits, and small models.
/// - 128x32: few output channels: conv_out of U-Net (4) and VAE (3).
/// - 64x64_i4: i or the pitch of x is no multiple of 8: conv_in of U-Net and VAE (4).
pub static TILES: [Tile; 8] = [
    Tile { name: "256x128", m: 256, n: 128, threads: 256, stages: 3, vector: 8, k_tile_ns: 1270.0 },
    Tile { name: "128x160", m: 128, n: 160, threads: 256, stages: 4, vector: 8, k_tile_ns: 800.0 },
    Tile { name: "128x128", m: 128, n: 128, threads: 128, stages: 3, vector: 8, k_tile_ns: 680.0 },
    Tile { name: "64x160", m: 64, n: 160, threads: 128, stages: 3, vector: 8, k_tile_ns: 500.0 },
    Tile { name: "128x64", m: 128, n: 64, threads: 128, stages: 4, vector: 8, k_tile_ns: 400.0 },
    Tile { name: "64x64", m: 64, n: 64, threads: 128, stages: 4, vector: 8, k_tile_ns: 260.0 },
    Tile { name: "128x32", m: 128, n: 32, threads: 128, stages: 4, vector: 8, k_tile_ns: 260.0 },
    Tile { name: "64x64_i4", m: 64, n: 64, threads: 128, stages: 3, vector: 4, k_tile_ns: 400.0 },
];

/// A convolution as matrix products: m = b·pixels, n = o, k = kh·kw·i.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub b: usize,
    /// Images for which the splits are chosen ([`super::Company::reference`]).
    pub reference: usize,
    /// Of an image: no part has more (cuda/conv.cuh).
    pub pixels: usize,
    pub n: usize,
    pub k: usize,
    /// Parts of about that size: 1, or 4 where the map is enlarged. The others are edges.
    pub parts: usize,
    /// 8 where i, the pitch of x (in elements) and its address (in 2-byte elements) are multiples of 8, else 4.
    pub vector: usize,
}

/// What a plan depends on besides the shape.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Multiprocessors.
    pub sms: usize,
    /// Shared memory that a block may ask for.
    pub shared_bytes: usize,
}

/// How one convolution is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2dPlan {
    /// Index into [`TILES`].
    pub tile: usize,
    pub grid: (u32, u32, u32),
    pub threads: u32,
    pub shared_bytes: usize,
    pub splits: usize,
    pub k_tiles_per_split: usize,
    /// 0 with one split; else f32 sums to be given in `partial`, and `conv2d_reduce` must follow.
    pub partial_bytes: usize,
    /// Blocks of [`Conv2dPlan::REDUCE_THREADS`] threads for `conv2d_reduce`.
    pub reduce_blocks: u32,
}

impl Tile {
    /// Dynamic shared memory of a block: the stages, and 8 bytes per row for the corner of its patch.
    pub fn shared_bytes(&self) -> usize {
        self.stages * (self.m + self.n) * K_TILE * 2 + self.m * 8
    }

    fn tiles(&self, p: Product) -> usize {
        p.m().div_ceil(self.m) * p.n.div_ceil(self.n)
    }

    /// Estimated nanoseconds: the blocks of the busiest multiprocessor one after the other, then the
    /// reduction of the splits.
    fn cost(&self, p: Product, splits: usize, k_tiles: usize, device: Device) -> f64 {
        let waves = (self.tiles(p) * p.parts * splits).div_ceil(device.sms) as f64;
        let blocks = waves * (k_tiles as f64 * self.k_tile_ns + BLOCK_NS);
        if splits == 1 {
            return blocks;
        }
        blocks + LAUNCH_NS + 2.0 * partial_bytes(p, splits) as f64 / PARTIAL_BYTES_PER_NS
    }
}

fn partial_bytes(p: Product, splits: usize) -> usize {
    splits * p.parts * p.m() * p.n * 4
}

impl Product {
    fn m(&self) -> usize {
        self.b * self.pixels
    }

    fn k_tiles(&self) -> usize {
        self.k.div_ceil(K_TILE)
    }
}

impl Conv2dPlan {
    pub const REDUCE_THREADS: u32 = 256;

    /// The cheapest plan with the splits that images of this shape have. Every device that the kernels are
    /// built for has room for the smaller tiles.
    pub fn choose(p: Product, device: Device) -> Conv2dPlan {
        let k_tiles_per_split = Self::k_tiles_per_split(p, device);
        let splits = p.k_tiles().div_ceil(k_tiles_per_split);
        let (index, _) = Self::cheapest(p, device, &[k_tiles_per_split]);
        let tile = &TILES[index];
        Conv2dPlan {
            tile: index,
            grid: (tile.tiles(p) as u32, p.parts as u32, splits as u32),
            threads: tile.threads as u32,
            shared_bytes: tile.shared_bytes(),
            splits,
            k_tiles_per_split,
            partial_bytes: if splits > 1 { partial_bytes(p, splits) } else { 0 },
            reduce_blocks: (p.parts * p.m() * p.n).div_ceil(4 * Self::REDUCE_THREADS as usize) as u32,
        }
    }

    /// The most images of one launch, whose partial sums fit.
    pub fn most_images(p: Product, device: Device) -> usize {
        match p.k_tiles().div_ceil(Self::k_tiles_per_split(p, device)) {
            1 => usize::MAX,
            splits => (PARTIAL_BYTES / partial_bytes(Product { b: 1, ..p }, splits)).max(1),
        }
    }

    fn k_tiles_per_split(p: Product, device: Device) -> usize {
        let p = Product { b: p.reference, ..p };
        let k_tiles = p.k_tiles();
        let possible = |&per_split: &usize| {
            let splits = k_tiles.div_ceil(per_split);
            splits == 1 || partial_bytes(p, splits) <= PARTIAL_BYTES
        };
        // As many as so many splits need: with fewer, the last would be empty.
        let each = (1..=(k_tiles / MIN_K_TILES).max(1)).map(|splits| k_tiles.div_ceil(splits));
        let each: Vec<usize> = each.filter(possible).collect();
        Self::cheapest(p, device, &each).1
    }

    /// The best tile, and the best of these numbers of k tiles for a split.
    fn cheapest(p: Product, device: Device, k_tiles_per_split: &[usize]) -> (usize, usize) {
        let fits =
            |tile: &Tile| p.vector.is_multiple_of(tile.vector) && tile.shared_bytes() <= device.shared_bytes;
        let tiles = (0..TILES.len()).filter(|&index| fits(&TILES[index]));
        let plans =
            tiles.flat_map(|index| k_tiles_per_split.iter().map(move |&per_split| (index, per_split)));
        let cost = |&(index, per_split): &(usize, usize)| {
            TILES[index].cost(p, p.k_tiles().div_ceil(per_split), per_split, device)
        };
        plans.min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("a tile that fits every device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::REFERENCE_IMAGES;

    const H100: Device = Device { sms: 132, shared_bytes: 227 << 10 };
    const RTX_4090: Device = Device { sms: 128, shared_bytes: 99 << 10 };

    fn product(b: usize, pixels: usize, n: usize, k: usize) -> Product {
        Product { b, reference: REFERENCE_IMAGES, pixels, n, k, parts: 1, vector: 8 }
    }

    fn plan(b: usize, pixels: usize, n: usize, k: usize, device: Device) -> Conv2dPlan {
        Conv2dPlan::choose(product(b, pixels, n, k), device)
    }

    /// Every 3x3 and 1x1 convolution of SD 1.5 at 512x512: (pixels, n, k).
    fn sd15() -> Vec<(usize, usize, usize)> {
        let mut shapes = Vec::new();
        for (size, n, inputs) in [
            (64, 320, [320, 640, 960].as_slice()),
            (32, 640, &[320, 640, 960, 1280, 1920]),
            (16, 1280, &[640, 1280, 1920, 2560]),
            (8, 1280, &[1280, 2560]),
        ] {
            for &i in inputs {
                shapes.extend([(size * size, n, 9 * i), (size * size, n, i)]);
            }
        }
        shapes
    }

    #[test]
    fn one_wave_without_splits_at_64x64() {
        let plan = plan(2, 4096, 320, 2880, H100);
        assert_eq!((TILES[plan.tile].name, plan.splits, plan.grid), ("128x160", 1, (128, 1, 1)));
        assert_eq!((plan.partial_bytes, plan.threads), (0, 256));
    }

    #[test]
    fn small_maps_fill_the_gpu_with_splits() {
        for (pixels, k) in [(256, 11520), (64, 11520), (64, 23040)] {
            let plan = plan(2, pixels, 1280, k, H100);
            let blocks = plan.grid.0 * plan.grid.2;
            assert!(plan.splits > 1 && (100..=3 * 132).contains(&blocks), "{plan:?}");
        }
    }

    #[test]
    fn few_output_channels_get_the_narrow_tile() {
        assert_eq!(TILES[plan(1, 512 * 512, 3, 9 * 128, H100).tile].name, "128x32");
        assert_eq!(TILES[plan(2, 4096, 4, 9 * 320, H100).tile].name, "128x32");
    }

    #[test]
    fn large_maps_get_the_largest_tile() {
        assert_eq!(TILES[plan(1, 512 * 512, 128, 9 * 128, H100).tile].name, "256x128");
        assert_eq!(TILES[plan(1, 256 * 256, 256, 9 * 256, H100).tile].name, "256x128");
    }

    #[test]
    fn inputs_of_four_channels() {
        let plan = Conv2dPlan::choose(Product { vector: 4, ..product(2, 4096, 320, 36) }, H100);
        assert_eq!((TILES[plan.tile].name, plan.splits, plan.k_tiles_per_split), ("64x64_i4", 1, 1));
    }

    #[test]
    fn the_parts_of_an_enlarged_map_share_the_gpu() {
        let plan = Conv2dPlan::choose(Product { parts: 4, ..product(2, 64, 1280, 5120) }, H100);
        let blocks = plan.grid.0 * plan.grid.1 * plan.grid.2;
        assert!((100..=3 * 132).contains(&blocks), "{plan:?}");
        assert!(plan.partial_bytes == plan.splits * 4 * 128 * 1280 * 4 || plan.splits == 1, "{plan:?}");
    }

    #[test]
    fn plans_cover_k_and_stay_within_limits() {
        for device in [H100, RTX_4090, Device { sms: 20, shared_bytes: 99 << 10 }] {
            for (pixels, n, k) in sd15() {
                for b in [1, 2, 8] {
                    let m = pixels * b;
                    let plan = plan(b, pixels, n, k, device);
                    let k_tiles = k.div_ceil(K_TILE);
                    assert!(plan.splits * plan.k_tiles_per_split >= k_tiles, "{plan:?}");
                    assert!((plan.splits - 1) * plan.k_tiles_per_split < k_tiles, "an empty split: {plan:?}");
                    assert!(plan.shared_bytes <= device.shared_bytes, "{plan:?}");
                    let most = Conv2dPlan::most_images(product(b, pixels, n, k), device);
                    assert!(plan.partial_bytes <= PARTIAL_BYTES || b > most, "{plan:?}");
                    assert_eq!(plan.partial_bytes, if plan.splits > 1 { plan.splits * m * n * 4 } else { 0 });
                    assert_eq!(plan.grid.2 as usize, plan.splits);
                }
            }
        }
    }

    /// What decides in which order products are added up.
    #[test]
    fn splits_do_not_depend_on_the_batch() {
        for device in [H100, RTX_4090, Device { sms: 20, shared_bytes: 99 << 10 }] {
            for (pixels, n, k) in sd15() {
                for (parts, vector) in [(1, 8), (1, 4), (4, 8)] {
                    let product = |b| Product { parts, vector, ..product(b, pixels, n, k) };
                    let splits = |b| {
                        let plan = Conv2dPlan::choose(product(b), device);
                        (plan.splits, plan.k_tiles_per_split)
                    };
                    for b in [1, 3, 4, 8, 16] {
                        assert_eq!(splits(b), splits(REFERENCE_IMAGES), "{:?}", product(b));
                        let most = Conv2dPlan::most_images(product(b), device);
                        assert!(
                            Conv2dPlan::choose(product(most.min(b)), device).partial_bytes <= PARTIAL_BYTES
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn any_small_shape_has_a_plan() {
        for pixels in [1, 3, 63, 64, 65, 1000] {
            for n in [1, 3, 40, 330] {
                for k in [4, 36, 64, 72, 2880] {
                    for (vector, parts) in [(4, 1), (8, 1), (8, 4)] {
                        let plan = Conv2dPlan::choose(
                            Product { b: 1, reference: 1, pixels, n, k, parts, vector },
                            RTX_4090,
                        );
                        assert!(TILES[plan.tile].vector <= vector && plan.grid.0 >= 1, "{plan:?}");
                        assert_eq!(plan.grid.1 as usize, parts);
                    }
                }
            }
        }
    }
}
