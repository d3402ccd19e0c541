//! Shared by the test crates: fixtures, moving numbers to and from a backend, comparing.
#![allow(dead_code)] // Each test crate uses a part.

pub mod company;
pub mod fuzzed;
pub mod pictures;
pub mod placed;
pub mod verbs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use sdrt::location::Location;
use sdrt::ops::{Arena, Backend, DType, Region, Tensor};
use sdrt::pipeline::{Counted, KnownShapes, Pipeline, Request};
use sdrt::sampler::Sampler;
use sdrt::weights::{Checkpoint, Plan, Source};
use serde_json::Value;

/// The verbs of so many images with guidance of a known model; of the model's own size where there is no `side`.
pub fn counted(shapes: KnownShapes, images: usize, side: Option<usize>, dtype: DType) -> Counted {
    let model = shapes.describe();
    let defaults = Request::defaults(&model, Sampler::Ddim);
    let [height, width] = [defaults.height, defaults.width].map(|own| side.unwrap_or(own));
    Counted::new(&model, &Request { images, height, width, ..defaults }, dtype).expect("a request")
}

/// A tensor of a fixture.
#[derive(Clone, Debug)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub values: Values,
}

#[derive(Clone, Debug)]
pub enum Values {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U8(Vec<u8>),
}

impl Numbers {
    pub fn f32(&self) -> &[f32] {
        match &self.values {
            Values::F32(values) => values,
            other => panic!("f32 expected, found {other:?}"),
        }
    }

    /// All as f32, whatever they are.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => values.clone(),
            Values::I32(values) => values.iter().map(|&x| x as f32).collect(),
            Values::U8(values) => values.iter().map(|&x| f32::from(x)).collect(),
        }
    }

    /// The shape as a tensor's, with ones in front.
    pub fn shape4(&self) -> [usize; 4] {
        let mut shape = [1; 4];
        shape[4 - self.shape.len()..].copy_from_slice(&self.shape);
        shape
    }
}

/// One case of a fixture file: tensors and scalars by name.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub tensors: BTreeMap<String, Numbers>,
    pub scalars: Value,
}

impl Case {
    pub fn tensor(&self, field: &str) -> &Numbers {
        self.tensors.get(field).unwrap_or_else(|| panic!("{} has no {field}", self.name))
    }
    pub fn has(&self, field: &str) -> bool {
        self.tensors.contains_key(field)
    }
    pub fn number(&self, field: &str) -> f64 {
        self.scalars[field].as_f64().unwrap_or_else(|| panic!("{} has no number {field}", self.name))
    }
    pub fn flag(&self, field: &str) -> bool {
        self.scalars[field].as_bool().unwrap_or_else(|| panic!("{} has no flag {field}", self.name))
    }
}

/// The repository; `SDRT_ROOT` where the test binaries have been moved together with their fixtures.
pub fn root() -> PathBuf {
    std::env::var_os("SDRT_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

/// The cases of `tests/fixtures/AREA/NAME.safetensors`: tensors named CASE.FIELD, scalars in the
/// metadata's `about` under `cases`.
pub fn fixture(area: &str, name: &str) -> Vec<Case> {
    let path = root().join(format!("tests/fixtures/{area}/{name}.safetensors"));
    let bytes =
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; run tools/make_fixtures.py", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let about = header.metadata().as_ref().and_then(|all| all.get("about")).expect("metadata `about`");
    let about: Value = serde_json::from_str(about).expect("`about` in JSON");

    let mut cases = BTreeMap::new();
    for (key, view) in SafeTensors::deserialize(&bytes).expect("a safetensors file").tensors() {
        let (case, field) = key.split_once('.').expect("CASE.FIELD");
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => Values::F32(decode(data, DType::F32)),
            Dtype::I32 => Values::I32(data.as_chunks().0.iter().map(|&x| i32::from_le_bytes(x)).collect()),
            Dtype::U8 => Values::U8(data.to_vec()),
            other => panic!("{key} is {other:?}"),
        };
        let case = cases.entry(case.to_string()).or_insert_with(|| Case {
            name: format!("{name}.{case}"),
            tensors: BTreeMap::new(),
            scalars: about["cases"][case].clone(),
        });
        case.tensors.insert(field.to_string(), Numbers { shape: view.shape().to_vec(), values });
    }
    cases.into_values().collect()
}

/// Reserves `bytes` and lets the backend's verbs allocate from them; keep the result as long.
pub fn reserve_arena(backend: &mut dyn Backend, bytes: usize) -> Region {
    let region = backend.reserve(bytes, "tests").expect("memory for tests");
    backend.use_arena(Arena::new(region.base, region.bytes));
    region
}

/// Copies the files of a folder over those of another.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.is_dir() {
            copy_folder(&entry, &to);
        } else {
            fs::copy(&entry, &to).unwrap();
        }
    }
}

/// One of models/.
pub fn pipeline(model: &str, backend: impl Backend + 'static) -> Pipeline {
    load_pipeline(&format!("models/{model}"), backend)
}

/// The model folder at a path of the repository.
pub fn load_pipeline(model: &str, backend: impl Backend + 'static) -> Pipeline {
    let folder = root().join(model);
    Pipeline::load(&Location::from(folder).into(), Box::new(backend), &mut |_, _| {}).expect(model)
}

/// Builds a model, or a part of one, and fills its weights; keep the region as long.
pub fn load<M>(
    backend: &mut dyn Backend,
    checkpoint: &Checkpoint,
    build: impl Fn(&mut Plan) -> M,
) -> (M, Region) {
    let dtype = backend.dtype();
    let mut plan = Plan::measure(dtype);
    build(&mut plan);
    let weights = backend.reserve(plan.bytes(), "weights").expect("memory");
    let mut plan = Plan::new(weights.base, weights.bytes, dtype);
    let model = build(&mut plan);
    for request in &plan.requests {
        let fill = |rows, out: &mut [u8]| checkpoint.fill(request, rows, out);
        backend.fill(&[(request.tensor, &fill)]).expect("fill");
    }
    backend.finish_fill().expect("fill");
    (model, weights)
}

/// Rounds to `dtype` as memory holds it.
pub fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        DType::I32 => values.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
        DType::U8 => values.iter().map(|&x| x as u8).collect(),
    }
}

pub fn decode(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
        DType::F16 => pairs().map(|&x| half::f16::from_le_bytes(x).to_f32()).collect(),
        DType::BF16 => pairs().map(|&x| half::bf16::from_le_bytes(x).to_f32()).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|&x| i32::from_le_bytes(x) as f32).collect(),
        DType::U8 => bytes.iter().map(|&x| f32::from(x)).collect(),
    }
}

/// Takes a tensor from the arena and writes it.
pub fn upload(backend: &mut dyn Backend, values: &[f32], shape: [usize; 4], dtype: DType) -> Tensor {
    let tensor = backend.arena().alloc(shape, dtype);
    backend.write(tensor, &encode(values, dtype)).expect("write");
    tensor
}

/// Reads a dense tensor.
pub fn download(backend: &mut dyn Backend, tensor: Tensor) -> Vec<f32> {
    let mut bytes = vec![0; tensor.bytes()];
    backend.read(tensor, &mut bytes).expect("read");
    decode(&bytes, tensor.dtype)
}

/// How far `got` is from `want`.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// `|got - want| / |want|`, Euclidean.
    pub relative_l2: f64,
    /// The element with the largest error relative to `max(|want[i]|, rms(want))`, and that error.
    pub worst: usize,
    pub worst_error: f64,
}

/// NaN and infinities in either make both errors infinite, unless equal.
pub fn difference(got: &[f32], want: &[f32]) -> Difference {
    let square_sum: f64 = want.iter().map(|&x| f64::from(x).powi(2)).sum();
    let rms = (square_sum / want.len().max(1) as f64).sqrt();
    let mut result = Difference { relative_l2: 0.0, worst: 0, worst_error: 0.0 };
    let mut error_sum = 0.0;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let (got, want) = (f64::from(got), f64::from(want));
        let error = if got == want { 0.0 } else { (got - want).abs() };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        error_sum += error * error;
        let scaled = if error == 0.0 { 0.0 } else { error / want.abs().max(rms) };
        if scaled > result.worst_error || scaled.is_nan() {
            result.worst = i;
            result.worst_error = if scaled.is_nan() { f64::INFINITY } else { scaled };
        }
    }
    result.relative_l2 = if error_sum == 0.0 { 0.0 } else { (error_sum / square_sum).sqrt() };
    if result.relative_l2.is_nan() {
        result.relative_l2 = f64::INFINITY;
    }
    result
}

/// Of many normally distributed errors the largest is about five times their rms.
const WORST: f64 = 8.0;

/// Asserts that the relative L2 error is at most `tolerance`, and that of the worst element, relative
/// to `max(|want[i]|, rms(want))`, at most 8 times that.
#[track_caller]
pub fn check(name: &str, got: &[f32], want: &[f32], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}: number of elements");
    let Difference { relative_l2, worst, worst_error } = difference(got, want);
    let percent = |error: f64, allowed: f64| if error == 0.0 { 0.0 } else { 100.0 * error / allowed };
    let (overall, element) = (percent(relative_l2, tolerance), percent(worst_error, WORST * tolerance));
    let report = format!(
        "{name}: relative L2 error {relative_l2:.2e} ({overall:.0}% of {tolerance:.0e}); worst element {worst} of {}: \
         {:?}, not {:?} ({element:.0}% of the allowance)",
        want.len(),
        got.get(worst).copied().unwrap_or_default(),
        want.get(worst).copied().unwrap_or_default(),
    );
    assert!(overall <= 100.0 && element <= 100.0, "{report}");
    println!("{report}");
}
