//! The answer of a terminal to the question for its protocols.

/// Protocols for images that the terminal itself claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub kitty: bool,
    pub sixel: bool,
}
