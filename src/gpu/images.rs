//! The kernels that the build embedded: a fact of the build, which no GPU changes.

include!(concat!(env!("OUT_DIR"), "/kernel_images.rs"));

/// Whether this build has machine code for Hopper: the files that nothing else runs, and the others for
/// sm_90a.
pub fn have_hopper() -> bool {
    IMAGES.iter().any(|(name, ..)| name.ends_with("_sm90"))
}
