//! Device memory taken once, and host memory that a running graph can see.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::During;
use super::graph::no_capture;
use crate::error::{Error, Result};

/// Zeroed device memory, freed on drop.
pub struct DeviceMemory {
    context: Arc<CudaContext>,
    pub address: u64,
    pub bytes: usize,
}

impl DeviceMemory {
    pub fn new(context: &Arc<CudaContext>, bytes: usize, purpose: &str) -> Result<Self> {
        context.bind_to_thread().during("binding the context")?;
        // SAFETY: the address is owned by the value being built; it is zeroed before anybody sees it.
        let address = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, _) = result::mem_get_info().during("reading free memory")?;
                return Err(Error::OutOfMemory {
                    purpose: purpose.to_string(),
                    needed: bytes,
                    free: Some(free),
                });
            }
            address => address.during("allocating device memory")?,
        };
        let memory = DeviceMemory { context: context.clone(), address, bytes };
        // Despite its name the memset returns at once, and the engine's stream does not wait for the default
        // stream, which it runs on.
        // SAFETY: the range has just been allocated; the null handle is the default stream.
        unsafe {
            result::memset_d8_sync(address, 0, bytes).and_then(|()| result::stream::synchronize(null_mut()))
        }
        .during("zeroing device memory")?;
        Ok(memory)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // A stream may still be using it. An error here has nobody to go to.
        let _waits = no_capture();
        let _ = self.context.synchronize();
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// Page-locked host memory. The device reads and writes it over the bus.
pub struct HostMemory {
    context: Arc<CudaContext>,
    pointer: *mut u8,
    bytes: usize,
}

impl HostMemory {
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        context.bind_to_thread().during("binding the context")?;
        // SAFETY: owned by the value being built.
        let pointer = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) }
            .during("allocating page-locked memory")?
            .cast::<u8>();
        // SAFETY: the range has just been allocated.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(HostMemory { context: context.clone(), pointer, bytes })
    }

    /// The address under which kernels see it.
    pub fn device_address(&self) -> Result<u64> {
        let mut address = 0;
        // SAFETY: the memory was allocated as mapped.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, self.pointer.cast(), 0) }
            .result()
            .during("mapping page-locked memory")?;
        Ok(address)
    }

    pub fn pointer(&self) -> *mut u8 {
        self.pointer
    }

    /// # Safety
    /// No copy from or to this memory may be under way.
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `pointer` owns `bytes` initialised bytes; exclusive by `&mut self` and the contract.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let _waits = no_capture();
        let _ = self.context.synchronize();
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_host(self.pointer.cast()) };
    }
}
