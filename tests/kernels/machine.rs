//! What the machine does not have.

use sdrt::error::Error;
use sdrt::ops::cuda::Cuda;
use sdrt::ops::{Backend, DType};

use super::gpu::{lock, open};

#[test]
fn a_device_that_is_not_there() {
    let Some(_guard) = lock() else { return };
    let error = Cuda::open(99, DType::F16).err().expect("cuda:99").to_string();
    assert!(error.starts_with("cuda:99 does not exist: this machine has cuda:0"), "{error}");
}

#[test]
fn memory_that_is_not_there() {
    let Some(_guard) = lock() else { return };
    let mut cuda = open(DType::F16);
    let wanted = 10 << 40;
    let error = cuda.reserve(wanted, "the weights").err().expect("10 TB");
    let message = error.to_string();
    match error {
        Error::OutOfMemory { purpose, needed, free: Some(free) } => {
            assert_eq!((purpose.as_str(), needed), ("the weights", wanted));
            assert!((1..wanted).contains(&free), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert!(message.contains("out of memory: the weights need 10995.1 GB, the GPU has "), "{message}");
    cuda.reserve(1 << 20, "what is there").expect("1 MB after that");
}
