//! Which kernels a group norm gets: the host's side of `cuda/group_norm.cu`.

use super::clusters::{Clusters, MAX_CLUSTER};

/// Most channels of a block of any of the kernels, which has a thread for each 16 bytes of them.
pub const CHANNELS: usize = 4096;
/// Splits that `group_norm_apply` can add up, mirrored in cuda/group_norm.cu.
const MOST_SPLITS: usize = 288;

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

    /// Rows that a thread of `group_norm_fused` holds: FUSED_VECTORS in cuda/group_norm.cu.
    fn held(&self) -> usize {
        if self.vector == 8 { 14 } else { 4 }
    }

    /// On a chip of so many multiprocessors.
    pub fn plan(&self, multiprocessors: usize, clusters: Clusters) -> Plan {
        self.fused(clusters).unwrap_or_else(|| self.twice(multiprocessors))
    }

    /// `None` where blocks cannot hold that much, or clusters would run in several waves: those neither load
    /// while others store, nor fill the chip (cuda/LOG.md).
    fn fused(&self, clusters: Clusters) -> Option<Plan> {
        let (slabs, lanes) = self.slabs()?;
        let fits = |&parts: &usize| self.pixels.div_ceil(parts) <= lanes * self.held();
        let possible = (1..=MAX_CLUSTER).filter(|&parts| clusters.resident(parts) > 0).filter(fits);
        // As many parts as all run at once, with work for all of their threads.
        let busy =
            |&parts: &usize| slabs * self.b <= clusters.resident(parts) && self.pixels / parts >= lanes;
        let parts = possible.clone().rfind(busy).or_else(|| possible.clone().find(|&parts| parts == 1))?;
        Some(Plan::Fused { slabs, parts })
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
    fn larger_maps_are_read_twice() {
        for (b, side, c) in [(2, 64, 960), (8, 64, 320), (8, 64, 640), (8, 32, 1920), (1, 128, 512)] {
            assert!(matches!(plan(b, side, c), Plan::Twice { .. }), "{b}x{side}x{side}x{c}");
        }
        assert_eq!(plan(8, 32, 1280), Plan::Fused { slabs: 32, parts: 1 });
        assert_eq!(plan(1, 512, 128), Plan::Twice { splits: 264, rows_per_split: 993 });
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
                            Plan::Fused { slabs, parts } => {
                                let (_, lanes) = shape.slabs().expect("it has slabs");
                                let held = parts * lanes * shape.held();
                                assert!(parts <= MAX_CLUSTER && pixels <= held, "{shape:?}");
                                assert!(
                                    (c / slabs).is_multiple_of(vector) && groups % slabs == 0,
                                    "{shape:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
