//! Names and files of a checkpoint.
pub mod plan;
