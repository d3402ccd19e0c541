//! Any call over memory of its own: tensors keep their shapes and pitches, contents are random, and
//! everything around them is NaN.
//!
//! A template is a call that [`Count`] wrote down: its addresses mean nothing, except that an input
//! at the output's address is updated in place.

use std::collections::BTreeMap;

use sdrt::ops::count::{Count, Counted};
use sdrt::ops::*;

use super::verbs::random;
use super::{decode, encode};

/// What memory holds that no verb may change, and an output before it is written: NaN in every
/// floating-point type.
const SENTINEL: u8 = 0xff;

/// Bytes of it before and after each tensor.
const GUARD: usize = 256;

/// Larger tensors repeat this many numbers; a prime, so that no two rows are alike.
const CONTENTS: usize = 1_000_003;

/// The calls that `body` makes, with activations of `dtype`.
pub fn templates(dtype: DType, body: impl FnOnce(&mut dyn Ops)) -> Vec<Call> {
    let mut count = Count::new(dtype);
    body(&mut count);
    count.calls.into_iter().map(|counted| counted.call).collect()
}

/// The different calls among `calls`, and how often each is made.
pub fn distinct(calls: &[Counted]) -> Vec<(Call, usize)> {
    let mut found: BTreeMap<String, (Call, usize)> = BTreeMap::new();
    for Counted { call, .. } in calls {
        let mut key = *call;
        tensors(&mut key).into_iter().for_each(|(_, tensor)| tensor.address = 0);
        let key = format!("{key:?} {}", label(call));
        found.entry(key).or_insert((*call, 0)).1 += 1;
    }
    found.into_values().collect()
}

/// The verb, its shape, and how its tensors lie: `conv2d 1x8x8x64 -> 64 3x3 (out/96 x weight +residual)`.
pub fn label(call: &Call) -> String {
    let mut copy = *call;
    let in_place = in_place(call);
    let fields: Vec<String> = tensors(&mut copy)
        .into_iter()
        .map(|(field, tensor)| {
            let place = if in_place == Some(field) { "+" } else { "" };
            let pitch = if tensor.is_dense() { String::new() } else { format!("/{}", tensor.pitch) };
            format!("{place}{field}{pitch}")
        })
        .collect();
    let activation = match call {
        Call::Linear(Linear { activation: Some(activation), .. })
        | Call::Activate(Activate { activation, .. }) => format!(" {activation:?}"),
        Call::GroupNorm(GroupNorm { silu: true, .. }) => " silu".to_string(),
        _ => String::new(),
    };
    format!("{} {}{activation} ({})", call.name(), call.shape(), fields.join(" "))
}

/// Every tensor of a call with its field's name; first what it writes.
fn tensors(call: &mut Call) -> Vec<(&'static str, &mut Tensor)> {
    let mut list: Vec<(&'static str, &mut Tensor)> = Vec::new();
    match call {
        Call::Conv2d(v) => {
            list.extend([("out", &mut v.out), ("x", &mut v.x), ("weight", &mut v.weight)]);
            list.extend(v.bias.as_mut().map(|bias| ("bias", bias)));
            if let Some(row) = &mut v.row {
                list.extend([("table", &mut row.table), ("index", &mut row.index)]);
            }
            list.extend(v.residual.as_mut().map(|residual| ("residual", residual)));
        }
        Call::Linear(v) => {
            list.extend([("out", &mut v.out), ("x", &mut v.x), ("weight", &mut v.weight)]);
            list.extend(v.bias.as_mut().map(|bias| ("bias", bias)));
            list.extend(v.residual.as_mut().map(|residual| ("residual", residual)));
        }
        Call::GroupNorm(v) => {
            list.extend([
                ("out", &mut v.out),
                ("x", &mut v.x),
                ("weight", &mut v.weight),
                ("bias", &mut v.bias),
            ]);
        }
        Call::LayerNorm(v) => {
            list.extend([
                ("out", &mut v.out),
                ("x", &mut v.x),
                ("weight", &mut v.weight),
                ("bias", &mut v.bias),
            ]);
        }
        Call::Attention(v) => {
            list.extend([("out", &mut v.out), ("q", &mut v.q), ("k", &mut v.k), ("v", &mut v.v)]);
            if let Some(keys) = &mut v.keys {
                list.extend([("first", &mut keys.first), ("length", &mut keys.length)]);
            }
        }
        Call::Activate(v) => list.extend([("out", &mut v.out), ("x", &mut v.x)]),
        Call::Accumulate(v) => list.extend([
            ("x", &mut v.x),
            ("y", &mut v.y),
            ("gains", &mut v.gain.table),
            ("index", &mut v.gain.index),
        ]),
        Call::Geglu(v) => list.extend([
            ("out", &mut v.out),
            ("x", &mut v.x),
            ("weight", &mut v.weight),
            ("bias", &mut v.bias),
            ("hidden", &mut v.hidden),
        ]),
        Call::Embed(v) => {
            list.extend([("out", &mut v.out), ("ids", &mut v.ids), ("tokens", &mut v.tokens)]);
            list.extend(v.positions.as_mut().map(|positions| ("positions", positions)));
        }
        Call::Emphasize(v) => list.extend([("x", &mut v.x), ("weight", &mut v.weight)]),
        Call::TimestepEmbedding(v) => list.extend([("out", &mut v.out), ("timesteps", &mut v.timesteps)]),
        Call::Scale(v) => list.extend([("out", &mut v.out), ("x", &mut v.x)]),
        Call::ModelInput(v) => {
            list.extend([
                ("out", &mut v.out),
                ("x", &mut v.x),
                ("table", &mut v.table),
                ("index", &mut v.index),
                ("slot", &mut v.slot),
            ]);
            if let Some(beside) = &mut v.beside {
                list.extend([("beside", &mut beside.x), ("shown", &mut beside.shown)]);
            }
        }
        Call::SamplerStep(v) => list.extend([
            ("x", &mut v.x),
            ("saved", &mut v.saved),
            ("history", &mut v.history),
            ("output", &mut v.output),
            ("noise", &mut v.noise),
            ("table", &mut v.table),
            ("rows", &mut v.rows),
            ("index", &mut v.index),
            ("slot", &mut v.slot),
            ("guidance", &mut v.guidance),
        ]),
        Call::ToRgb8(v) => list.extend([("out", &mut v.out), ("x", &mut v.x)]),
    }
    list
}

/// A call for some of its images.
fn images(call: &Call, start: usize, count: usize) -> Call {
    let mut of_images = *call;
    for (field, tensor) in tensors(&mut of_images) {
        *tensor = match (call, field) {
            (Call::Emphasize(_), "weight") => tensor.images(start, count),
            (_, "weight" | "bias" | "table" | "gains" | "tokens" | "positions") => *tensor,
            (Call::Attention(Attention { keys: Some(_), .. }), "k" | "v") => *tensor,
            (Call::ModelInput(_), "x" | "beside") => *tensor,
            (_, "index" | "slot" | "shown" | "first" | "length" | "timesteps") => {
                tensor.columns(start, count)
            }
            _ => tensor.images(start, count),
        };
    }
    of_images
}

/// The input that lies at the output's address.
fn in_place(call: &Call) -> Option<&'static str> {
    let (field, input) = match call {
        Call::Conv2d(v) => ("residual", v.residual),
        Call::Linear(v) => ("residual", v.residual),
        Call::GroupNorm(v) => ("x", Some(v.x)),
        Call::Activate(v) => ("x", Some(v.x)),
        _ => return None,
    };
    input.is_some_and(|input| input.address == call.out().address).then_some(field)
}

/// Rows of the tables that a call's `index` points into.
fn table_rows(call: &Call) -> usize {
    match call {
        Call::Conv2d(Conv2d { row: Some(row), .. }) => row.table.rows(),
        Call::Accumulate(v) => v.gain.table.rows(),
        Call::ModelInput(v) => v.table.rows(),
        Call::SamplerStep(v) => v.table.rows(),
        _ => 1,
    }
}

/// Tokens from one image's keys to the next one's, as [`KeyRows`] wants them for up to `longest` keys.
pub fn key_stride(longest: usize) -> usize {
    longest.next_multiple_of(16).max(KeyRows::PADDING)
}

/// Numbers that make an output of about 1 out of inputs of about 1.
fn contents(call: &Call, field: &str, tensor: &Tensor, seed: u64) -> Vec<f32> {
    let numbers = random(seed, tensor.len().min(CONTENTS));
    let map = |f: &dyn Fn(f32) -> f32| numbers.iter().map(|&x| f(x)).collect();
    match (call, field) {
        (Call::Conv2d(_) | Call::Linear(_) | Call::Geglu(_), "weight") => {
            let terms = if tensor.b() == 1 { tensor.c() } else { tensor.len() / tensor.b() };
            map(&|x| x * (3.0 / terms as f32).sqrt())
        }
        (Call::GroupNorm(_) | Call::LayerNorm(_), "weight") => map(&|x| 1.0 + x / 2.0),
        (Call::GroupNorm(_) | Call::LayerNorm(_), "x") => map(&|x| 1.0 + 2.0 * x),
        // Some keys stand out.
        (Call::Attention(_), "q") => map(&|x| 4.0 * x),
        (Call::Activate(_), "x") => map(&|x| 3.0 * x),
        (Call::Geglu(_), "x") => map(&|x| 2.0 * x),
        (Call::ToRgb8(_), "x") => map(&|x| 1.5 * x),
        (_, "timesteps") => map(&|x| 500.0 * (x + 1.0)),
        (_, "index") => (0..tensor.len()).map(|image| ((5 * image + 2) % table_rows(call)) as f32).collect(),
        // Means far from zero, whose ratio amplifies no rounding.
        (Call::Emphasize(_), _) => map(&|x| 1.0 + x / 2.0),
        // As most images are generated: without rescaling.
        (Call::SamplerStep(_), "guidance") => {
            numbers.iter().enumerate().map(|(i, &x)| if i % 3 == 1 { 0.0 } else { x }).collect()
        }
        // The first images have guidance.
        (Call::SamplerStep(v), "rows") => {
            let (b, guided) = (v.rows.tokens(), v.output.b() - v.rows.tokens());
            let of_image = |i: usize| [(guided + i) as f32, if i < guided { i as f32 } else { -1.0 }, -1.0];
            (0..b).flat_map(of_image).collect()
        }
        (Call::SamplerStep(v), "slot") => (0..tensor.len()).map(|i| ((i + 1) % v.x.b()) as f32).collect(),
        (Call::ModelInput(v), "slot") => (0..tensor.len()).map(|i| ((i + 1) % v.x.b()) as f32).collect(),
        (Call::ModelInput(_), "shown") => (0..tensor.len()).map(|i| (i % 2) as f32).collect(),
        // From the end of the table; as a model's images share texts, more than fit it share ranges. Lengths are on both
        // sides of what kernels take at once.
        (Call::Attention(Attention { keys: Some(keys), k, .. }), "first") => {
            let stride = key_stride(keys.longest);
            let places = k.tokens() / stride;
            let rest = (k.tokens() - places * stride).min(3);
            (0..tensor.len()).map(|i| ((places - 1 - i % places) * stride + rest) as f32).collect()
        }
        (Call::Attention(Attention { keys: Some(keys), .. }), "length") => {
            let lengths = [keys.longest, 77, 1, 154, 80, 81, 64];
            (0..tensor.len()).map(|i| lengths[i % lengths.len()].min(keys.longest) as f32).collect()
        }
        // Some of them outside of the vocabulary.
        (Call::Embed(v), "ids") => {
            let vocabulary = v.tokens.rows() as f32;
            map(&|x| ((x + 1.0) / 2.0 * (vocabulary + 4.0)).floor() - 2.0)
        }
        _ => numbers,
    }
}

/// A call whose tensors lie in the arena that was in use when it was placed.
pub struct Placed {
    pub call: Call,
    /// Everything around the output, as bytes.
    slab: Tensor,
    /// The slab's contents before the call.
    before: Vec<u8>,
}

impl Placed {
    /// Places a template. Equal seeds give equal numbers on all backends: they are rounded to the
    /// template's dtype first, whatever the backend computes in.
    pub fn new(backend: &mut dyn Backend, template: &Call, seed: u64) -> Placed {
        let dtype = backend.dtype();
        let in_place = in_place(template);
        let mut call = *template;
        let mut output: Option<(Tensor, Tensor, Vec<u8>)> = None;
        for (number, (field, tensor)) in tensors(&mut call).into_iter().enumerate() {
            if in_place == Some(field)
                && let Some((out, ..)) = &output
            {
                *tensor = *out;
                continue;
            }
            let numbers = match field {
                "out" if in_place.is_none() => None,
                _ => {
                    let numbers = contents(template, field, tensor, seed.wrapping_add(100 * number as u64));
                    Some(decode(&encode(&numbers, tensor.dtype), tensor.dtype))
                }
            };
            if matches!(tensor.dtype, DType::F16 | DType::BF16) {
                tensor.dtype = dtype;
            }
            let (slab, bytes) = place(backend, tensor, numbers.as_deref());
            if output.is_none() {
                output = Some((*tensor, slab, bytes));
            }
        }
        let (_, slab, before) = output.expect("every verb writes something");
        Placed { call, slab, before }
    }

    /// Makes the output's memory what it was before the first run.
    pub fn reset(&self, backend: &mut dyn Backend) {
        backend.write(self.slab, &self.before).expect("write");
    }

    pub fn run(&self, backend: &mut dyn Backend) {
        self.call.check();
        backend.run(&mut |ops| ops.issue(self.call)).expect("run");
    }

    /// Whether images behind the first one begin where vectors of halves may.
    pub fn images_are_aligned(&self) -> bool {
        let mut later = images(&self.call, 1, 1);
        let mut later = tensors(&mut later).into_iter();
        later.all(|(_, tensor)| tensor.dtype.size() != 2 || tensor.address.is_multiple_of(16))
    }

    /// Runs the call for images `start .. start + count` alone; returns the bytes of their output.
    pub fn run_images(&self, backend: &mut dyn Backend, start: usize, count: usize) -> Vec<u8> {
        let call = images(&self.call, start, count);
        let out = call.out();
        let [row_bytes, pitch_bytes] = [out.c(), out.pitch].map(|n| n * out.dtype.size());
        let bytes = (out.rows() - 1) * pitch_bytes + row_bytes;
        let rows = Tensor::new(out.address, [1, 1, 1, bytes], DType::U8);
        let first = (out.address - self.slab.address) as usize;
        backend.write(rows, &self.before[first..first + bytes]).expect("write");
        call.check();
        backend.run(&mut |ops| ops.issue(call)).expect("run");
        let mut bytes = vec![0; bytes];
        backend.read(rows, &mut bytes).expect("read");
        bytes.chunks(pitch_bytes).flat_map(|row| &row[..row_bytes]).copied().collect()
    }

    /// The bytes of the output.
    ///
    /// # Panics
    /// If something around it has changed.
    pub fn output(&self, backend: &mut dyn Backend) -> Vec<u8> {
        let mut slab = vec![0; self.slab.bytes()];
        backend.read(self.slab, &mut slab).expect("read");
        let out = self.call.out();
        let [row_bytes, pitch_bytes] = [out.c(), out.pitch].map(|n| n * out.dtype.size());
        let mut inside = Vec::with_capacity(out.bytes());
        let mut next = 0;
        let first = (out.address - self.slab.address) as usize;
        let untouched = |bytes: &[u8]| bytes.iter().all(|&byte| byte == SENTINEL);
        for row in 0..out.rows() {
            let start = first + row * pitch_bytes;
            assert!(untouched(&slab[next..start]), "written before row {row} of the output");
            next = start + row_bytes;
            inside.extend_from_slice(&slab[start..next]);
        }
        assert!(untouched(&slab[next..]), "written after the output");
        inside
    }
}

/// Gives `tensor` a place with sentinels around it, and `numbers`, repeated as necessary, or sentinels.
/// Returns the memory and what it holds.
fn place(backend: &mut dyn Backend, tensor: &mut Tensor, numbers: Option<&[f32]>) -> (Tensor, Vec<u8>) {
    let size = tensor.dtype.size();
    let unit = if tensor.c().is_multiple_of(8) { 8 } else { 4 };
    let margin = (tensor.pitch - tensor.c()) / 2 / unit * unit;
    let mut bytes = vec![SENTINEL; 2 * GUARD + tensor.rows() * tensor.pitch * size];
    if let Some(numbers) = numbers {
        let source = encode(numbers, tensor.dtype);
        let mut position = 0;
        for row in 0..tensor.rows() {
            let start = GUARD + (row * tensor.pitch + margin) * size;
            let mut row = &mut bytes[start..start + tensor.c() * size];
            while !row.is_empty() {
                let count = row.len().min(source.len() - position);
                let (head, rest) = row.split_at_mut(count);
                head.copy_from_slice(&source[position..position + count]);
                position = (position + count) % source.len();
                row = rest;
            }
        }
    }
    let slab = backend.arena().alloc([1, 1, 1, bytes.len()], DType::U8);
    tensor.address = slab.address + (GUARD + margin * size) as u64;
    backend.write(slab, &bytes).expect("write");
    (slab, bytes)
}
