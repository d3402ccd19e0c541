//! Which tile of Hopper's convolutions a shape gets: the host's side of `cuda/conv_sm90.cu`, whose warpgroups
//! work together on a block's one tile, and of `cuda/conv_turns_sm90.cu`, whose warpgroups have tiles of
//! their own.
//!
//! Both add up the splits of k in one order, the former in a cluster of as many blocks, the latter one after the
//! other in the same block. How many there are depends on an image's shape alone ([`REFERENCE_IMAGES`]).

use std::cmp::Reverse;

use super::REFERENCE_IMAGES;
use super::clusters::{Clusters, MAX_CLUSTER};
use super::conv::{K_TILE, PARTIAL_BYTES};
use super::warpgroups::Consumers::{self, InTurns, Together};

/// One instantiation of a kernel.
#[derive(Debug, PartialEq)]
pub struct Tile {
    name: &'static str,
    pub consumers: Consumers,
    m: usize,
    pub n: usize,
    /// Blocks that bring one another a tile of the weight, in turns.
    pub sharing: usize,
    /// k tiles in shared memory.
    stages: usize,
    /// Time that an H100 multiprocessor spends on one k tile.
    k_tile_ns: f64,
}

/// What starting a block, filling its pipeline and writing its tile costs, whatever k is.
const BLOCK_NS: f64 = 5000.0;
/// Of that, finishing a tile of 128 rows: what another tile's products can hide.
const FINISH_NS: f64 = 1600.0;
/// What the blocks of a cluster need to wait for one another and to add up their sums.
const CLUSTER_NS: f64 = 2500.0;
/// What one more split costs a warpgroup in turns: a tile's sums go to memory and come back.
const KEEP_NS: f64 = 3500.0;
/// What L2 delivers where neighbouring blocks read different things: the blocks of larger clusters, each of
/// which has k tiles of its own. Others are served together when they ask for the same.
const L2_BYTES_PER_NS: f64 = 6400.0;
/// The fewest k tiles of a split: fewer would not fill the pipeline.
const MIN_K_TILES: usize = 4;
/// Most pixels along a side of a box.
const MAX_BOX: usize = 256;
/// Most images of a tile.
const MAX_IMAGES: usize = 8;

/// - 256x128: least traffic per operation; 16x16 with batch 2, in 5 splits.
/// - 128x256: the same for few pixels and many channels.
/// - 128x160: 320, 640 and 1280 channels are multiples of 160. At 64x64 and 32x32 with batch 2 they make 128 blocks of
///   1 and 2 splits, one wave on an H100 (132 multiprocessors).
/// - 128x128: 8x8 with batch 2, in 8 splits.
/// - 128x80, 128x64: little else to do, and other channel counts.
/// - 128x16: conv_out of U-Net (4 channels) and VAE (3).
/// - 128x160, 128x128 in turns: where every multiprocessor gets several tiles.
pub static TILES: [Tile; 9] = [
    together("256x128", 256, 128, 4, 650.0),
    together("128x256", 128, 256, 4, 650.0),
    together("128x160", 128, 160, 6, 500.0),
    together("128x128", 128, 128, 6, 400.0),
    together("128x80", 128, 80, 8, 385.0),
    together("128x64", 128, 64, 8, 320.0),
    together("128x16", 128, 16, 8, 200.0),
    in_turns("128x160", 128, 160, 2, 5, 450.0),
    in_turns("128x128", 128, 128, 2, 5, 365.0),
];

const fn together(name: &'static str, m: usize, n: usize, stages: usize, k_tile_ns: f64) -> Tile {
    Tile { name, consumers: Together, m, n, sharing: 1, stages, k_tile_ns }
}

const fn in_turns(
    name: &'static str,
    m: usize,
    n: usize,
    sharing: usize,
    stages: usize,
    k_tile_ns: f64,
) -> Tile {
    Tile { name, consumers: InTurns, m, n, sharing, stages, k_tile_ns }
}

impl Tile {
    /// The file in cuda/ that its kernels are in.
    pub fn file(&self) -> &'static str {
        match self.consumers {
            Together => "conv_sm90",
            InTurns => "conv_turns_sm90",
        }
    }

    /// The kernel's name, for activations of such a dtype.
    pub fn symbol(&self, dtype: &str) -> String {
        match self.consumers {
            Together => format!("conv2d_sm90_{dtype}_{}", self.name),
            InTurns => format!("conv2d_turns_sm90_{dtype}_{}", self.name),
        }
    }

    /// Dynamic shared memory of a block: the stages, two barriers of 8 bytes for each, and what is added to
    /// the sums of each image; in turns, for each of 8 warps, 16 rows of halves 16 bytes apart and 2 more.
    pub fn shared_bytes(&self) -> usize {
        let stages = self.stages * (self.k_tile_bytes() + 16);
        match self.consumers {
            Together => stages + MAX_IMAGES * self.n * 4,
            InTurns => stages + 8 * (18 * self.n * 2 + 15 * 16),
        }
    }

    fn k_tile_bytes(&self) -> usize {
        (self.m + self.n) * K_TILE * 2
    }

    /// Estimated time of so many tiles, each of so many splits.
    fn ns(&self, tiles: usize, k_tiles_per_split: usize, splits: usize, clusters: Clusters) -> f64 {
        let product = k_tiles_per_split as f64 * self.k_tile_ns;
        match self.consumers {
            Together => {
                let waves = tiles.div_ceil(clusters.resident(splits)) as f64;
                let bytes = tiles * splits * k_tiles_per_split * self.k_tile_bytes();
                let reading = if splits > 2 { bytes as f64 / L2_BYTES_PER_NS } else { 0.0 };
                let cluster = if splits > 1 { CLUSTER_NS } else { 0.0 };
                (waves * product).max(reading) + waves * (BLOCK_NS + cluster)
            }
            InTurns => {
                let turns = tiles.div_ceil(self.sharing).div_ceil(clusters.resident(self.sharing)) as f64;
                let products = splits as f64 * product;
                let kept = (splits - 1) as f64 * KEEP_NS;
                let turn = products.max((products + kept + FINISH_NS) / 2.0);
                BLOCK_NS + products + kept + (turns - 1.0) * turn
            }
        }
    }

    /// Whether it is for so many tiles, each of so many splits.
    fn takes(&self, shape: Shape, tiles: usize, splits: usize, clusters: Clusters) -> bool {
        match self.consumers {
            Together => clusters.resident(splits) > 0,
            // Where a block has one tile, nothing would overlap. Splits are there to share a tile of few images.
            InTurns => {
                let at_once = self.sharing * clusters.resident(self.sharing);
                let pays = if splits == 1 { tiles > at_once } else { shape.b > REFERENCE_IMAGES };
                let fits = at_once > 0 && self.kept_bytes(splits, clusters) <= PARTIAL_BYTES;
                pays && fits && shape.vectors
            }
        }
    }

    /// Sums of splits that all blocks in turns keep: those of 1, 2 and 4 splits, of each consumer's tile.
    fn kept_bytes(&self, splits: usize, clusters: Clusters) -> usize {
        let levels = splits.next_power_of_two().ilog2() as usize;
        levels * 2 * self.sharing * clusters.resident(self.sharing) * self.m * self.n * 4
    }
}

/// A convolution as the kernel sees it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub b: usize,
    /// Images for which the splits are chosen ([`super::Company::reference`]).
    pub reference: usize,
    /// No part has more rows and columns (cuda/conv.cuh).
    pub ho: usize,
    pub wo: usize,
    pub i: usize,
    pub o: usize,
    pub taps: usize,
    pub stride: usize,
    /// Parts of about that size: 1, or 4 where the map is enlarged. The others are edges.
    pub parts: usize,
    /// Rows of out and of what is added to it can be accessed 8 channels at a time.
    pub vectors: bool,
}

impl Shape {
    fn k_tiles(&self) -> usize {
        self.i.div_ceil(K_TILE) * self.taps
    }
}

/// A tile of m: a box of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixels {
    pub w: usize,
    pub h: usize,
    pub b: usize,
}

impl Pixels {
    /// Boxes that cover so many images of a map.
    pub fn cover(self, [b, h, w]: [usize; 3]) -> usize {
        w.div_ceil(self.w) * h.div_ceil(self.h) * b.div_ceil(self.b)
    }

    /// The box of `m` pixels of which a map takes the fewest; of equals the widest, whose rows lie together.
    fn choose(m: usize, shape: Shape) -> Pixels {
        let sides = || (0..).map(|bits| 1 << bits).take_while(|&side| side <= m);
        sides()
            .flat_map(|w| sides().map(move |h| (w, h)))
            .filter(|(w, h)| w * h <= m && w.max(h) * shape.stride <= MAX_BOX && m / w / h <= MAX_IMAGES)
            .map(|(w, h)| Pixels { w, h, b: m / w / h })
            .min_by_key(|pixels| (pixels.cover([shape.b, shape.ho, shape.wo]), Reverse((pixels.w, pixels.h))))
            .expect("a square of pixels is a box")
    }
}

/// How one convolution is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Index into [`TILES`].
    pub tile: usize,
    pub pixels: Pixels,
    /// Tiles along m times those along n, in each part.
    pub tiles: usize,
    /// Blocks of a cluster that share a tile's sums; in turns, sums that a block adds up.
    pub splits: usize,
    pub k_tiles_per_split: usize,
    /// Estimated time.
    pub ns: f64,
}

impl Plan {
    /// The cheapest plan with the splits that images of this shape have.
    pub fn choose(shape: Shape, clusters: Clusters) -> Plan {
        let k_tiles = shape.k_tiles();
        let most_splits = MAX_CLUSTER.min((k_tiles / MIN_K_TILES).max(1));
        // Where so many splits need fewer k tiles each, the last would be empty.
        let fills = |&splits: &usize| k_tiles.div_ceil(k_tiles.div_ceil(splits)) == splits;
        let reference = Shape { b: shape.reference, ..shape };
        let plans = (1..=most_splits)
            .filter(fills)
            .flat_map(|splits| Self::with_splits(reference, splits, clusters).map(|plan| (splits, plan)));
        let splits = plans.min_by(|(_, a), (_, b)| a.ns.total_cmp(&b.ns)).expect("one split is possible").0;
        Self::with_splits(shape, splits, clusters).expect("as for the reference")
    }

    /// `None` where no place has so many blocks.
    fn with_splits(shape: Shape, splits: usize, clusters: Clusters) -> Option<Plan> {
        let k_tiles_per_split = shape.k_tiles().div_ceil(splits);
        let plans = TILES.iter().enumerate().filter_map(|(index, tile)| {
            let pixels = Pixels::choose(tile.m, shape);
            let tiles = pixels.cover([shape.b, shape.ho, shape.wo]) * shape.o.div_ceil(tile.n);
            let all = tiles * shape.parts;
            tile.takes(shape, all, splits, clusters).then(|| {
                let ns = tile.ns(all, k_tiles_per_split, splits, clusters);
                Plan { tile: index, pixels, tiles, splits, k_tiles_per_split, ns }
            })
        });
        plans.min_by(|a, b| a.ns.total_cmp(&b.ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Clusters {
        Clusters::of_hopper(132)
    }

    fn conv3x3(b: usize, side: usize, i: usize, o: usize) -> Shape {
        Shape {
            b,
            reference: REFERENCE_IMAGES,
            ho: side,
            wo: side,
            i,
            o,
            taps: 9,
            stride: 1,
            parts: 1,
            vectors: true,
        }
    }

    #[test]
    fn the_maps_of_sd15_are_one_wave() {
        for (side, channels) in [(64, 320), (32, 640), (16, 1280), (8, 1280)] {
            let plan = Plan::choose(conv3x3(2, side, channels, channels), h100());
            assert!(plan.tiles <= h100().resident(plan.splits), "{plan:?}");
            assert!(plan.tiles * plan.splits >= 80, "{plan:?}");
        }
    }

    #[test]
    fn warpgroups_take_turns_where_there_are_several_waves() {
        let consumers = |shape| TILES[Plan::choose(shape, h100()).tile].consumers;
        for (b, side, i, o) in [(8, 64, 320, 320), (8, 32, 640, 640), (2, 128, 320, 320), (1, 512, 128, 128)]
        {
            let shape = conv3x3(b, side, i, o);
            assert_eq!(consumers(shape), InTurns, "{shape:?}");
            assert_eq!(consumers(Shape { vectors: false, ..shape }), Together, "{shape:?}");
        }
        assert_eq!(consumers(conv3x3(2, 64, 320, 320)), Together);
    }

    #[test]
    fn boxes_of_a_map_of_one_row_are_rows() {
        let shape = Shape {
            b: 1,
            reference: 1,
            ho: 1,
            wo: 8192,
            i: 320,
            o: 2560,
            taps: 1,
            stride: 1,
            parts: 1,
            vectors: true,
        };
        let plan = Plan::choose(shape, h100());
        assert_eq!(plan.pixels, Pixels { w: TILES[plan.tile].m, h: 1, b: 1 });
    }

    #[test]
    fn plans_cover_everything_and_fit() {
        for tile in &TILES {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}");
        }
        for (b, ho, wo) in [(1, 1, 1), (3, 7, 9), (2, 96, 96), (1, 512, 512), (8, 13, 200)] {
            for (i, o, taps, stride) in [(64, 64, 1, 1), (320, 4, 9, 1), (1920, 640, 9, 1), (72, 88, 9, 2)] {
                let shape =
                    Shape { b, reference: b, ho, wo, i, o, taps, stride, parts: 1, vectors: o % 8 == 0 };
                let plan = Plan::choose(shape, h100());
                let Pixels { w, h, b: images } = plan.pixels;
                assert_eq!(w * h * images, TILES[plan.tile].m);
                assert!(w * stride <= MAX_BOX && h * stride <= MAX_BOX && images <= MAX_IMAGES, "{plan:?}");
                let k_tiles = i.div_ceil(K_TILE) * taps;
                assert!(plan.splits * plan.k_tiles_per_split >= k_tiles);
                assert!((plan.splits - 1) * plan.k_tiles_per_split < k_tiles, "an empty split: {plan:?}");
            }
        }
    }

    /// What decides in which order products are added up: SD 1.5's and XL's maps, and odd ones.
    #[test]
    fn splits_do_not_depend_on_the_batch() {
        for clusters in [h100(), Clusters::of_hopper(78)] {
            for (side, i, o) in [
                (64, 320, 320),
                (64, 640, 320),
                (64, 320, 4),
                (32, 640, 640),
                (32, 1920, 640),
                (16, 640, 1280),
                (16, 2560, 1280),
                (8, 1280, 1280),
                (8, 2560, 1280),
                (128, 960, 320),
                (64, 1920, 640),
                (32, 2560, 1280),
                (64, 512, 512),
                (9, 1280, 1280),
                (13, 72, 88),
            ] {
                for (taps, stride, parts) in [(9, 1, 1), (9, 2, 1), (4, 1, 4), (1, 1, 1)] {
                    let shape =
                        |b| Shape { taps, stride, parts, vectors: o % 8 == 0, ..conv3x3(b, side, i, o) };
                    let splits = |b| {
                        let plan = Plan::choose(shape(b), clusters);
                        (plan.splits, plan.k_tiles_per_split)
                    };
                    for b in [1, 3, 4, 8, 16] {
                        assert_eq!(splits(b), splits(REFERENCE_IMAGES), "{:?}", shape(b));
                    }
                }
            }
        }
    }

    #[test]
    fn splits_of_many_images_follow_each_other_in_a_block() {
        let plan = |b| Plan::choose(conv3x3(b, 16, 1280, 1280), h100());
        assert_eq!((TILES[plan(2).tile].consumers, plan(2).splits), (Together, 5));
        assert_eq!((TILES[plan(8).tile].consumers, plan(8).splits), (InTurns, 5));
        for tile in TILES.iter().filter(|tile| tile.consumers == InTurns) {
            assert!(tile.kept_bytes(MAX_CLUSTER, h100()) <= PARTIAL_BYTES, "{tile:?}");
        }
    }
}
