//! NVIDIA's management library, where it is installed: the driver's own version.

use std::ffi::{CStr, c_char, c_int, c_uint};

use libloading::Library;

/// `NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE`
const VERSION_BYTES: usize = 80;
/// `NVML_SUCCESS`
const SUCCESS: c_int = 0;

/// The version of the installed driver, such as `580.159.04`; `None` without NVML.
pub fn driver_version() -> Option<String> {
    let mut text = [0u8; VERSION_BYTES];
    // SAFETY: NVML's constructors only set up its own state; the three symbols have had these signatures since
    // NVML 5, and NVML writes no more than VERSION_BYTES.
    let status = unsafe {
        let library = Library::new("libnvidia-ml.so.1").ok()?;
        let start = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlInit_v2\0").ok()?;
        let version = library
            .get::<unsafe extern "C" fn(*mut c_char, c_uint) -> c_int>(b"nvmlSystemGetDriverVersion\0")
            .ok()?;
        let stop = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlShutdown\0").ok()?;
        if start() != SUCCESS {
            return None;
        }
        let status = version(text.as_mut_ptr().cast(), VERSION_BYTES as c_uint);
        stop();
        status
    };
    let text = CStr::from_bytes_until_nul(&text).ok()?;
    (status == SUCCESS).then(|| text.to_string_lossy().into_owned())
}
