//! NVIDIA's management library, where it is installed: the driver's own version.

use std::ffi::{CStr, c_char, c_int, c_uint};

use libloading::Library;

/// `NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE`
const VERSION_BYTES: usize = 80;
/// `NVML_SUCCESS`
const SUCCESS: c_int = 0;

/// The version of the installed driver, such as `580.159.04`; `None` where NVML does not say.
pub fn driver_version() -> Option<String> {
    // SAFETY: NVML's constructors only set up its own state; the three symbols have had these signatures since
    // NVML 5, and the version ends with a zero within the buffer.
    unsafe {
        let library = Library::new("libnvidia-ml.so.1").ok()?;
        let start = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlInit_v2\0").ok()?;
        let version = library
            .get::<unsafe extern "C" fn(*mut c_char, c_uint) -> c_int>(b"nvmlSystemGetDriverVersion\0")
            .ok()?;
        let stop = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlShutdown\0").ok()?;
        if start() != SUCCESS {
            return None;
        }
        let mut text = [0 as c_char; VERSION_BYTES];
        let status = version(text.as_mut_ptr(), VERSION_BYTES as c_uint);
        stop();
        (status == SUCCESS).then(|| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    }
}
