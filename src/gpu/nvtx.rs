//! Named ranges for nsys and ncu, when the library that they hook is there.

use std::ffi::{CString, c_char, c_int};

use libloading::Library;

pub struct Nvtx {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
    /// Keeps `push` and `pop` mapped.
    _library: Library,
}

impl Nvtx {
    /// `None` where no NVTX library is installed.
    pub fn load() -> Option<Nvtx> {
        ["libnvtx3interop.so.1", "libnvtx3interop.so", "libnvToolsExt.so.1", "libnvToolsExt.so"]
            .iter()
            .find_map(|name| {
                // SAFETY: NVIDIA's library has no constructors with side effects that matter here, and
                // the two symbols have had these signatures since NVTX 1.
                unsafe {
                    let library = Library::new(name).ok()?;
                    let push = *library.get(b"nvtxRangePushA\0").ok()?;
                    let pop = *library.get(b"nvtxRangePop\0").ok()?;
                    Some(Nvtx { push, pop, _library: library })
                }
            })
    }

    pub fn push(&self, name: &str) {
        if let Ok(name) = CString::new(name) {
            // SAFETY: NVTX copies the string.
            unsafe { (self.push)(name.as_ptr()) };
        }
    }

    pub fn pop(&self) {
        // SAFETY: an unmatched pop is ignored.
        unsafe { (self.pop)() };
    }
}
