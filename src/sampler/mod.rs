//! Samplers as tables.

/// Floats of one packed row.
pub const ROW_WIDTH: usize = 20;
