//! The backend that computes nothing: it writes down every verb, and how much arena they need.
//!
//! One walk of a model over `Count` gives the memory plan ([`Arena::peak`]), FLOPs and bytes (the
//! roofline), and the program itself, which benches and profiles execute verb by verb.

use super::{Arena, Call, DType, Ops};

/// A verb and the path of scopes it was issued in.
pub struct Counted {
    pub path: String,
    pub call: Call,
}

pub struct Count {
    dtype: DType,
    arena: Arena,
    path: Vec<String>,
    pub calls: Vec<Counted>,
}

impl Count {
    /// Counts for activations of `dtype`, over an unbounded arena.
    pub fn new(dtype: DType) -> Self {
        Count::over(Arena::unbounded(), dtype)
    }

    /// Counts over an arena with real memory, so that the recorded calls can be executed.
    pub fn over(arena: Arena, dtype: DType) -> Self {
        Count { dtype, arena, path: Vec::new(), calls: Vec::new() }
    }

    pub fn peak_bytes(&self) -> usize {
        self.arena.peak()
    }
    pub fn flops(&self) -> u64 {
        self.calls.iter().map(|c| c.call.flops()).sum()
    }
    pub fn bytes(&self) -> u64 {
        self.calls.iter().map(|c| c.call.bytes()).sum()
    }
}

impl Ops for Count {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }
    fn issue(&mut self, call: Call) {
        self.calls.push(Counted { path: self.path.join("."), call });
    }
    fn enter(&mut self, name: &str) {
        self.path.push(name.to_string());
    }
    fn leave(&mut self) {
        self.path.pop();
    }
}
