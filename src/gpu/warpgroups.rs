//! How the warpgroups of Hopper's products share the work of a block.

/// Two warpgroups that multiply and one that copies.
pub const THREADS: u32 = 384;

/// How the two that multiply share a block's tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Consumers {
    /// Each has tiles of its own: while one finishes, the other multiplies.
    InTurns,
    /// Each has half of a tile's rows.
    Together,
}
