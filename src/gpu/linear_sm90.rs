//! Which tile of Hopper's linear layer a shape gets: the host's side of `cuda/linear_sm90.cu`.

use super::conv::K_TILE;
use super::warpgroups::Consumers::{self, InTurns, Together};

/// One instantiation of a kernel: `{kernel}_sm90_{f16,bf16}_{m}x{n}`.
#[derive(Debug, PartialEq)]
pub struct Tile {
    kernel: &'static str,
    consumers: Consumers,
    /// Rows of x and of the weight.
    pub m: usize,
    n: usize,
    /// Columns of the result: half of n with GEGLU.
    pub columns: usize,
    /// k tiles in shared memory.
    stages: usize,
    /// Time that an H100 multiprocessor spends on one k tile.
    k_tile_ns: f64,
    /// And on finishing a tile.
    finish_ns: f64,
}

/// What the first tile waits for before anything overlaps.
const START_NS: f64 = 1500.0;

const fn linear(m: usize, n: usize, stages: usize, k_tile_ns: f64, finish_ns: f64) -> Tile {
    Tile { kernel: "linear", consumers: InTurns, m, n, columns: n, stages, k_tile_ns, finish_ns }
}

const fn together(m: usize, n: usize, stages: usize, k_tile_ns: f64, finish_ns: f64) -> Tile {
    let kernel = "linear_together";
    Tile { kernel, consumers: Together, m, n, columns: n, stages, k_tile_ns, finish_ns }
}

const fn geglu(m: usize, n: usize, stages: usize, k_tile_ns: f64, finish_ns: f64) -> Tile {
    Tile { kernel: "geglu", consumers: InTurns, m, n, columns: n / 2, stages, k_tile_ns, finish_ns }
}

/// 160 divides 320, 640 and 1280 columns; with 128 rows it is also about the largest tile whose sums fit the
/// registers of one warpgroup.
pub static LINEAR: [Tile; 5] = [
    linear(128, 160, 4, 440.0, 800.0),
    linear(64, 160, 6, 320.0, 450.0),
    linear(64, 80, 8, 205.0, 300.0),
    together(128, 160, 5, 440.0, 450.0),
    together(128, 80, 7, 300.0, 300.0),
];

pub static GEGLU: [Tile; 2] = [geglu(128, 160, 5, 440.0, 1200.0), geglu(64, 160, 6, 320.0, 650.0)];

impl Tile {
    /// The kernel's name, for activations of such a dtype.
    pub fn symbol(&self, dtype: &str) -> String {
        format!("{}_sm90_{dtype}_{}x{}", self.kernel, self.m, self.n)
    }

    /// Dynamic shared memory of a block: the stages with two barriers each, and the tiles of halves that are
    /// being finished.
    pub fn shared_bytes(&self) -> usize {
        let finished = match self.consumers {
            InTurns => 2,
            Together => 1,
        };
        self.stages * ((self.m + self.n) * K_TILE * 2 + 16) + finished * self.m * self.columns * 2
    }

    fn ns(&self, m: usize, columns: usize, k: usize, multiprocessors: usize) -> f64 {
        let tiles = m.div_ceil(self.m) * columns.div_ceil(self.columns);
        let turns = tiles.div_ceil(multiprocessors) as f64;
        let product = k.div_ceil(K_TILE) as f64 * self.k_tile_ns;
        let last = product + self.finish_ns;
        let turn = match self.consumers {
            InTurns => product.max(last / 2.0),
            Together => last,
        };
        START_NS + (turns - 1.0) * turn + last
    }
}

/// Whether a result of [rows,columns] with k terms in each sum, for all the images that it is chosen for, is this kernel's and not
/// cuBLASLt's, which may add up otherwise. It is faster, as measured (cuda/LOG.md), where there are many rows and
/// few weights, or columns that fill cuBLASLt's tiles of 128 and 256 badly, as 320 and 960 do.
pub fn is_faster(rows: usize, columns: usize, k: usize) -> bool {
    let fills_badly = columns.is_multiple_of(160) && !columns.is_multiple_of(128);
    rows >= 2048 && (columns * k <= 640 * 640 || fills_badly)
}

/// How one linear layer is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Index into the tiles that were to choose from.
    pub tile: usize,
    pub tiles: usize,
    pub tiles_n: usize,
    pub blocks: usize,
}

impl Plan {
    /// For a result of [m,columns] and k terms in each sum.
    pub fn choose(tiles: &[Tile], m: usize, columns: usize, k: usize, multiprocessors: usize) -> Plan {
        let ns = |tile: &Tile| tile.ns(m, columns, k, multiprocessors);
        let cheapest = tiles.iter().enumerate().min_by(|a, b| ns(a.1).total_cmp(&ns(b.1)));
        let (index, tile) = cheapest.expect("there are tiles");
        let tiles_n = columns.div_ceil(tile.columns);
        let tiles = m.div_ceil(tile.m) * tiles_n;
        Plan { tile: index, tiles, tiles_n, blocks: tiles.min(multiprocessors) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_an_h100() {
        for tile in LINEAR.iter().chain(&GEGLU) {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}");
        }
    }

    #[test]
    fn plans_cover_everything() {
        for (m, columns, k) in [(8192, 1280, 320), (512, 1280, 1280), (77, 200, 72), (1, 8, 8)] {
            for tiles in [&LINEAR[..], &GEGLU] {
                let plan = Plan::choose(tiles, m, columns, k, 132);
                let tile = &tiles[plan.tile];
                assert!(plan.tiles_n * tile.columns >= columns, "{plan:?}");
                assert!(plan.tiles / plan.tiles_n * tile.m >= m, "{plan:?}");
                assert!((1..=132).contains(&plan.blocks) && plan.blocks <= plan.tiles);
            }
        }
    }

    /// Full tiles in turns that end together, at every resolution of SD 1.5's U-Net but the lowest.
    #[test]
    fn geglu_takes_the_large_tile_where_it_fills_the_chip() {
        for (m, columns, k) in [(8192, 1280, 320), (2048, 2560, 640), (512, 5120, 1280)] {
            assert_eq!(GEGLU[Plan::choose(&GEGLU, m, columns, k, 132).tile].m, 128);
        }
        assert_eq!(GEGLU[Plan::choose(&GEGLU, 128, 5120, 1280, 132).tile].m, 64);
    }

    #[test]
    fn consumers_work_together_where_a_block_has_one_tile() {
        let chosen = |m, columns, k| &LINEAR[Plan::choose(&LINEAR, m, columns, k, 132).tile];
        assert_eq!(chosen(8192, 320, 320).consumers, Together);
        assert_eq!(chosen(8192, 960, 320).consumers, InTurns);
    }
}
