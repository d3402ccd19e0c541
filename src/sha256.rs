//! SHA-256 as files and programs write it down.

use sha2::{Digest, Sha256};

/// The digits of a finished hash.
pub fn digits(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first `length` digits of the hash of these bytes.
pub fn short(bytes: &[u8], length: usize) -> String {
    let mut digits = digits(Sha256::new().chain_update(bytes));
    digits.truncate(length);
    digits
}
