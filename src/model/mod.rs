//! The models, written once over [`crate::ops::Ops`].

pub mod config;
