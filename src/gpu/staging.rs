//! Weights to the device: filled into page-locked buffers by all cores, copied while the next is filled.

use std::ops::Range;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, result};
use rayon::prelude::*;

use super::During;
use super::device::Gpu;
use super::memory::HostMemory;
use crate::error::Result;

/// Large enough that a copy hides its launch, small enough that locking the pages takes no time.
const BUFFER_BYTES: usize = 32 << 20;
/// What one core fills at a time.
const PIECE_BYTES: usize = 1 << 20;

pub struct Staging {
    buffers: Vec<(HostMemory, CudaEvent)>,
    turn: usize,
}

impl Staging {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let buffer = || -> Result<_> {
            let event = gpu.context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING));
            Ok((HostMemory::new(&gpu.context, BUFFER_BYTES)?, event.during("creating an event")?))
        };
        Ok(Staging { buffers: vec![buffer()?, buffer()?], turn: 0 })
    }

    /// Sends `rows` rows of `row_bytes` each to `address`. `fill` is asked for multiples of `unit` rows
    /// (but for the last) from many threads.
    pub fn send(
        &mut self,
        gpu: &Gpu,
        address: u64,
        rows: usize,
        row_bytes: usize,
        unit: usize,
        fill: &(dyn Fn(Range<usize>, &mut [u8]) + Sync),
    ) -> Result<()> {
        let unit_bytes = unit * row_bytes;
        let units_at_once = (BUFFER_BYTES / unit_bytes).max(1);
        assert!(unit_bytes <= BUFFER_BYTES, "a unit of {unit_bytes} bytes does not fit the staging buffer");
        let units_per_piece = (PIECE_BYTES / unit_bytes).max(1);
        let mut start = 0;
        while start < rows {
            let end = (start + units_at_once * unit).min(rows);
            let (buffer, copied) = &mut self.buffers[self.turn];
            copied.synchronize().during("waiting for an upload")?;
            // SAFETY: the buffer's last copy has finished.
            let bytes = &mut unsafe { buffer.bytes_mut() }[..(end - start) * row_bytes];
            let rows_per_piece = units_per_piece * unit;
            bytes.par_chunks_mut(rows_per_piece * row_bytes).enumerate().for_each(|(i, piece)| {
                let first = start + i * rows_per_piece;
                fill(first..first + piece.len() / row_bytes, piece);
            });
            let to = address + (start * row_bytes) as u64;
            // SAFETY: the destination is part of a live slab; the source is not touched until `copied`.
            unsafe { result::memcpy_htod_async(to, bytes, gpu.stream.cu_stream()) }.during("uploading")?;
            copied.record(&gpu.stream).during("recording an event")?;
            self.turn = (self.turn + 1) % self.buffers.len();
            start = end;
        }
        Ok(())
    }
}
