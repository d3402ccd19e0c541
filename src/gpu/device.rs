//! One GPU: its context, its stream, what it is.

use std::sync::Arc;

use cudarc::cublaslt;
use cudarc::driver::sys::{self, CUdevice_attribute, CUlimit};
use cudarc::driver::{CudaContext, CudaStream};

use super::During;
use super::images::have_hopper;
use crate::error::{Error, Result};
use crate::parameter::{Parameter, sentence};

/// A GPU that has been opened.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub name: String,
    /// Compute capability as in `sm_90`: 90. `SDRT_ARCH=80` in the environment lowers it.
    pub arch: u32,
    pub multiprocessors: usize,
    /// Shared memory that a block may ask for.
    pub shared_bytes: usize,
    /// CUDA version of the driver: 12040 is 12.4.
    pub driver: i32,
    /// Load the portable PTX even if there is machine code for this chip.
    pub portable: bool,
}

/// Of each thread; the driver's own calls need a little.
const STACK_BYTES: usize = 64;

/// The oldest chip that the kernels run on.
const MINIMUM_ARCH: u32 = 80;

/// How many GPUs there are; 0 on a machine without a driver.
pub fn device_count() -> usize {
    // SAFETY: only looks for the library. cudarc panics when it calls a library that is not there.
    if !unsafe { sys::is_culib_present() } {
        return 0;
    }
    CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
}

impl Gpu {
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let count = device_count();
        if count == 0 {
            return Err(Error::invalid(sentence![
                "no CUDA device was found: try ",
                Parameter::Device,
                " cpu, or check nvidia-smi"
            ]));
        }
        if ordinal >= count {
            let last = count - 1;
            let message = format!("cuda:{ordinal} does not exist: this machine has cuda:0 to cuda:{last}");
            return Err(Error::invalid(message));
        }
        // SAFETY: as above.
        if !unsafe { cublaslt::sys::is_culib_present() } {
            let message = "install the CUDA 12 or 13 libraries, or `pip install nvidia-cublas` and name its lib \
                           folder in LD_LIBRARY_PATH; or run on the CPU";
            return Err(Error::Cuda {
                operation: "libcublasLt was not found".into(),
                message: message.into(),
            });
        }
        let context = CudaContext::new(ordinal).during("opening the device")?;
        // SAFETY: one stream does all the work, and nothing has been allocated yet. Events per
        // allocation would break graph capture.
        unsafe { context.disable_event_tracking() };
        // For each thread that fits the chip the driver sets aside a stack, 270 MB on an H100 for the default of a
        // kilobyte. Kernels here have none; for one that does it takes more when it launches the kernel.
        context.set_limit(CUlimit::CU_LIMIT_STACK_SIZE, STACK_BYTES).during("limiting the stack")?;
        // Not the default stream: the legacy stream cannot be captured.
        let stream = context.new_stream().during("creating a stream")?;

        let (major, minor) = context.compute_capability().during("reading the compute capability")?;
        let chip = (10 * major + minor) as u32;
        let name = context.name().during("reading the device's name")?;
        if chip < MINIMUM_ARCH {
            let message = format!("is sm_{chip}; the kernels need sm_{MINIMUM_ARCH} or later: try the CPU");
            return Err(Error::Cuda { operation: name, message });
        }
        let forced = forced_arch()?;
        let attribute = |attribute| context.attribute(attribute).during("reading the device's attributes");
        let multiprocessors =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared_bytes =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        let mut driver = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut driver) }.result().during("reading the driver's version")?;
        Ok(Gpu {
            context,
            stream,
            name,
            arch: forced.map_or(chip, |arch| arch.min(chip)),
            multiprocessors,
            shared_bytes,
            driver,
            portable: forced.is_some_and(|arch| arch < chip),
        })
    }

    /// Whether the driver knows conditional graph nodes.
    pub fn has_conditional_graphs(&self) -> bool {
        self.driver >= 12040
    }

    /// Whether the kernels run as Hopper's machine code: with clusters, and with blocks that come in before
    /// those of the kernel before are done. Portable PTX knows neither.
    pub fn is_hopper(&self) -> bool {
        self.arch == 90 && !self.portable && have_hopper()
    }

    pub fn synchronize(&self, operation: &str) -> Result<()> {
        self.stream.synchronize().during(operation)
    }
}

/// `SDRT_ARCH=80` makes the engine treat the chip as that older one: portable PTX, portable kernels.
fn forced_arch() -> Result<Option<u32>> {
    match std::env::var("SDRT_ARCH") {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(arch) if arch >= MINIMUM_ARCH => Ok(Some(arch)),
            _ => Err(Error::invalid(format!(
                "SDRT_ARCH={text}: expected a compute capability such as 80 (the oldest), 86, 89 or 90"
            ))),
        },
    }
}
