//! Where numbers live: [`Tensor`], [`Arena`].

use std::fmt;

use crate::dtype::DType;

/// A view of `[b, h, w, c]` elements in the memory of one backend: an address and a layout, no ownership.
///
/// Elements of a row (the `c` axis) are adjacent; rows follow one another every `pitch` elements.
/// So an NHWC map is already the token matrix `[b, 1, h·w, c]`, a slice of columns is free, and a
/// producer can write straight into its half of a concatenation. Tokens are `[b, 1, t, c]`, a matrix
/// is `[1, 1, m, c]`, a vector `[1, 1, 1, c]`, a conv weight `[o, kh, kw, i]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Device address on `Cuda`, host address on `Cpu`, a number that nothing reads on `Count`.
    pub address: u64,
    pub shape: [usize; 4],
    pub dtype: DType,
    /// Elements from one row to the next, at least `c`.
    pub pitch: usize,
}

impl Tensor {
    /// A dense tensor at `address`.
    pub fn new(address: u64, shape: [usize; 4], dtype: DType) -> Self {
        Tensor { address, shape, dtype, pitch: shape[3] }
    }

    pub fn b(&self) -> usize {
        self.shape[0]
    }
    pub fn h(&self) -> usize {
        self.shape[1]
    }
    pub fn w(&self) -> usize {
        self.shape[2]
    }
    pub fn c(&self) -> usize {
        self.shape[3]
    }
    /// Number of rows of `c` elements: `b·h·w`.
    pub fn rows(&self) -> usize {
        self.shape[0] * self.shape[1] * self.shape[2]
    }
    /// Rows of one image: `h·w`, the number of tokens.
    pub fn tokens(&self) -> usize {
        self.shape[1] * self.shape[2]
    }
    /// Elements in the view.
    pub fn len(&self) -> usize {
        self.rows() * self.c()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes that reading or writing the whole view moves.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }
    pub fn is_dense(&self) -> bool {
        self.pitch == self.c() || self.rows() == 1
    }

    /// The same rows as `[b, 1, h·w, c]`.
    pub fn as_tokens(self) -> Self {
        Tensor { shape: [self.b(), 1, self.tokens(), self.c()], ..self }
    }

    /// Every row as an image of its own, `[b·h·w, 1, 1, c]`: rows that have nothing to do with one another, so
    /// that each is what it would be alone.
    pub fn as_images(self) -> Self {
        Tensor { shape: [self.rows(), 1, 1, self.c()], ..self }
    }

    /// Columns `start .. start + count` of every row.
    pub fn columns(self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.c(), "columns {start}+{count} of {self}");
        let [b, h, w, _] = self.shape;
        Tensor { address: self.address + (start * self.dtype.size()) as u64, shape: [b, h, w, count], ..self }
    }

    /// A row as a vector.
    pub fn row(self, row: usize) -> Self {
        assert!(row < self.rows(), "row {row} of {self}");
        let address = self.address + (row * self.pitch * self.dtype.size()) as u64;
        Tensor { address, shape: [1, 1, 1, self.c()], ..self }
    }

    /// Rows `start .. start + count` of a table `[1,1,n,c]`.
    pub fn table_rows(self, start: usize, count: usize) -> Self {
        assert!(self.b() * self.h() == 1 && start + count <= self.w(), "rows {start}+{count} of {self}");
        let address = self.address + (start * self.pitch * self.dtype.size()) as u64;
        Tensor { address, shape: [1, 1, count, self.c()], ..self }
    }

    /// Entries `start .. start + count` of the first axis.
    pub fn images(self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.b(), "images {start}+{count} of {self}");
        let [_, h, w, c] = self.shape;
        Tensor {
            address: self.address + (start * h * w * self.pitch * self.dtype.size()) as u64,
            shape: [count, h, w, c],
            ..self
        }
    }

    /// The first axis in parts of `count` entries, without a remainder.
    pub fn split_images(self, count: usize) -> impl Iterator<Item = Self> {
        assert!(self.b().is_multiple_of(count), "{self} in parts of {count} images");
        (0..self.b()).step_by(count).map(move |start| self.images(start, count))
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [b, h, w, c] = self.shape;
        write!(f, "{}[{b},{h},{w},{c}]", self.dtype)?;
        if self.pitch != c {
            write!(f, "/{}", self.pitch)?;
        }
        Ok(())
    }
}

/// A stack of tensors over memory taken once.
///
/// `release` gives back everything taken since `mark`, so the peak is known from the shapes alone:
/// `Count` walks a model over an unbounded arena, and the backend then takes exactly `peak` bytes.
#[derive(Clone, Debug)]
pub struct Arena {
    base: u64,
    capacity: usize,
    top: usize,
    peak: usize,
}

/// Every tensor starts on a boundary of this many bytes (TMA needs 128, cuBLASLt's best kernels 16).
pub const ALIGNMENT: usize = 256;

impl Arena {
    /// An arena over `capacity` bytes at `base`.
    pub fn new(base: u64, capacity: usize) -> Self {
        assert!(base.is_multiple_of(ALIGNMENT as u64), "arena base {base:#x} is not aligned");
        Arena { base, capacity, top: 0, peak: 0 }
    }

    /// An arena without a limit and without memory: only its peak means something.
    pub fn unbounded() -> Self {
        Arena::new(0, usize::MAX)
    }

    /// Takes a dense tensor. The contents are whatever was there.
    ///
    /// # Panics
    /// When the arena is full: its size was planned by walking the same model, so that is a bug.
    pub fn alloc(&mut self, shape: [usize; 4], dtype: DType) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let tensor = Tensor::new(self.base + self.top as u64, shape, dtype);
        self.top += bytes.next_multiple_of(ALIGNMENT);
        assert!(self.top <= self.capacity, "{tensor} does not fit the planned {} bytes", self.capacity);
        self.peak = self.peak.max(self.top);
        tensor
    }

    pub fn mark(&self) -> usize {
        self.top
    }
    pub fn release(&mut self, mark: usize) {
        assert!(mark <= self.top, "arena released upwards");
        self.top = mark;
    }
    /// Most bytes ever in use.
    pub fn peak(&self) -> usize {
        self.peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_reuses_what_was_released_and_remembers_its_peak() {
        let mut arena = Arena::unbounded();
        let a = arena.alloc([1, 1, 1, 100], DType::F16);
        let mark = arena.mark();
        let b = arena.alloc([1, 2, 2, 64], DType::F32);
        arena.release(mark);
        let c = arena.alloc([1, 1, 1, 1], DType::U8);
        assert_eq!((a.address, b.address, c.address), (0, 256, 256));
        assert_eq!(arena.peak(), 256 + 1024);
    }

    #[test]
    fn columns_and_images_are_views() {
        let x = Tensor::new(1024, [2, 4, 4, 96], DType::F16);
        let v = x.columns(64, 32);
        assert_eq!((v.address, v.shape, v.pitch), (1024 + 128, [2, 4, 4, 32], 96));
        assert_eq!(v.images(1, 1).address, 1024 + 128 + 16 * 96 * 2);
        assert!(!v.is_dense() && x.as_tokens().shape == [2, 1, 16, 96]);
    }
}
