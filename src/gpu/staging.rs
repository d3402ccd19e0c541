//! Weights to the device: filled into page-locked buffers by all cores, copied while the next is filled.

use std::ops::Range;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, result};
use rayon::prelude::*;

use super::During;
use super::device::Gpu;
use super::memory::HostMemory;
use crate::error::Result;

/// Large enough that a copy hides its launch and all cores have pieces to fill, small enough that locking the
/// pages takes no time.
const BUFFER_BYTES: usize = 16 << 20;
/// What one core fills at a time.
const PIECE_BYTES: usize = 128 << 10;
/// Where the parts of a buffer begin: for elements of every dtype.
const PART_ALIGNMENT: usize = 16;

/// `rows` rows of `row_bytes` each for an address on the device. `fill` is asked for multiples of `unit` rows
/// (but for the last) from many threads.
#[derive(Clone, Copy)]
pub struct Upload<'a> {
    pub to: u64,
    pub rows: usize,
    pub row_bytes: usize,
    pub unit: usize,
    pub fill: &'a (dyn Fn(Range<usize>, &mut [u8]) + Sync),
}

/// Rows of an upload that have a place in a buffer.
struct Part<'a> {
    upload: Upload<'a>,
    first_row: usize,
    at: usize,
    bytes: usize,
}

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

    /// Sends uploads, several of them in one buffer where they are small. The last copies may be under way when
    /// this returns.
    pub fn send<'a>(&mut self, gpu: &Gpu, uploads: impl Iterator<Item = Upload<'a>>) -> Result<()> {
        let mut parts = Vec::new();
        let mut used = 0;
        for upload in uploads {
            let unit_bytes = upload.unit * upload.row_bytes;
            assert!(
                unit_bytes <= BUFFER_BYTES,
                "a unit of {unit_bytes} bytes does not fit the staging buffer"
            );
            let mut first_row = 0;
            while first_row < upload.rows {
                let units = (BUFFER_BYTES - used) / unit_bytes;
                if units == 0 {
                    self.send_parts(gpu, &parts)?;
                    parts.clear();
                    used = 0;
                    continue;
                }
                let rows = (units * upload.unit).min(upload.rows - first_row);
                let bytes = rows * upload.row_bytes;
                parts.push(Part { upload, first_row, at: used, bytes });
                first_row += rows;
                used = (used + bytes).next_multiple_of(PART_ALIGNMENT).min(BUFFER_BYTES);
            }
        }
        self.send_parts(gpu, &parts)
    }

    /// Fills the next buffer, and starts its copies.
    fn send_parts(&mut self, gpu: &Gpu, parts: &[Part]) -> Result<()> {
        let (buffer, copied) = &mut self.buffers[self.turn];
        self.turn = (self.turn + 1) % 2;
        copied.synchronize().during("waiting for an upload")?;
        // SAFETY: the buffer's last copy has finished.
        let buffer = unsafe { buffer.bytes_mut() };

        let mut pieces = Vec::new();
        let (mut free, mut start) = (&mut buffer[..], 0);
        for Part { upload, first_row, at, bytes } in parts {
            let (taken, after) = free.split_at_mut(at - start + bytes);
            let part = &mut taken[at - start..];
            (free, start) = (after, at + bytes);
            let unit_bytes = upload.unit * upload.row_bytes;
            let rows = (PIECE_BYTES / unit_bytes).max(1) * upload.unit;
            let of_part = part.chunks_mut(rows * upload.row_bytes).enumerate();
            pieces.extend(of_part.map(|(i, piece)| (upload, first_row + i * rows, piece)));
        }
        pieces.into_par_iter().for_each(|(upload, first, piece)| {
            (upload.fill)(first..first + piece.len() / upload.row_bytes, piece);
        });

        for Part { upload, first_row, at, bytes } in parts {
            let to = upload.to + (first_row * upload.row_bytes) as u64;
            let stream = gpu.stream.cu_stream();
            // SAFETY: the destination is part of a live slab; the source is not touched until `copied`.
            unsafe { result::memcpy_htod_async(to, &buffer[*at..][..*bytes], stream) }.during("uploading")?;
        }
        copied.record(&gpu.stream).during("recording an event")
    }
}
