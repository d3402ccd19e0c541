//! Hopper's attention: the host's side of `cuda/attention_sm90.cu`.

use super::tensor_map::BOX_CHANNELS;

/// Four warpgroups.
pub const THREADS: u32 = 512;
/// Queries of a warpgroup, and so of a box.
pub const QUERIES: usize = 64;
/// With fewer keys there is nothing to overlap.
const MIN_KEYS: usize = 200;
const WARPGROUPS: usize = 4;

/// One instantiation of the kernel: `attention_sm90_{f16,bf16}_{name}`.
#[derive(Debug, PartialEq, Eq)]
pub struct Tile {
    /// Channels of a head and queries of a block.
    pub name: &'static str,
    d: usize,
    queries: usize,
    /// Keys of a tile, and so of a box.
    pub keys: usize,
    /// Tiles of keys and values in shared memory, for each group of warpgroups with the same keys. With one,
    /// that is all keys there may be.
    stages: usize,
}

const fn tile(name: &'static str, d: usize, queries: usize, keys: usize, stages: usize) -> Tile {
    Tile { name, d, queries, keys, stages }
}

pub static TILES: [Tile; 7] = [
    tile("d40_q256", 40, 256, 96, 6),
    tile("d40_q128", 40, 128, 96, 4),
    tile("d64_q256", 64, 256, 80, 6),
    tile("d64_q128", 64, 128, 80, 4),
    tile("d80_q256", 80, 256, 64, 4),
    tile("d80_q128", 80, 128, 64, 3),
    tile("d160_q64", 160, 64, 64, 1),
];

impl Tile {
    /// Groups of warpgroups with keys of their own.
    fn groups(&self) -> usize {
        WARPGROUPS * QUERIES / self.queries
    }

    /// Dynamic shared memory of a block: Q, K and V of every stage, and the barriers.
    pub fn shared_bytes(&self) -> usize {
        let row = self.d.div_ceil(BOX_CHANNELS) * BOX_CHANNELS * 2;
        let stages = self.groups() * self.stages;
        (self.queries + stages * 2 * self.keys) * row + 8 * (1 + 2 * stages)
    }

    /// Blocks along the queries.
    pub fn blocks(&self, queries: usize) -> usize {
        queries.div_ceil(self.queries)
    }

    /// Whether every group has keys, and a place for them.
    fn takes(&self, keys: usize) -> bool {
        keys > (self.groups() - 1) * self.keys && (self.stages > 1 || keys <= self.groups() * self.keys)
    }
}

/// Index into [`TILES`] for `heads` heads of all the images that it is chosen for
/// ([`super::Company::reference`]), each of `d` channels, with `t` queries over `s` keys;
/// `None` where the portable kernel is better or the only one.
///
/// Larger blocks read keys and values less often; smaller ones win where they leave fewer multiprocessors
/// idle at the end, and have groups with keys of their own, whose sums are added up last.
pub fn choose(
    d: usize,
    heads: usize,
    t: usize,
    s: usize,
    causal: bool,
    multiprocessors: usize,
) -> Option<usize> {
    if s < MIN_KEYS || causal {
        return None;
    }
    let time = |tile: &Tile| (tile.blocks(t) * heads).div_ceil(multiprocessors) * tile.queries;
    let candidates = TILES.iter().enumerate().filter(|(_, tile)| tile.d == d && tile.takes(s));
    candidates.min_by_key(|(_, tile)| time(tile)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::REFERENCE_IMAGES;

    fn kernel(d: usize, heads: usize, t: usize, s: usize) -> Option<&'static str> {
        choose(d, REFERENCE_IMAGES * heads, t, s, false, 132).map(|index| TILES[index].name)
    }

    #[test]
    fn tiles_fit_an_h100() {
        for tile in &TILES {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}");
            assert_eq!(tile.name, format!("d{}_q{}", tile.d, tile.queries));
        }
    }

    #[test]
    fn shapes_of_stable_diffusion() {
        assert_eq!(kernel(40, 8, 4096, 4096), Some("d40_q256"));
        assert_eq!(kernel(80, 8, 1024, 1024), Some("d80_q128"));
        assert_eq!(kernel(160, 8, 256, 256), Some("d160_q64"));
        assert_eq!(kernel(64, 10, 4096, 4096), Some("d64_q128"));
    }

    #[test]
    fn others_are_left_to_the_portable_kernel() {
        assert_eq!(kernel(40, 8, 4096, 77), None);
        assert_eq!(kernel(160, 8, 1024, 1024), None);
        assert_eq!(kernel(512, 1, 4096, 4096), None);
        assert_eq!(choose(64, 8, 4096, 4096, true, 132), None);
    }

    #[test]
    fn every_group_has_keys() {
        for s in MIN_KEYS..1000 {
            for tile in TILES.iter().filter(|tile| tile.takes(s)) {
                assert!(s.div_ceil(tile.keys) >= tile.groups(), "{tile:?}, {s} keys");
            }
        }
    }
}
