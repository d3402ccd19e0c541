//! What a model wants from a checkpoint: keys, shapes, and how each tensor lies in device memory.
//!
//! A model's constructor walks its own structure once over a [`Plan`]; the plan hands out tensors from
//! one slab and remembers a [`Request`] for each. Walked over [`Plan::measure`], it only tells the
//! slab's size.

use crate::ops::{Arena, DType, TAP_SUMS, Tensor};

/// How the numbers of a checkpoint are arranged for the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As stored. Several keys are stacked along the first axis (q|k|v).
    Rows,
    /// A conv weight, OIHW to OHWI, with i padded by zeros to a multiple of 4.
    Ohwi,
    /// A 3x3 conv weight, OIHW to the sums of its taps, [o,5,5,i], that a convolution of an enlarged map is
    /// computed with ([`TAP_SUMS`]), i padded as above.
    TapSums,
}

/// One tensor that a model wants.
#[derive(Clone, Debug)]
pub struct Request {
    /// Folder of the checkpoint: `unet`, `vae`, `text_encoder` or `text_encoder_2`; or one of
    /// [`controlnet::NAMES`](super::controlnet::NAMES).
    pub component: &'static str,
    /// Keys in the checkpoint; more than one only with [`Packing::Rows`].
    pub keys: Vec<String>,
    /// Shape of each key in the checkpoint, torch's order: `[n]`, `[n, k]` or `[o, i, kh, kw]`.
    pub shape: Vec<usize>,
    pub packing: Packing,
    /// What every number is multiplied by: a power of two.
    pub factor: f32,
    /// Where it goes, as `[1,1,1,n]`, `[1,1,n,k]` or `[o,kh,kw,i]`.
    pub tensor: Tensor,
}

pub struct Plan {
    arena: Arena,
    dtype: DType,
    component: &'static str,
    path: Vec<String>,
    factor: f32,
    pub requests: Vec<Request>,
}

impl Plan {
    /// Plans tensors of `dtype` in the `bytes` of memory at `base`.
    pub fn new(base: u64, bytes: usize, dtype: DType) -> Self {
        Plan {
            arena: Arena::new(base, bytes),
            dtype,
            component: "",
            path: Vec::new(),
            factor: 1.0,
            requests: Vec::new(),
        }
    }

    /// Plans without memory, to learn [`Plan::bytes`].
    pub fn measure(dtype: DType) -> Self {
        Plan::new(0, usize::MAX, dtype)
    }

    /// Dtype of the weights, and of the activations that they will meet.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Size of the slab so far.
    pub fn bytes(&self) -> usize {
        self.arena.peak()
    }

    /// Plans a component: keys start anew, in that folder.
    pub fn component<R>(&mut self, component: &'static str, body: impl FnOnce(&mut Plan) -> R) -> R {
        self.component = component;
        body(self)
    }

    /// Plans a module: `name` goes in front of the keys.
    pub fn scope<R>(&mut self, name: impl ToString, body: impl FnOnce(&mut Plan) -> R) -> R {
        self.path.push(name.to_string());
        let result = body(self);
        self.path.pop();
        result
    }

    /// Plans tensors whose numbers are multiplied by `factor`, a power of two, when they are filled.
    pub fn scaled<R>(&mut self, factor: f32, body: impl FnOnce(&mut Plan) -> R) -> R {
        let before = std::mem::replace(&mut self.factor, factor);
        let result = body(self);
        self.factor = before;
        result
    }

    /// `[n]`: a bias, a norm's scale.
    pub fn vector(&mut self, name: &str, n: usize) -> Tensor {
        self.request(&[name], vec![n], Packing::Rows, [1, 1, 1, n])
    }
    /// `[n, k]`: a linear layer's weight, an embedding.
    pub fn matrix(&mut self, name: &str, n: usize, k: usize) -> Tensor {
        self.request(&[name], vec![n, k], Packing::Rows, [1, 1, n, k])
    }
    /// `[n, k]`, with room for `more` rows below: [n + more, k].
    pub fn extended_matrix(&mut self, name: &str, n: usize, k: usize, more: usize) -> Tensor {
        let whole = self.arena.alloc([1, 1, n + more, k], self.dtype);
        self.push(&[name], vec![n, k], Packing::Rows, Tensor { shape: [1, 1, n, k], ..whole });
        whole
    }
    /// Vectors of `n`, one after another.
    pub fn stacked_vectors(&mut self, names: &[&str], n: usize) -> Tensor {
        self.request(names, vec![n], Packing::Rows, [1, 1, 1, names.len() * n])
    }
    /// Matrices `[n, k]`, one below the other.
    pub fn stacked_matrices(&mut self, names: &[&str], n: usize, k: usize) -> Tensor {
        self.request(names, vec![n, k], Packing::Rows, [1, 1, names.len() * n, k])
    }
    /// `[o, i, k, k]`: a conv weight, which becomes `[o, k, k, i]`.
    pub fn conv(&mut self, name: &str, o: usize, i: usize, k: usize) -> Tensor {
        self.request(&[name], vec![o, i, k, k], Packing::Ohwi, [o, k, k, i.next_multiple_of(4)])
    }

    /// `[o, i, 3, 3]`: the weight of a conv of a map's nearest 2x enlargement, which becomes `[o, 5, 5, i]`.
    pub fn upsampling_conv(&mut self, name: &str, o: usize, i: usize) -> Tensor {
        let sums = TAP_SUMS.len();
        self.request(&[name], vec![o, i, 3, 3], Packing::TapSums, [o, sums, sums, i.next_multiple_of(4)])
    }

    fn request(&mut self, names: &[&str], shape: Vec<usize>, packing: Packing, packed: [usize; 4]) -> Tensor {
        let tensor = self.arena.alloc(packed, self.dtype);
        self.push(names, shape, packing, tensor);
        tensor
    }

    fn push(&mut self, names: &[&str], shape: Vec<usize>, packing: Packing, tensor: Tensor) {
        let path = self.path.join(".");
        let dot = if path.is_empty() { "" } else { "." };
        let keys = names.iter().map(|name| format!("{path}{dot}{name}")).collect();
        let (component, factor) = (self.component, self.factor);
        self.requests.push(Request { component, keys, shape, packing, factor, tensor });
    }
}
