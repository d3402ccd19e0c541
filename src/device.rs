//! Which machine a model runs on.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Invalid, Result};
use crate::ops::{Backend, DType, cpu::Cpu};
use crate::parameter::{Parameter, sentence};

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU, or the CPU where there is none.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':').map_or((text, None), |(kind, n)| (kind, Some(n))) {
            ("auto", None) => Ok(Device::Auto),
            ("cpu", None) => Ok(Device::Cpu),
            ("cuda", None) => Ok(Device::Cuda(0)),
            ("cuda", Some(n)) if n.parse::<usize>().is_ok() => Ok(Device::Cuda(n.parse().unwrap_or(0))),
            _ => Err(Invalid::value(Parameter::Device, text).expected("auto, cpu, cuda or cuda:N").error()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// A machine, ready to hold a model.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    /// Why `auto` did not take a GPU.
    pub notice: Option<String>,
}

impl Device {
    /// Opens the machine. `dtype` is what weights and activations are kept in: by default f16 on a GPU;
    /// the CPU computes in f32 only.
    pub fn open(self, dtype: Option<DType>) -> Result<Opened> {
        match self {
            Device::Cpu => open_cpu(dtype, None),
            Device::Cuda(ordinal) => open_cuda(ordinal, dtype),
            Device::Auto => open_first_gpu(dtype).or_else(|why| open_cpu(dtype, Some(why))),
        }
    }
}

fn open_cpu(dtype: Option<DType>, notice: Option<String>) -> Result<Opened> {
    if let Some(dtype) = dtype.filter(|&dtype| dtype != DType::F32) {
        let why = notice.as_ref().map(|why| format!("{why}, and ")).unwrap_or_default();
        return Err(Error::invalid(sentence![
            format!("{why}the CPU computes in f32 only, not {dtype}: leave "),
            Parameter::Dtype,
            " out"
        ]));
    }
    Ok(Opened { backend: Box::new(Cpu::new()), notice })
}

/// The first GPU, or why there is none to use.
#[cfg(sdrt_cuda)]
fn open_first_gpu(dtype: Option<DType>) -> Result<Opened, String> {
    if crate::gpu::device::device_count() == 0 {
        return Err("no CUDA device was found".to_string());
    }
    open_cuda(0, dtype).map_err(|e| e.to_string())
}

#[cfg(sdrt_cuda)]
fn open_cuda(ordinal: usize, dtype: Option<DType>) -> Result<Opened> {
    let cuda = crate::ops::cuda::Cuda::open(ordinal, dtype.unwrap_or(DType::F16))?;
    Ok(Opened { backend: Box::new(cuda), notice: None })
}

/// `make demo` on a machine without a GPU builds so, and so does any build without nvcc.
#[cfg(not(sdrt_cuda))]
const NO_KERNELS: &str = "this sdrt was built without CUDA kernels: `make build` builds those for this machine's \
                          GPUs, `make release` those for every GPU, both with nvcc, which needs a C++ compiler";

#[cfg(not(sdrt_cuda))]
fn open_first_gpu(_dtype: Option<DType>) -> Result<Opened, String> {
    // SAFETY: only looks for the driver's library.
    match unsafe { cudarc::driver::sys::is_culib_present() } {
        true => Err(NO_KERNELS.to_string()),
        false => Err("no CUDA driver was found".to_string()),
    }
}

#[cfg(not(sdrt_cuda))]
fn open_cuda(_ordinal: usize, _dtype: Option<DType>) -> Result<Opened> {
    Err(Error::invalid(sentence![NO_KERNELS, "; or use ", Parameter::Device, " cpu"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for wrong in ["gpu", "cuda:", "cuda:x", "cpu:1", ""] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_cpu_refuses_half_precision() {
        let error = Device::Cpu.open(Some(DType::F16)).err().expect("f16 on the CPU").to_string();
        assert!(error.contains("f32 only"), "{error}");
    }
}
