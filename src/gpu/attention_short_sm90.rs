//! Hopper's attention over few keys: the host's side of `cuda/attention_short_sm90.cu`.

use super::tensor_map::BOX_CHANNELS;

pub const WARPGROUP: usize = 128;
/// Queries of a tile, and so of a box.
pub const QUERIES: usize = 64;
/// The most keys, and those of a box.
pub const KEYS: usize = 80;

/// One instantiation of the kernel: `attention_short_sm90_{f16,bf16}_d{d}`.
#[derive(Debug, PartialEq, Eq)]
pub struct Tile {
    pub d: usize,
    /// The most that share the keys of a block.
    warpgroups: usize,
}

pub static TILES: [Tile; 4] = [
    Tile { d: 40, warpgroups: 4 },
    Tile { d: 64, warpgroups: 4 },
    Tile { d: 80, warpgroups: 4 },
    Tile { d: 160, warpgroups: 2 },
];

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Blocks of each head.
    pub blocks: usize,
    /// Of a block.
    pub warpgroups: usize,
}

impl Tile {
    /// Dynamic shared memory of a block: K and V, two tiles of Q for each warpgroup, the barriers.
    pub fn shared_bytes(&self, warpgroups: usize) -> usize {
        let row = self.d.div_ceil(BOX_CHANNELS) * BOX_CHANNELS * 2;
        (2 * KEYS + warpgroups * 2 * QUERIES) * row + 8 * (1 + 2 * warpgroups)
    }

    /// The most that a launch asks for.
    pub fn most_shared_bytes(&self) -> usize {
        self.shared_bytes(self.warpgroups)
    }

    /// About one block for each multiprocessor, with as many warpgroups as have a tile of queries.
    pub fn plan(&self, queries: usize, heads: usize, multiprocessors: usize) -> Plan {
        let tiles = queries.div_ceil(QUERIES);
        let blocks = (multiprocessors / heads).clamp(1, tiles);
        let warpgroups = tiles.div_ceil(blocks).min(self.warpgroups);
        Plan { blocks: blocks.min(tiles.div_ceil(warpgroups)), warpgroups }
    }
}

/// Index into [`TILES`] for heads of `d` channels over `s` keys; `None` where this is no kernel for them.
pub fn choose(d: usize, s: usize, causal: bool) -> Option<usize> {
    TILES.iter().position(|tile| tile.d == d && s <= KEYS && !causal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_an_h100() {
        for tile in &TILES {
            assert!(tile.most_shared_bytes() <= 227 << 10, "{tile:?}");
        }
    }

    #[test]
    fn every_warpgroup_of_a_block_may_have_queries() {
        for tile in &TILES {
            for (queries, heads) in [(4096, 16), (4096, 64), (64, 16), (1, 1), (200, 3), (16384, 200)] {
                let Plan { blocks, warpgroups } = tile.plan(queries, heads, 132);
                let tiles = queries.div_ceil(QUERIES);
                assert!(blocks >= 1 && (blocks - 1) * warpgroups < tiles, "{tile:?}, {queries} queries");
                assert!((1..=tile.warpgroups).contains(&warpgroups), "{tile:?}, {queries} queries");
            }
        }
    }

    #[test]
    fn prompts_of_sd15_fill_an_h100() {
        let plan = |index: usize, queries| TILES[index].plan(queries, 16, 132);
        assert_eq!(plan(0, 4096), Plan { blocks: 8, warpgroups: 4 });
        assert_eq!(plan(2, 1024), Plan { blocks: 8, warpgroups: 2 });
        assert_eq!(plan(3, 256), Plan { blocks: 4, warpgroups: 1 });
        assert_eq!(plan(3, 64), Plan { blocks: 1, warpgroups: 1 });
    }

    #[test]
    fn prompts_alone() {
        assert_eq!(choose(40, 77, false), Some(0));
        assert_eq!(choose(160, 64, false), Some(3));
        assert_eq!(choose(40, 154, false), None);
        assert_eq!(choose(64, 77, true), None);
    }
}
