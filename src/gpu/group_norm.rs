//! Which kernels a group norm gets: the host's side of `cuda/group_norm.cu`.
//!
//! How an image's rows are cut, and so the order in which they are added up, depends on its shape alone: into
//! parts where [`REFERENCE_IMAGES`] are held in registers by clusters that all run at once, else into splits.

use super::REFERENCE_IMAGES;
use super::clusters::{Clusters, MAX_CLUSTER};

/// Most channels of a block of any of the kernels, which has a thread for each 16 bytes of them.
pub const CHANNELS: usize = 4096;
/// Rows that a thread of `group_norm_fused_few` holds, mirrored in cuda/group_norm.cu.
const FEW_ROWS: usize = 4;
/// Splits that `group_norm_apply` can add up, mirrored in cuda/group_norm.cu.
const MOST_SPLITS: usize = 288;
/// The fewest rows of a split for each lane of a block, and of a block of `group_norm_apply`.
const MIN_SPLIT_ROWS: usize = 8;
const MIN_ROWS: usize = 4;

/// What there is to norm.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub b: usize,
    /// Images for which it is chosen how rows are cut ([`super::Company::reference`]).
    pub reference: usize,
    pub pixels: usize,
    pub c: usize,
    pub groups: usize,
    /// Elements of 16 bytes.
    pub vector: usize,
}

/// Parts of the rows of an image, the same for all of its slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub slabs: usize,
    pub parts: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// `group_norm_fused`, where threads have few rows `group_norm_fused_few`: the parts of a slab are a cluster.
    Fused { parts: Parts, few: bool },
    /// `group_norm_stats`, then `group_norm_apply` on so many rows a block.
    Twice { splits: usize, rows_per_split: usize, rows_per_block: usize },
}

impl Shape {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        CHANNELS / self.vector
    }

    /// Slabs of an image, each with the fewest groups that are whole vectors, and the rows that a block walks
    /// at once.
    fn slabs(&self) -> Option<(usize, usize)> {
        let channels = self.c / self.groups;
        let groups = (1..=self.vector).find(|groups| (groups * channels).is_multiple_of(self.vector))?;
        let lanes = self.threads() / (groups * channels / self.vector);
        self.groups.is_multiple_of(groups).then_some((self.groups / groups, lanes))
    }

    /// Rows that a thread of `group_norm_fused` holds: FUSED_VECTORS in cuda/group_norm.cu.
    fn held(&self) -> usize {
        if self.vector == 8 { 14 } else { 4 }
    }

    /// On a chip of so many multiprocessors.
    pub fn plan(&self, multiprocessors: usize, clusters: Clusters) -> Plan {
        if let Some((parts, rows)) = self.parts(clusters) {
            return Plan::Fused { parts, few: rows <= FEW_ROWS };
        }
        // Two for each multiprocessor: as many blocks run at once, and one image is to fill the chip.
        let blocks = 2 * multiprocessors * REFERENCE_IMAGES / self.reference;
        let rows_per_split = self.rows_of_each(blocks, MIN_SPLIT_ROWS);
        Plan::Twice {
            splits: self.pixels.div_ceil(rows_per_split),
            rows_per_split,
            rows_per_block: self.rows_of_each(2 * multiprocessors / self.b, MIN_ROWS),
        }
    }

    /// The parts of each slab, and the rows that a thread of one holds. `None` where blocks cannot hold that much, or
    /// the clusters of the images that it is chosen for would not run at once: in several waves they neither load
    /// while others store, nor fill the chip (cuda/LOG.md).
    fn parts(&self, clusters: Clusters) -> Option<(Parts, usize)> {
        let (slabs, lanes) = self.slabs()?;
        let rows = |parts: usize| self.pixels.div_ceil(parts).div_ceil(lanes);
        let fits = |&parts: &usize| rows(parts) <= self.held();
        let possible = (1..=MAX_CLUSTER).filter(|&parts| clusters.resident(parts) > 0).filter(fits);
        // As many parts as all run at once, with work for all of their threads.
        let busy = |&parts: &usize| {
            slabs * self.reference <= clusters.resident(parts) && self.pixels / parts >= lanes
        };
        let parts = possible.clone().rfind(busy).or_else(|| possible.clone().find(|&parts| parts == 1))?;
        Some((Parts { slabs, parts }, rows(parts)))
    }

    /// Rows of one of so many blocks for each image, but at least `fewest` for each of its lanes.
    fn rows_of_each(&self, blocks: usize, fewest: usize) -> usize {
        let lanes = self.threads() / (self.c / self.vector);
        self.pixels.div_ceil(blocks.clamp(1, MOST_SPLITS)).max(fewest * lanes).min(self.pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(b: usize, side: usize, c: usize) -> Plan {
        let shape = Shape { b, reference: REFERENCE_IMAGES, pixels: side * side, c, groups: 32, vector: 8 };
        shape.plan(132, Clusters::of_hopper(132))
    }

    fn fused(slabs: usize, parts: usize) -> Plan {
        Plan::Fused { parts: Parts { slabs, parts }, few: false }
    }

    fn few(slabs: usize, parts: usize) -> Plan {
        Plan::Fused { parts: Parts { slabs, parts }, few: true }
    }

    #[test]
    fn small_maps_of_sd15_are_held_in_registers() {
        assert_eq!(plan(2, 64, 320), fused(8, 6));
        assert_eq!(plan(2, 64, 640), fused(16, 3));
        assert_eq!(plan(2, 32, 640), few(16, 3));
        assert_eq!(plan(2, 32, 1920), fused(16, 3));
        assert_eq!(plan(2, 8, 2560), few(32, 1));
        assert_eq!(plan(8, 8, 2560), few(32, 1));
        assert_eq!(plan(1, 64, 512), fused(32, 2));
    }

    #[test]
    fn more_images_are_added_up_alike_or_fast() {
        assert_eq!(plan(8, 64, 320), fused(8, 6));
        assert_eq!(plan(8, 32, 1920), fused(16, 3));
        let fastest = Shape { b: 8, reference: 8, pixels: 64 * 64, c: 320, groups: 32, vector: 8 };
        assert!(matches!(fastest.plan(132, Clusters::of_hopper(132)), Plan::Twice { .. }));
    }

    #[test]
    fn larger_maps_are_read_twice() {
        let twice =
            |splits, rows_per_split, rows_per_block| Plan::Twice { splits, rows_per_split, rows_per_block };
        assert_eq!(plan(2, 64, 960), twice(128, 32, 32));
        assert_eq!(plan(8, 64, 960), twice(128, 32, 125));
        assert_eq!(plan(1, 512, 128), twice(264, 993, 993));
        assert!(matches!(plan(1, 128, 512), Plan::Twice { .. }));
    }

    #[test]
    fn other_chips_have_no_clusters() {
        let shape =
            Shape { b: 8, reference: REFERENCE_IMAGES, pixels: 64 * 64, c: 320, groups: 32, vector: 8 };
        assert!(matches!(shape.plan(108, Clusters::of_single_blocks(108)), Plan::Twice { .. }));
        let shape = Shape { b: 8, pixels: 16 * 16, ..shape };
        assert_eq!(shape.plan(108, Clusters::of_single_blocks(108)), few(8, 1));
    }

    /// Parts with their number, or splits with that of their rows.
    fn cut(shape: Shape, clusters: Clusters) -> (bool, usize, usize) {
        match shape.plan(132, clusters) {
            Plan::Fused { parts: Parts { slabs, parts }, .. } => (true, slabs, parts),
            Plan::Twice { splits, rows_per_split, .. } => (false, splits, rows_per_split),
        }
    }

    /// What decides in which order numbers are added up.
    #[test]
    fn rows_are_cut_alike_in_any_company() {
        for clusters in [Clusters::of_hopper(132), Clusters::of_single_blocks(132)] {
            for (side, c) in [
                (64, 320),
                (64, 640),
                (64, 960),
                (32, 320),
                (32, 640),
                (32, 1920),
                (16, 1280),
                (16, 2560),
                (8, 1280),
                (8, 2560),
                (128, 320),
                (128, 640),
                (64, 512),
                (128, 512),
                (256, 256),
                (512, 128),
                (9, 1280),
            ] {
                let shape = |b| Shape {
                    b,
                    reference: REFERENCE_IMAGES,
                    pixels: side * side,
                    c,
                    groups: 32,
                    vector: 8,
                };
                for b in [1, 3, 4, 8, 16] {
                    let [got, want] = [b, REFERENCE_IMAGES].map(|b| cut(shape(b), clusters));
                    assert_eq!(got, want, "{:?}", shape(b));
                }
            }
        }
    }

    #[test]
    fn every_row_and_slab_is_somebodys() {
        for b in [1, 2, 3, 7, 300] {
            for pixels in [1, 63, 1024, 4097, 70_000] {
                for (c, groups) in [(8, 4), (32, 1), (320, 32), (960, 32), (4096, 32)] {
                    for vector in [4, 8] {
                        let shape =
                            Shape { b, reference: b.max(REFERENCE_IMAGES), pixels, c, groups, vector };
                        if let Plan::Twice { rows_per_block, .. } = shape.plan(132, Clusters::of_hopper(132))
                        {
                            assert!((1..=pixels).contains(&rows_per_block), "{shape:?}");
                        }
                        match cut(shape, Clusters::of_hopper(132)) {
                            (false, splits, rows_per_split) => {
                                let rows = splits * rows_per_split;
                                assert!(rows >= pixels && splits <= MOST_SPLITS, "{shape:?}");
                            }
                            (true, slabs, parts) => {
                                let (_, lanes) = shape.slabs().expect("it has slabs");
                                let held = parts * lanes * shape.held();
                                assert!(parts <= MAX_CLUSTER && pixels <= held, "{shape:?}");
                                let vectors = (c / slabs).is_multiple_of(vector);
                                assert!(vectors && groups % slabs == 0, "{shape:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
