//! Host memory: who owns it, and the only places where an address becomes a reference.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ops::tensor::ALIGNMENT;
use crate::ops::{DType, Region, Tensor};

type Live = Arc<Mutex<Vec<Range<u64>>>>;

/// What was reserved and not given back: every tensor of a verb must lie in it.
///
/// A verb finds its tensors in live memory before it starts, and whoever issues verbs keeps the
/// regions until they are done.
///
/// Clones share the memory, one for each thread with a backend of its own
/// ([`Backend::beside`](crate::ops::Backend::beside)). A borrow of one clone says nothing of the others, so no borrow
/// of the compiler's rules out that two threads use the same bytes: callers keep to the protocol of `beside`. Here
/// references reach no further than what a call reads or writes, so that rows of one tensor can have several users.
#[derive(Clone, Default)]
pub struct Memory {
    live: Live,
}

struct Allocation {
    pointer: *mut u8,
    layout: Layout,
    range: Range<u64>,
    live: Live,
}

// SAFETY: the memory belongs to no thread.
unsafe impl Send for Allocation {}
// SAFETY: a reference to it gives nothing away.
unsafe impl Sync for Allocation {}

fn lock(live: &Live) -> MutexGuard<'_, Vec<Range<u64>>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Allocation {
    fn drop(&mut self) {
        lock(&self.live).retain(|range| *range != self.range);
        // SAFETY: `reserve` allocated it with this layout, and nobody else frees it.
        unsafe { dealloc(self.pointer, self.layout) };
    }
}

impl Memory {
    pub fn reserve(&self, bytes: usize, purpose: &str) -> Result<Region> {
        // Aligned by hand: with a large alignment the allocator would touch every page to zero it.
        let layout = bytes.checked_add(ALIGNMENT).and_then(|n| Layout::from_size_align(n, 16).ok());
        // SAFETY: the size is at least ALIGNMENT, so not zero.
        let allocated = layout.map(|layout| (layout, unsafe { alloc_zeroed(layout) }));
        let Some((layout, pointer)) = allocated.filter(|(_, pointer)| !pointer.is_null()) else {
            return Err(Error::OutOfMemory { purpose: purpose.to_string(), needed: bytes, free: None });
        };
        let base = (pointer as u64).next_multiple_of(ALIGNMENT as u64);
        let range = base..base + bytes as u64;
        lock(&self.live).push(range.clone());
        let owner = Allocation { pointer, layout, range, live: self.live.clone() };
        Ok(Region { base, bytes, _owner: Box::new(owner) })
    }

    /// Copies a dense tensor to another of the same size, outside of verbs.
    pub fn copy(&mut self, to: Tensor, from: Tensor) {
        assert!(to.is_dense() && from.is_dense(), "{to} and {from} must be dense");
        // SAFETY: live memory, whether they overlap or not; no other clone uses it meanwhile, by the protocol.
        unsafe { std::ptr::copy(self.locate(from, from.dtype), self.locate(to, to.dtype), to.bytes()) };
    }

    /// Asserts that the view lies in live memory, and returns where it starts.
    fn locate(&self, t: Tensor, dtype: DType) -> *mut u8 {
        assert_eq!(t.dtype, dtype, "{t} where {dtype} is meant");
        assert!(t.pitch >= t.c() && t.address.is_multiple_of(dtype.size() as u64), "{t:?}");
        let elements = if t.is_empty() { 0 } else { (t.rows() - 1) * t.pitch + t.c() };
        let end = t.address + (elements * dtype.size()) as u64;
        let inside = |range: &Range<u64>| range.start <= t.address && end <= range.end;
        assert!(lock(&self.live).iter().any(inside), "{t:?} is not in this backend's memory");
        t.address as *mut u8
    }

    /// A tensor that a verb reads.
    pub fn rows<T: Element>(&self, t: Tensor) -> Rows<'_, T> {
        let base = self.locate(t, T::DTYPE) as *const T;
        Rows { base, count: t.rows(), c: t.c(), pitch: t.pitch, memory: PhantomData }
    }

    /// A tensor that a verb writes.
    pub fn rows_mut<T: Element>(&self, t: Tensor) -> RowsMut<'_, T> {
        let base = self.locate(t, T::DTYPE) as *mut T;
        RowsMut { base, count: t.rows(), c: t.c(), pitch: t.pitch, memory: PhantomData }
    }

    /// A dense tensor that a verb reads, as one slice.
    pub fn slice<T: Element>(&self, t: Tensor) -> &[T] {
        assert!(t.is_dense(), "{t} must be dense");
        // SAFETY: live memory; a verb does not write what it reads as a slice, nor does another clone, by the protocol.
        unsafe { std::slice::from_raw_parts(self.locate(t, T::DTYPE) as *const T, t.len()) }
    }

    /// The bytes of a dense tensor, outside of verbs.
    pub fn bytes(&self, t: Tensor) -> &[u8] {
        assert!(t.is_dense(), "{t} must be dense");
        // SAFETY: live memory; no verb of this backend runs meanwhile, and no other clone writes, by the protocol.
        unsafe { std::slice::from_raw_parts(self.locate(t, t.dtype), t.bytes()) }
    }

    /// The bytes of a dense tensor to write, outside of verbs.
    pub fn bytes_mut(&mut self, t: Tensor) -> &mut [u8] {
        assert!(t.is_dense(), "{t} must be dense");
        // SAFETY: live memory; the borrow keeps this clone from it, and the protocol the others.
        unsafe { std::slice::from_raw_parts_mut(self.locate(t, t.dtype), t.bytes()) }
    }
}

/// The types that tensors of this backend hold.
pub trait Element: bytemuck::Pod + Send + Sync {
    const DTYPE: DType;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// Rows that a verb reads.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    base: *const T,
    pub count: usize,
    pub c: usize,
    pub pitch: usize,
    memory: PhantomData<&'a Memory>,
}

/// Rows that a verb writes, from many threads.
#[derive(Clone, Copy)]
pub struct RowsMut<'a, T> {
    base: *mut T,
    pub count: usize,
    pub c: usize,
    pub pitch: usize,
    memory: PhantomData<&'a Memory>,
}

// SAFETY: both are addresses of plain memory; which thread may write a row is the matter of the
// functions that hand out references.
unsafe impl<T: Element> Send for Rows<'_, T> {}
unsafe impl<T: Element> Sync for Rows<'_, T> {}
unsafe impl<T: Element> Send for RowsMut<'_, T> {}
unsafe impl<T: Element> Sync for RowsMut<'_, T> {}

impl<'a, T: Element> Rows<'a, T> {
    pub fn pointer(&self, row: usize) -> *const T {
        assert!(row < self.count);
        self.base.wrapping_add(row * self.pitch)
    }

    pub fn row(&self, row: usize) -> &'a [T] {
        self.run(row, self.c)
    }

    /// What lies in memory from the start of a row; more than the row only where rows are adjacent.
    pub fn run(&self, row: usize, len: usize) -> &'a [T] {
        assert!(len <= self.c || (self.pitch == self.c && len <= (self.count - row) * self.c));
        // SAFETY: `locate` found all rows in live memory; outputs of a verb do not overlap inputs, and no other clone
        // writes this one, by the protocol.
        unsafe { std::slice::from_raw_parts(self.pointer(row), len) }
    }
}

impl<'a, T: Element> RowsMut<'a, T> {
    pub fn pointer(&self, row: usize) -> *mut T {
        assert!(row < self.count);
        self.base.wrapping_add(row * self.pitch)
    }

    /// # Safety
    /// While the result lives, nothing else may use these columns of the row.
    #[allow(clippy::mut_from_ref)] // Tiles of one output are written from many threads.
    pub unsafe fn columns_mut(&self, row: usize, columns: Range<usize>) -> &'a mut [T] {
        assert!(columns.end <= self.c);
        let start = self.pointer(row).wrapping_add(columns.start);
        // SAFETY: `locate` found all rows in live memory; exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(start, columns.len()) }
    }

    /// Calls `fill` once with every row, in parallel.
    pub fn par_rows(&self, fill: impl Fn(usize, &mut [T]) + Sync) {
        let task = (TASK_ELEMENTS / self.c.max(1)).max(1);
        (0..self.count).into_par_iter().with_min_len(task).for_each(|row| {
            // SAFETY: each row is visited once.
            fill(row, unsafe { self.columns_mut(row, 0..self.c) });
        });
    }
}

/// Elements that are worth a task of their own.
const TASK_ELEMENTS: usize = 1 << 14;
