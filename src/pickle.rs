//! Files of torch.save: zips and pickles, which can run any program when they are read.

use std::path::Path;

use crate::error::Error;
use crate::location::Location;

const EXTENSIONS: [&str; 4] = ["ckpt", "pt", "pth", "bin"];
const STARTS: [&[u8]; 2] = [b"PK\x03\x04", b"\x80"];

/// What gives the tensors of most pickles in Python.
pub const LOAD: &str = "torch.load(FILE, weights_only=True)";

/// What to say of a file that was found to be no safetensors file: that it is a pickle, or else `error`.
/// The bytes decide nothing by themselves, because the length that a safetensors file begins with can look
/// like a pickle's. `load` is what gives the tensors of FILE in Python.
pub fn named(location: &Location, load: &str, error: Error) -> Error {
    let begins = |bytes: &[u8]| STARTS.iter().any(|start| bytes.starts_with(start));
    let is_pickle = EXTENSIONS.contains(&extension(location).as_str())
        || location.read().is_ok_and(|bytes| begins(&bytes));
    // What cannot be read at all has an error that says so.
    if !is_pickle || !location.is_file() {
        return error;
    }
    let message = format!(
        "a pickle, which can run any program when it is read, so sdrt does not; convert it where you trust it, \
         with Python: safetensors.torch.save_file({load}, \"new.safetensors\")"
    );
    Error::file(location, message)
}

/// In lower case.
pub fn extension(location: &Location) -> String {
    let name = location.name();
    let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
    extension.unwrap_or_default().to_ascii_lowercase()
}
