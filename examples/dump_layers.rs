//! Runs each model of a checkpoint once and keeps what every layer says, for `tools/layer_diff.py`.
//!
//! `inputs` holds `ids` i32 [b,tokens], `latents` f32 [b,h,w,c] and `timestep` f32 [1]; the output has one
//! f32 tensor for each scope of the models, named after the checkpoint's path.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Parser;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sdrt::device::Device;
use sdrt::model::blocks::Context;
use sdrt::model::config::ModelConfig;
use sdrt::model::time::TimeInputs;
use sdrt::ops::count::Count;
use sdrt::ops::{Arena, Backend, Call, DType, KeyRows, Ops, Scale, TableRow, Tensor};
use sdrt::pipeline::Models;
use sdrt::weights::{Checkpoint, ModelFolder, Plan, Source};

#[derive(Parser)]
struct Flags {
    /// Model folder
    model: PathBuf,
    /// Safetensors file to read
    inputs: PathBuf,
    /// Safetensors file to write
    out: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// f16, bf16 or f32
    #[arg(long)]
    dtype: Option<DType>,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let folder = ModelFolder::open(&flags.model.into())?;
    let config = ModelConfig::read(&folder.location, &folder.text_encoders)?;
    ensure!(config.pooled_dim().is_none(), "only the layers of Stable Diffusion 1.x and 2.x can be dumped");
    let checkpoint = Checkpoint::open(&folder)?;
    let mut backend = flags.device.open(flags.dtype)?.backend;
    let dtype = backend.dtype();

    let mut plan = Plan::measure(dtype);
    Models::new(&config, 0, &mut plan);
    checkpoint.check(&plan.requests)?;
    let weights = backend.reserve(plan.bytes(), "the weights")?;
    let mut plan = Plan::new(weights.base, weights.bytes, dtype);
    let models = Models::new(&config, 0, &mut plan);
    for request in &plan.requests {
        backend.fill(&[(request.tensor, &|rows, out| checkpoint.fill(request, rows, out))])?;
    }
    backend.finish_fill()?;

    let read = std::fs::read(&flags.inputs).with_context(|| flags.inputs.display().to_string())?;
    let read = SafeTensors::deserialize(&read)?;
    let [ids, latents, timestep] = ["ids", "latents", "timestep"].map(|name| read.tensor(name));
    let (ids, latents, timestep) = (ids?, latents?, timestep?);
    let latent: [usize; 4] = latents.shape().try_into().context("latents [b,h,w,c]")?;

    let mut count = Count::new(dtype);
    let inputs = Inputs::new(&mut count, &models, latent);
    run(&models, &mut count, &inputs);
    let arena = backend.reserve(count.peak_bytes(), "the latents and activations")?;
    backend.use_arena(Arena::new(arena.base, arena.bytes));
    let inputs = Inputs::new(&mut *backend, &models, latent);
    backend.write(inputs.ids, ids.data())?;
    backend.write(inputs.latents, latents.data())?;
    backend.write(inputs.timestep, timestep.data())?;
    backend.write(inputs.index, &vec![0; inputs.index.bytes()])?;
    let tokens = inputs.ids.c() as i32;
    let first: Vec<i32> = (0..latent[0] as i32).map(|image| image * tokens).collect();
    backend.write(inputs.first, bytemuck::cast_slice(&first))?;
    backend.write(inputs.length, bytemuck::cast_slice(&vec![tokens; first.len()]))?;

    let mut dump = Dump { backend, path: Vec::new(), last: None, layers: Ok(BTreeMap::new()) };
    run(&models, &mut dump, &inputs);
    let layers = dump.layers?;
    let views = layers.iter().map(|(path, (shape, bytes))| {
        Ok((path, TensorView::new(Dtype::F32, shape.to_vec(), bytes).with_context(|| path.clone())?))
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &flags.out)?;
    Ok(())
}

#[derive(Clone, Copy)]
struct Inputs {
    ids: Tensor,      // i32 [b,1,1,tokens]
    latents: Tensor,  // f32 [b,h,w,c]
    timestep: Tensor, // f32 [1]
    index: Tensor,    // i32 [b], zeros
    /// Each image's keys in the table of all.
    first: Tensor, // i32 [b]
    length: Tensor,   // i32 [b]
}

impl Inputs {
    fn new(ops: &mut dyn Ops, models: &Models, latent: [usize; 4]) -> Self {
        let arena = ops.arena();
        let tokens = models.config.max_tokens();
        Inputs {
            ids: arena.alloc([latent[0], 1, 1, tokens], DType::I32),
            latents: arena.alloc(latent, DType::F32),
            timestep: arena.alloc([1, 1, 1, 1], DType::F32),
            index: arena.alloc([1, 1, 1, latent[0]], DType::I32),
            first: arena.alloc([1, 1, 1, latent[0]], DType::I32),
            length: arena.alloc([1, 1, 1, latent[0]], DType::I32),
        }
    }
}

/// Text encoder, U-Net with its hidden states, and decoder of the same latents.
fn run(models: &Models, ops: &mut dyn Ops, inputs: &Inputs) {
    let [b, h, w, c] = inputs.latents.shape;
    let (unet, scale) = (&models.backbone, models.config.vae.scale_factor());
    let tokens = inputs.ids.c();
    let states = ops.alloc([b, 1, tokens, models.config.context_dim()]);
    let table = ops.alloc([1, 1, 1, unet.time_columns()]);
    let keys = ops.alloc([1, 1, b * tokens + KeyRows::PADDING, unet.context_columns()]);
    let keys_of_all = Tensor { shape: [b, 1, tokens, keys.c()], ..keys };
    let context = Context {
        table: keys,
        keys: KeyRows { first: inputs.first, length: inputs.length, longest: tokens },
    };
    let [x, prediction] = [0, 1].map(|_| ops.alloc([b, h, w, c]));
    let picture = ops.alloc([b, scale * h, scale * w, 3]);

    let text_encoder = &models.text_encoders[0];
    text_encoder.forward(ops, inputs.ids, text_encoder.from_end(states, 1, true), None);
    unet.time_table(ops, table, TimeInputs { timesteps: inputs.timestep, guidance: None, added: None });
    unet.context(ops, keys_of_all, states);
    ops.scale(Scale { out: x, x: inputs.latents, scale: 1.0, statistics: None });
    unet.forward(ops, prediction, x, TableRow { table, index: inputs.index }, context, &[]);
    models.vae.decode(ops, picture, inputs.latents);
}

type Layers = BTreeMap<String, ([usize; 4], Vec<u8>)>;

/// Executes verbs at once, and reads what the last one wrote at the end of each scope.
struct Dump {
    backend: Box<dyn Backend>,
    path: Vec<String>,
    last: Option<Tensor>,
    layers: sdrt::Result<Layers>,
}

impl Dump {
    fn read(&mut self, tensor: Tensor) -> sdrt::Result<Vec<u8>> {
        // Rows with gaps are read with what lies between them.
        let span = (tensor.rows() - 1) * tensor.pitch + tensor.c();
        let mut bytes = vec![0; span * tensor.dtype.size()];
        self.backend.read(Tensor::new(tensor.address, [1, 1, 1, span], tensor.dtype), &mut bytes)?;
        let halves = || bytes.as_chunks::<2>().0.iter();
        let values: Vec<f32> = match tensor.dtype {
            DType::F16 => halves().map(|&x| half::f16::from_le_bytes(x).to_f32()).collect(),
            DType::BF16 => halves().map(|&x| half::bf16::from_le_bytes(x).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
        };
        let rows = values.chunks(tensor.pitch).flat_map(|row| &row[..tensor.c()]);
        Ok(rows.flat_map(|x| x.to_le_bytes()).collect())
    }
}

impl Ops for Dump {
    fn dtype(&self) -> DType {
        self.backend.dtype()
    }
    fn arena(&mut self) -> &mut Arena {
        self.backend.arena()
    }
    fn issue(&mut self, call: Call) {
        self.last = Some(call.out());
        self.backend.issue(call);
    }
    fn enter(&mut self, name: &str) {
        self.path.push(name.to_string());
    }
    fn leave(&mut self) {
        let path = self.path.join(".");
        self.path.pop();
        let Some(tensor) = self.last else { return };
        let read = self.read(tensor);
        if let Ok(layers) = &mut self.layers {
            match read {
                Ok(bytes) => drop(layers.insert(path, (tensor.shape, bytes))),
                Err(error) => self.layers = Err(error),
            }
        }
    }
}
