//! Which kernels a group norm gets: the host's side of `cuda/norm.cu` and `cuda/norm_sm90.cu`.

use super::clusters::{Clusters, MAX_CLUSTER};

/// Most channels of a block of any of the kernels, which has a thread for each 16 bytes of them.
pub const CHANNELS: usize = 4096;
/// Rows that a thread of `group_norm_sm90` holds or has under way.
const RING: usize = 28;
/// Dynamic shared memory of `group_norm_sm90`.
pub const RING_BYTES: usize = RING * CHANNELS * 2;
/// Splits that `group_norm_apply` can add up.
const MOST_SPLITS: usize = 288;
/// Rows' time that `group_norm_sm90` takes for a slab besides its rows.
const SLAB_ROWS: usize = 2;

/// What there is to norm.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub b: usize,
    pub pixels: usize,
    pub c: usize,
    pub groups: usize,
    /// Elements of 16 bytes.
    pub vector: usize,
}

/// `parts`: blocks of a cluster, which share a slab's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// `group_norm_fused` with all `slabs` of an image.
    Fused { slabs: usize, parts: usize },
    /// `group_norm_sm90` with so many clusters for the slabs of all images.
    Ring { slabs: usize, parts: usize, clusters: usize },
    /// `group_norm_stats`, then `group_norm_apply`.
    Twice { splits: usize, rows_per_split: usize },
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

    /// On a chip of so many multiprocessors.
    pub fn plan(&self, multiprocessors: usize, clusters: Clusters) -> Plan {
        self.on_chip(clusters).unwrap_or_else(|| self.twice(multiprocessors))
    }

    /// The chip reads the map once, and keeps it until the statistics are known.
    fn on_chip(&self, clusters: Clusters) -> Option<Plan> {
        let (slabs, lanes) = self.slabs()?;
        let all = slabs * self.b;
        // FUSED_VECTORS in cuda/norm.cu.
        let held = if self.vector == 8 { 14 } else { 4 };
        let places = |parts: usize| self.pixels.div_ceil(parts).div_ceil(lanes);
        let possible = |held: usize| {
            (1..=MAX_CLUSTER).filter(move |&parts| clusters.resident(parts) > 0 && places(parts) <= held)
        };
        // As many parts as all run at once, with work for all of their threads.
        let busy = |&parts: &usize| all <= clusters.resident(parts) && self.pixels / parts >= lanes;
        if let Some(parts) = possible(held).rfind(busy) {
            return Some(Plan::Fused { slabs, parts });
        }
        // Rows of 16 bytes would be half of what L2 delivers.
        if clusters.resident(2) > 0 && self.vector == 8 && lanes < self.threads() {
            let rows = |parts: usize| all.div_ceil(clusters.resident(parts)) * (places(parts) + SLAB_ROWS);
            let parts = possible(RING).min_by_key(|&parts| rows(parts))?;
            return Some(Plan::Ring { slabs, parts, clusters: all.min(clusters.resident(parts)) });
        }
        possible(held).min().map(|parts| Plan::Fused { slabs, parts })
    }

    /// Two blocks on each multiprocessor, if each has some rows for its threads.
    fn twice(&self, multiprocessors: usize) -> Plan {
        let lanes = self.threads() / (self.c / self.vector);
        let wanted = (2 * multiprocessors / self.b).clamp(1, MOST_SPLITS);
        let rows_per_split = self.pixels.div_ceil(wanted).max(4 * lanes).min(self.pixels);
        Plan::Twice { splits: self.pixels.div_ceil(rows_per_split), rows_per_split }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(b: usize, side: usize, c: usize) -> Plan {
        let shape = Shape { b, pixels: side * side, c, groups: 32, vector: 8 };
        shape.plan(132, Clusters::of_hopper(132))
    }

    #[test]
    fn small_maps_of_sd15_are_held_in_registers() {
        assert_eq!(plan(2, 64, 320), Plan::Fused { slabs: 8, parts: 6 });
        assert_eq!(plan(2, 64, 640), Plan::Fused { slabs: 16, parts: 3 });
        assert_eq!(plan(2, 32, 640), Plan::Fused { slabs: 16, parts: 3 });
        assert_eq!(plan(2, 32, 1920), Plan::Fused { slabs: 16, parts: 3 });
        assert_eq!(plan(2, 8, 2560), Plan::Fused { slabs: 32, parts: 1 });
        assert_eq!(plan(8, 32, 640), Plan::Fused { slabs: 16, parts: 1 });
        assert_eq!(plan(1, 64, 512), Plan::Fused { slabs: 32, parts: 3 });
    }

    #[test]
    fn larger_maps_of_sd15_pass_through_shared_memory() {
        assert_eq!(plan(2, 64, 960), Plan::Ring { slabs: 8, parts: 6, clusters: 16 });
        assert_eq!(plan(8, 64, 320), Plan::Ring { slabs: 8, parts: 2, clusters: 64 });
        assert_eq!(plan(8, 64, 640), Plan::Ring { slabs: 16, parts: 2, clusters: 66 });
        assert_eq!(plan(8, 64, 960), Plan::Ring { slabs: 8, parts: 5, clusters: 22 });
        assert_eq!(plan(8, 32, 1280), Plan::Ring { slabs: 32, parts: 1, clusters: 132 });
        assert_eq!(plan(8, 32, 1920), Plan::Ring { slabs: 16, parts: 2, clusters: 66 });
        assert_eq!(plan(1, 128, 512), Plan::Ring { slabs: 32, parts: 3, clusters: 32 });
    }

    #[test]
    fn the_largest_maps_of_a_vae_are_read_twice() {
        assert_eq!(plan(1, 512, 128), Plan::Twice { splits: 264, rows_per_split: 993 });
        assert!(matches!(plan(1, 512, 256), Plan::Twice { .. }));
        assert!(matches!(plan(1, 256, 512), Plan::Twice { .. }));
        assert!(matches!(plan(1, 256, 256), Plan::Twice { .. }));
    }

    #[test]
    fn other_chips_have_no_clusters() {
        let shape = Shape { b: 8, pixels: 64 * 64, c: 320, groups: 32, vector: 8 };
        assert!(matches!(shape.plan(108, Clusters::of_single_blocks(108)), Plan::Twice { .. }));
        let shape = Shape { b: 8, pixels: 16 * 16, ..shape };
        assert_eq!(shape.plan(108, Clusters::of_single_blocks(108)), Plan::Fused { slabs: 8, parts: 1 });
    }

    #[test]
    fn every_row_and_slab_is_somebodys() {
        for b in [1, 2, 3, 7, 300] {
            for pixels in [1, 63, 1024, 4097, 70_000] {
                for (c, groups) in [(8, 4), (32, 1), (320, 32), (960, 32), (4096, 32)] {
                    for vector in [4, 8] {
                        let shape = Shape { b, pixels, c, groups, vector };
                        match shape.plan(132, Clusters::of_hopper(132)) {
                            Plan::Twice { splits, rows_per_split } => {
                                assert!(
                                    splits * rows_per_split >= pixels && splits <= MOST_SPLITS,
                                    "{shape:?}"
                                );
                            }
                            Plan::Fused { parts, .. } => assert!(parts <= MAX_CLUSTER, "{shape:?}"),
                            Plan::Ring { slabs, parts, clusters } => {
                                let (_, lanes) = shape.slabs().expect("it has slabs");
                                assert!(pixels.div_ceil(parts).div_ceil(lanes) <= RING, "{shape:?}");
                                assert!(clusters <= slabs * b && vector == 8, "{shape:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
