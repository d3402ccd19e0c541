//! How many clusters of blocks a chip runs at the same time.

/// Blocks of the largest cluster that every chip can place.
pub const MAX_CLUSTER: usize = 8;

/// For each size, how many clusters run at the same time with one block on each multiprocessor.
///
/// That is fewer than multiprocessors divided by size: a cluster lives in one GPC, and the GPCs of a chip have
/// multiprocessors switched off, not equally many. One cluster too many takes as long as twice as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clusters([usize; MAX_CLUSTER]);

/// What `cuOccupancyMaxActiveClusters` said of an H100 SXM, from 1 block on.
const H100: Clusters = Clusters([132, 66, 39, 30, 22, 17, 15, 15]);

impl Clusters {
    /// On a Hopper chip of so many multiprocessors: in proportion to an H100.
    ///
    /// The chip at hand is not asked. Cards of one kind differ in what is switched off, and plans decide in which order
    /// sums are added up: with one table for all, all give the same bytes.
    pub fn of_hopper(multiprocessors: usize) -> Self {
        Clusters(H100.0.map(|clusters| clusters * multiprocessors / H100.resident(1)))
    }

    /// On a chip whose blocks know nothing of one another.
    pub fn of_single_blocks(multiprocessors: usize) -> Self {
        Clusters(std::array::from_fn(|i| if i == 0 { multiprocessors } else { 0 }))
    }

    /// Of `blocks` blocks, a number from 1 to [`MAX_CLUSTER`]; 0 where there are no such clusters.
    pub const fn resident(&self, blocks: usize) -> usize {
        self.0[blocks - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_of_one_size_are_alike() {
        assert_eq!(Clusters::of_hopper(132), H100);
        assert_eq!(Clusters::of_hopper(114).resident(1), 114);
        assert!((1..=MAX_CLUSTER).all(|blocks| Clusters::of_hopper(114).resident(blocks) * blocks <= 114));
        assert_eq!(Clusters::of_hopper(1).resident(2), 0);
    }
}
