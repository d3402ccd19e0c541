//! The verbs' fixtures, run on any backend.

use std::ops::Range;

use sdrt::ops::row::ROW_WIDTH;
use sdrt::ops::*;
use sdrt::weights::Plan;
use sdrt::weights::pack::pack;

use super::{Case, Values, check, decode, download, encode, fixture, reserve_arena, upload};

/// How activations lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    Dense,
    /// Columns of a wider tensor whose other columns hold NaN.
    Columns,
    /// Columns, and the output starts as the residual.
    InPlace,
}

/// Columns before and after, so that rows stay aligned for vector loads of halves.
const MARGIN: usize = 8;

struct Bench<'a> {
    backend: &'a mut dyn Backend,
    case: &'a Case,
    layout: Layout,
}

impl Bench<'_> {
    fn place(&mut self, values: &[f32], shape: [usize; 4]) -> Tensor {
        let dtype = self.backend.dtype();
        if self.layout == Layout::Dense {
            return upload(self.backend, values, shape, dtype);
        }
        let [b, h, w, c] = shape;
        let width = (c + 2 * MARGIN).next_multiple_of(MARGIN);
        let mut wide = vec![f32::NAN; b * h * w * width];
        for (wide, row) in wide.chunks_exact_mut(width).zip(values.chunks_exact(c)) {
            wide[MARGIN..MARGIN + c].copy_from_slice(row);
        }
        upload(self.backend, &wide, [b, h, w, width], dtype).columns(MARGIN, c)
    }

    /// An activation.
    fn input(&mut self, field: &str) -> Tensor {
        let numbers = self.case.tensor(field);
        self.place(numbers.f32(), numbers.shape4())
    }

    /// A weight, an index, or what is f32 whatever the backend computes in.
    fn dense(&mut self, field: &str, dtype: DType) -> Tensor {
        let numbers = self.case.tensor(field);
        upload(self.backend, &numbers.to_f32(), numbers.shape4(), dtype)
    }

    fn weight(&mut self, field: &str) -> Tensor {
        let dtype = self.backend.dtype();
        self.dense(field, dtype)
    }

    /// The weight of a convolution of an enlarged map, from a checkpoint's.
    fn tap_sums(&mut self, field: &str) -> Tensor {
        let dtype = self.backend.dtype();
        let stored = self.case.tensor(field);
        let [o, i, ..] = stored.shape4();
        let mut plan = Plan::measure(dtype);
        plan.upsampling_conv(field, o, i);
        let request = &plan.requests[0];
        let tensor = self.backend.arena().alloc(request.tensor.shape, dtype);
        let fill = |rows: Range<usize>, out: &mut [u8]| {
            pack(request, rows, out, &|_, elements, dtype, out| {
                out.copy_from_slice(&encode(&stored.f32()[elements], dtype));
            });
        };
        self.backend.fill(&[(tensor, &fill)]).expect("fill");
        self.backend.finish_fill().expect("fill");
        tensor
    }

    fn optional_weight(&mut self, field: &str) -> Option<Tensor> {
        self.case.has(field).then(|| self.weight(field))
    }

    /// Where the verb writes, and what it adds. Holds NaN before.
    fn output(&mut self) -> (Tensor, Option<Tensor>) {
        let want = self.case.tensor("want");
        if let Values::U8(values) = &want.values {
            return (upload(self.backend, &vec![7.0; values.len()], want.shape4(), DType::U8), None);
        }
        if self.layout == Layout::InPlace {
            let out = self.input("residual");
            return (out, Some(out));
        }
        let out = self.place(&vec![f32::NAN; want.f32().len()], want.shape4());
        (out, self.case.has("residual").then(|| self.input("residual")))
    }

    /// Reads the output and sees that its surroundings are as they were.
    fn result(&mut self, out: Tensor) -> Vec<f32> {
        if out.is_dense() {
            return download(self.backend, out);
        }
        let start = out.address - (MARGIN * out.dtype.size()) as u64;
        let [b, h, w, c] = out.shape;
        let wide = download(self.backend, Tensor::new(start, [b, h, w, out.pitch], out.dtype));
        let mut inside = Vec::with_capacity(out.len());
        for (row, wide) in wide.chunks_exact(out.pitch).enumerate() {
            let (before, rest) = wide.split_at(MARGIN);
            let (row_values, after) = rest.split_at(c);
            let untouched = before.iter().chain(after).all(|x| x.is_nan());
            assert!(
                untouched,
                "{}: row {row} of the output is written outside of its columns",
                self.case.name
            );
            inside.extend_from_slice(row_values);
        }
        inside
    }

    fn call(&mut self, verb: &str) -> Call {
        let case = self.case;
        let (out, residual) = self.output();
        match verb {
            "conv2d" => Call::Conv2d(Conv2d {
                out,
                x: self.input("x"),
                weight: if case.flag("upsample") { self.tap_sums("weight") } else { self.weight("weight") },
                bias: self.optional_weight("bias"),
                row: case.has("table").then(|| TableRow {
                    table: self.weight("table"),
                    index: self.dense("index", DType::I32),
                }),
                residual,
                stride: case.number("stride") as usize,
                pad: case.number("pad") as usize,
                upsample: case.flag("upsample"),
            }),
            "linear" => Call::Linear(Linear {
                out,
                x: self.input("x"),
                weight: self.weight("weight"),
                bias: self.optional_weight("bias"),
                activation: case.scalars["activation"].as_str().map(activation),
                residual,
            }),
            "group_norm" => Call::GroupNorm(GroupNorm {
                out,
                x: self.input("x"),
                weight: self.weight("weight"),
                bias: self.weight("bias"),
                groups: case.number("groups") as usize,
                eps: case.number("eps") as f32,
                silu: case.flag("silu"),
            }),
            "layer_norm" => Call::LayerNorm(LayerNorm {
                out,
                x: self.input("x"),
                weight: self.weight("weight"),
                bias: self.weight("bias"),
                eps: case.number("eps") as f32,
            }),
            "attention" => Call::Attention(Attention {
                out,
                q: self.input("q"),
                k: self.input("k"),
                v: self.input("v"),
                heads: case.number("heads") as usize,
                causal: case.flag("causal"),
                keys: None,
            }),
            "activate" => Call::Activate(Activate {
                out,
                x: self.input("x"),
                activation: activation(case.scalars["activation"].as_str().expect("activation")),
            }),
            "accumulate" => Call::Accumulate(Accumulate {
                x: self.input("x"),
                y: self.input("y"),
                gain: TableRow {
                    table: self.dense("gains", DType::F32),
                    index: self.dense("index", DType::I32),
                },
            }),
            "geglu" => {
                let [b, h, w, n] = out.shape;
                Call::Geglu(Geglu {
                    out,
                    x: self.input("x"),
                    weight: self.weight("weight"),
                    bias: self.weight("bias"),
                    hidden: self.place(&vec![f32::NAN; b * h * w * 2 * n], [b, h, w, 2 * n]),
                })
            }
            "embed" => Call::Embed(Embed {
                out,
                ids: self.dense("ids", DType::I32),
                tokens: self.weight("tokens"),
                positions: case.has("positions").then(|| self.weight("positions")),
            }),
            "emphasize" => Call::Emphasize(Emphasize {
                x: self.input("x"),
                weight: self.dense("weight", DType::F32),
                restore_mean: case.flag("restore_mean"),
            }),
            "timestep_embedding" => Call::TimestepEmbedding(TimestepEmbedding {
                out,
                timesteps: self.dense("timesteps", DType::F32),
                flip_sin_to_cos: case.flag("flip_sin_to_cos"),
                freq_shift: case.number("freq_shift") as f32,
            }),
            "scale" => {
                let (x, scale) = (self.dense("x", DType::F32), case.number("scale") as f32);
                Call::Scale(Scale { out, x, scale, statistics: None })
            }
            "to_rgb8" => Call::ToRgb8(ToRgb8 { out, x: self.input("x") }),
            other => panic!("no fixtures of {other}"),
        }
    }
}

fn activation(name: &str) -> Activation {
    match name {
        "silu" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "tanh3" => Activation::Tanh3,
        "from_unit" => Activation::FromUnit,
        "to_unit" => Activation::ToUnit,
        other => panic!("activation {other}"),
    }
}

/// Runs all cases of `tests/fixtures/verbs/VERB.safetensors` in each layout, and compares.
pub fn agrees_with_torch(backend: &mut dyn Backend, verb: &str, tolerance: f64) {
    agrees_where_expected(backend, verb, &|_, _| Ok(tolerance));
}

/// As [`agrees_with_torch`], where `expected` says of each VERB.CASE how well it agrees, or why the
/// backend does not take it.
pub fn agrees_where_expected(
    backend: &mut dyn Backend,
    verb: &str,
    expected: &dyn Fn(&str, Layout) -> Result<f64, &'static str>,
) {
    let _region = reserve_arena(backend, 4 << 20);
    for case in fixture("verbs", verb) {
        for layout in [Layout::Dense, Layout::Columns, Layout::InPlace] {
            if layout == Layout::InPlace && !case.has("residual") {
                continue;
            }
            let tolerance = match expected(&case.name, layout) {
                Ok(tolerance) => tolerance,
                Err(reason) => {
                    println!("{} {layout:?}: skipped: {reason}", case.name);
                    continue;
                }
            };
            let mark = backend.arena().mark();
            let mut bench = Bench { backend, case: &case, layout };
            let call = bench.call(verb);
            call.check();
            bench.backend.run(&mut |ops| ops.issue(call)).expect("run");
            let got = bench.result(call.out());
            check(&format!("{} {layout:?}", case.name), &got, &case.tensor("want").to_f32(), tolerance);
            backend.arena().release(mark);
        }
    }
}

/// Numbers between -1 and 1 that only depend on `seed`.
pub fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..8).for_each(|_| {
        next();
    });
    (0..len).map(|_| next()).collect()
}

/// Rounds as memory of `dtype` does, so that a reference starts from what a backend sees.
fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    decode(&encode(values, dtype), dtype)
}

/// `model_input` of slots in any order at different rows of the table, with and without something beside them.
pub fn model_input_scales(backend: &mut dyn Backend, tolerance: f64) {
    let _region = reserve_arena(backend, 1 << 20);
    let (slots, pixels, rows, c, e) = (3, 15, 4, 4, 5);
    let dtype = backend.dtype();
    let x = random(1, slots * pixels * c);
    let table = random(2, rows * ROW_WIDTH);
    let beside = rounded(&random(3, slots * pixels * e), dtype);
    let x_tensor = upload(backend, &x, [slots, 5, 3, c], DType::F32);
    let table_tensor = upload(backend, &table, [1, 1, rows, ROW_WIDTH], DType::F32);
    let beside_tensor = upload(backend, &beside, [slots, 5, 3, e], dtype);
    let entries: [[usize; 3]; 5] = [[2, 1, 1], [0, 2, 0], [3, 0, 1], [1, 2, 1], [2, 1, 0]];
    for (b, with_beside, width) in [(1, false, 4), (5, false, 4), (5, false, 12), (3, true, 12), (5, true, 9)]
    {
        let [index, slot, shown] = [0, 1, 2].map(|entry| {
            let column: Vec<f32> = entries[..b].iter().map(|of_row| of_row[entry] as f32).collect();
            upload(backend, &column, [1, 1, 1, b], DType::I32)
        });
        let out = backend.arena().alloc([b, 5, 3, width], dtype);
        backend.write(out, &vec![0xff; out.bytes()]).expect("write");
        let beside_input = with_beside.then_some(Beside { x: beside_tensor, shown });
        let call = ModelInput { out, x: x_tensor, beside: beside_input, table: table_tensor, index, slot };
        backend.run(&mut |ops| ops.model_input(call)).expect("run");
        let mut want = vec![0.0; b * pixels * width];
        for (i, pixel) in want.chunks_exact_mut(width).enumerate() {
            let [index, slot, shown] = entries[i / pixels];
            let from = slot * pixels + i % pixels;
            for j in 0..c {
                pixel[j] = x[from * c + j] * table[index * ROW_WIDTH];
            }
            if with_beside && shown == 1 {
                pixel[c..c + e].copy_from_slice(&beside[from * e..][..e]);
            }
        }
        let name = format!("model_input, {b} rows, beside: {with_beside}, {width} columns");
        check(&name, &download(backend, out), &want, tolerance);
    }
}

/// Terms that each row leaves out, by their place in the basis.
const LEFT_OUT: [&[usize]; 5] = [&[], &[3], &[2, 4, 5, 6, 7], &[5, 6, 7], &[3, 6, 7]];

/// Rows that use no noise and remember nothing.
const NOISELESS: [usize; 2] = [1, 4];

/// The standard deviation, divided by n - 1.
fn deviation(numbers: &[f32]) -> f64 {
    let n = numbers.len() as f64;
    let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

/// Three steps of random rows, of which some leave terms out that memory holds NaN for; maps smaller and larger
/// than a block of threads.
pub fn sampler_step_follows_its_formula(backend: &mut dyn Backend, tolerance: f64) {
    for (h, w) in [(5, 3), (19, 23)] {
        sampler_steps(backend, h, w, tolerance);
    }
}

fn sampler_steps(backend: &mut dyn Backend, h: usize, w: usize, tolerance: f64) {
    let _region = reserve_arena(backend, 4 << 20);
    let (b, rows, steps) = (2, LEFT_OUT.len(), 3);
    let shape = [b, h, w, 4];
    let n = h * w * 4;
    let first = [2, 0];
    // The state of an image is in its slot; what the model says of it, in rows by its place.
    let slot_of = [1, 0];
    for (guided, image_guided, blended) in
        [(0, 0, false), (1, 0, false), (2, 0, false), (2, 0, true), (1, 1, false), (2, 2, true)]
    {
        let dtype = backend.dtype();
        let mut table = random(3, rows * ROW_WIDTH);
        for (row, coefficients) in table.chunks_exact_mut(ROW_WIDTH).enumerate() {
            coefficients[17] = if NOISELESS.contains(&row) { 0.0 } else { 1.0 };
            for term in LEFT_OUT[row] {
                (coefficients[1 + term], coefficients[9 + term]) = (0.0, 0.0);
            }
        }
        let output = rounded(&random(4, (image_guided + guided + b) * n), dtype);
        let (with_image, others) = output.split_at(image_guided * n);
        let (unconditional, conditional) = others.split_at(guided * n);
        let rows_of = |image: usize| {
            let row = |is_there: bool, row: usize| if is_there { row as f32 } else { -1.0 };
            [
                (image_guided + guided + image) as f32,
                row(image < guided, image_guided + image),
                row(image < image_guided, image),
            ]
        };
        let mut noise = random(5, rows * n);
        for (row, noise) in noise.chunks_exact_mut(n).enumerate() {
            if NOISELESS.contains(&row) {
                noise.fill(f32::NAN);
            }
        }
        // By slot.
        let (guidance, rescale, image_guidance) = ([1.5, 7.5], [0.0, 0.7], [1.2, 1.6]);
        // Image 0 starts at row 2, which reads none of these.
        let mut x = random(6, b * n);
        let mut saved = random(7, b * n);
        let mut history = random(8, 4 * b * n);
        saved[slot_of[0] * n..][..n].fill(f32::NAN);
        history[slot_of[0] * 4 * n..][..4 * n].fill(f32::NAN);

        // Painted, known, and both; what is painted alone reads nothing of what is known.
        let mask: Vec<f32> = (0..b * h * w).map(|pixel| [1.0, 0.0, 0.25][pixel % 3]).collect();
        let [mut known, known_noise] = [9, 10].map(|seed| random(seed, b * n));
        known.chunks_exact_mut(4).step_by(3).for_each(|pixel| pixel.fill(f32::NAN));

        let call = SamplerStep {
            x: upload(backend, &x, shape, DType::F32),
            saved: upload(backend, &saved, shape, DType::F32),
            history: upload(backend, &history, [4 * b, h, w, 4], DType::F32),
            output: upload(backend, &output, [image_guided + guided + b, h, w, 4], dtype),
            rows: upload(backend, &(0..b).flat_map(rows_of).collect::<Vec<_>>(), [1, 1, b, 3], DType::I32),
            noise: upload(backend, &noise, [rows, h, w, 4], DType::F32),
            table: upload(backend, &table, [1, 1, rows, ROW_WIDTH], DType::F32),
            index: upload(backend, &first.map(|i| i as f32), [1, 1, 1, b], DType::I32),
            slot: upload(backend, &slot_of.map(|slot| slot as f32), [1, 1, 1, b], DType::I32),
            guidance: upload(
                backend,
                &(0..b).flat_map(|i| [guidance[i], rescale[i], image_guidance[i]]).collect::<Vec<_>>(),
                [1, 1, b, 3],
                DType::F32,
            ),
            known: blended.then(|| Known {
                mask: upload(backend, &mask, [b, h, w, 1], DType::F32),
                latents: upload(backend, &known, shape, DType::F32),
                noise: upload(backend, &known_noise, shape, DType::F32),
            }),
        };
        for step in 0..steps {
            backend.run(&mut |ops| ops.sampler_step(call)).expect("run");
            let index = first.map(|i| i + step);
            backend.write(call.index, &encode(&index.map(|i| i as f32 + 1.0), DType::I32)).expect("write");

            for image in 0..b {
                let row = &table[index[image] * ROW_WIDTH..][..ROW_WIDTH];
                let slot = slot_of[image];
                let guided_at = |j: usize| {
                    let at = image * n + j;
                    let (u, c) = (unconditional[at], conditional[at]);
                    match image < image_guided {
                        false => u + guidance[slot] * (c - u),
                        true => {
                            u + image_guidance[slot] * (with_image[at] - u)
                                + guidance[slot] * (c - with_image[at])
                        }
                    }
                };
                let factor = match image < guided {
                    true => {
                        let spread = deviation(&conditional[image * n..][..n]);
                        let all: Vec<f32> = (0..n).map(guided_at).collect();
                        rescale[slot] * (spread / deviation(&all)) as f32 + 1.0 - rescale[slot]
                    }
                    false => 1.0,
                };
                for j in 0..n {
                    let at = slot * n + j;
                    let e = match image < guided {
                        true => factor * guided_at(j),
                        false => conditional[image * n + j],
                    };
                    let entry = |age: usize| (4 * slot + age) * n + j;
                    let h = [0, 1, 2, 3].map(|age| history[entry(age)]);
                    let noise = noise[index[image] * n + j];
                    let basis = [x[at], e, saved[at], noise, h[0], h[1], h[2], h[3]];
                    let sum = |coefficients: &[f32]| {
                        let mut sum = 0.0;
                        for (c, value) in coefficients.iter().zip(basis) {
                            sum += if *c == 0.0 { 0.0 } else { f64::from(*c) * f64::from(value) };
                        }
                        sum as f32
                    };
                    let mut next = sum(&row[1..9]);
                    if blended && mask[at / 4] != 1.0 {
                        let at_next = row[20] * known[at] + row[21] * known_noise[at];
                        // A mask of 0 leaves nothing of `next`.
                        next = if mask[at / 4] == 0.0 { 0.0 } else { mask[at / 4] * next };
                        next += (1.0 - mask[at / 4]) * at_next;
                    }
                    (x[at], saved[at]) = (next, sum(&row[9..17]));
                    if row[17] != 0.0 {
                        for (age, value) in [sum(&row[18..20]), h[0], h[1], h[2]].into_iter().enumerate() {
                            history[entry(age)] = value;
                        }
                    }
                }
            }
            let name = |what: &str| {
                format!(
                    "sampler_step {h}x{w}, {guided} guided, {image_guided} by an image, blended: {blended}, step {step}: {what}"
                )
            };
            check(&name("x"), &download(backend, call.x), &x, tolerance);
            check(&name("saved"), &download(backend, call.saved), &saved, tolerance);
            for image in 0..b {
                for (age, h) in
                    ["h0", "h1"].into_iter().enumerate().take(if step == steps - 1 { 2 } else { 1 })
                {
                    let entry = 4 * image + age;
                    let got = download(backend, call.history.images(entry, 1));
                    check(&name(h), &got, &history[entry * n..][..n], tolerance);
                }
            }
        }
    }
}
