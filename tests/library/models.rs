//! Models and their blocks on the CPU against diffusers and transformers (`tools/fixtures/models.py`), with
//! weights that come through the checkpoint's own path.

use std::path::PathBuf;

use crate::common::{Case, check, counted, download, fixture, reserve_arena, root, upload};
use sdrt::model::backbone::Backbone;
use sdrt::model::blocks::{Carried, Context, Resnet, Transformer};
use sdrt::model::clip::ClipText;
use sdrt::model::conditioned::Conditioned;
use sdrt::model::config::{AutoencoderConfig, ModelConfig};
use sdrt::model::time::{AddedInputs, TimeInputs};
use sdrt::model::unet::UNet;
use sdrt::model::vae::Vae;
use sdrt::ops::cpu::Cpu;
use sdrt::ops::{Backend, Call, DType, KeyRows, Ops, Region, TableRow, Tensor};
use sdrt::pipeline::{KnownShapes, Models};
use sdrt::weights::{Checkpoint, ModelFolder, Plan, Source};

/// Relative L2 error of f32 sums in another order than torch's, through tens of layers.
const MODEL: f64 = 3e-6;
/// The same through the few layers of a block.
const BLOCK: f64 = 1e-6;

/// More than any of these models needs.
const ARENA: usize = 16 << 20;

fn folder(model: &str) -> PathBuf {
    let parent = if model == "tiny" { "models" } else { "tests/fixtures/models" };
    root().join(parent).join(model)
}

fn open(model: &str) -> (ModelConfig, Checkpoint) {
    open_folder(folder(model))
}

fn open_in(parent: &str, model: &str) -> (ModelConfig, Checkpoint) {
    open_folder(root().join(parent).join(model))
}

fn open_folder(folder: PathBuf) -> (ModelConfig, Checkpoint) {
    let folder = ModelFolder::open(&folder.into()).expect("a model");
    let config =
        ModelConfig::read(&folder.location, &folder.text_encoders).expect("a supported configuration");
    (config, Checkpoint::open(&folder).expect("weights"))
}

/// One case on a backend.
struct Run<'a> {
    backend: &'a mut dyn Backend,
    checkpoint: &'a Checkpoint,
    case: &'a Case,
    /// Keeps the memory of weights and activations.
    regions: Vec<Region>,
}

impl Run<'_> {
    /// Builds a model, or a part of one, and fills its weights.
    fn load<M>(&mut self, build: impl Fn(&mut Plan) -> M) -> M {
        let (model, weights) = crate::common::load(self.backend, self.checkpoint, build);
        self.regions.push(weights);

        // Activations start as NaN: what is read before it is written shows.
        let activations = reserve_arena(self.backend, ARENA);
        let all = Tensor::new(activations.base, [1, 1, 1, ARENA], DType::U8);
        self.backend.write(all, &[0xff; ARENA]).expect("write");
        self.regions.push(activations);
        model
    }

    /// An input in the dtype of activations.
    fn input(&mut self, field: &str) -> Tensor {
        let dtype = self.backend.dtype();
        self.input_as(field, dtype)
    }

    fn input_as(&mut self, field: &str, dtype: DType) -> Tensor {
        let numbers = self.case.tensor(field);
        upload(self.backend, &numbers.to_f32(), numbers.shape4(), dtype)
    }

    fn alloc(&mut self, shape: [usize; 4]) -> Tensor {
        let dtype = self.backend.dtype();
        self.backend.arena().alloc(shape, dtype)
    }

    /// A table for the keys and values of `b` texts of `s` tokens, [b,1,s,columns], and what reads it.
    fn context(&mut self, [b, s, columns]: [usize; 3]) -> (Tensor, Context) {
        let table = self.alloc([1, 1, b * s + KeyRows::PADDING, columns]);
        let [first, length]: [Vec<f32>; 2] = [(0..b).map(|i| (i * s) as f32).collect(), vec![s as f32; b]];
        let [first, length] =
            [first, length].map(|entries| upload(self.backend, &entries, [1, 1, 1, b], DType::I32));
        let keys = KeyRows { first, length, longest: s };
        (Tensor { shape: [b, 1, s, columns], ..table }, Context { table, keys })
    }

    /// Computes the result by `body`, which is given the output, and compares.
    fn compare(&mut self, tolerance: f64, body: impl Fn(&mut dyn Ops, Tensor)) {
        let out = self.alloc(self.case.tensor("want").shape4());
        self.compare_at(out, tolerance, body);
    }

    fn compare_at(&mut self, out: Tensor, tolerance: f64, body: impl Fn(&mut dyn Ops, Tensor)) {
        self.backend.run(&mut |ops| body(ops, out)).expect("run");
        let want = self.case.tensor("want").f32();
        check(&self.case.name, &download(self.backend, out), want, tolerance);
    }

    fn clip(&mut self, config: &ModelConfig) {
        let clip = self.load(|plan| {
            plan.component("text_encoder", |plan| {
                ClipText::new(&config.text_encoders[0].clip, false, 0, plan)
            })
        });
        let ids = self.input_as("ids", DType::I32);
        self.compare(MODEL, |ops, out| clip.forward(ops, ids, clip.from_end(out, 1, true), None));
    }

    fn unet(&mut self, config: &ModelConfig) {
        let unet = self.load(|plan| plan.component("unet", |plan| UNet::new(&config.unet, plan)));
        let (x, states) = (self.input("x"), self.input("states"));
        let timesteps = self.input_as("timesteps", DType::F32);
        let index = self.input_as("index", DType::I32);
        let table = self.alloc([1, 1, timesteps.len(), unet.time_columns()]);
        let (rows, context) = self.context([x.b(), states.w(), unet.context_columns()]);
        self.compare(MODEL, |ops, out| {
            unet.time_table(ops, table, TimeInputs { timesteps, guidance: None, added: None });
            unet.context(ops, rows, states);
            unet.forward(ops, out, x, TableRow { table, index }, context, &[]);
        });
    }

    /// A U-Net whose time embedding takes in the prompt and sizes, so that each row has a time table.
    fn unet_with_sizes(&mut self, config: &ModelConfig) {
        let unet = self.load(|plan| plan.component("unet", |plan| UNet::new(&config.unet, plan)));
        let text_time = config.unet.text_time.expect("sizes");
        let (x, states) = (self.input("x"), self.input("states"));
        let timesteps = self.input_as("timesteps", DType::F32);
        let [rows, n] = [x.b(), timesteps.len()];
        let pooled = self.case.tensor("embeds").to_f32();
        let embeds = pooled.chunks_exact(text_time.pooled_dim).flat_map(|row| {
            let mut row = row.to_vec();
            row.resize(text_time.width(), f32::NAN);
            row
        });
        let dtype = self.backend.dtype();
        let embeds: Vec<f32> = embeds.collect();
        let embeds = upload(self.backend, &embeds, [1, 1, rows, text_time.width()], dtype);
        let numbers = self.case.tensor("time_ids").to_f32();
        assert_eq!(numbers.len(), rows * text_time.numbers);
        let time_ids = upload(self.backend, &numbers, [rows, 1, 1, text_time.numbers], DType::F32);
        let index: Vec<f32> = self.case.tensor("index").to_f32();
        let index: Vec<f32> = index.iter().enumerate().map(|(row, i)| (row * n) as f32 + i).collect();
        let index = upload(self.backend, &index, [1, 1, 1, rows], DType::I32);
        let tables = self.alloc([rows, 1, n, unet.time_columns()]);
        let table = Tensor { shape: [1, 1, rows * n, unet.time_columns()], ..tables };
        let (entries, context) = self.context([rows, states.w(), unet.context_columns()]);
        self.compare(MODEL, |ops, out| {
            let added = Some(AddedInputs { embeds, time_ids });
            unet.time_table(ops, tables, TimeInputs { timesteps, guidance: None, added });
            unet.context(ops, entries, states);
            unet.forward(ops, out, x, TableRow { table, index }, context, &[]);
        });
    }

    /// The case's first image for two contexts, on its own and as two images.
    fn unet_for_two_contexts(&mut self, config: &ModelConfig) {
        let unet = self.load(|plan| plan.component("unet", |plan| UNet::new(&config.unet, plan)));
        let (x, timesteps) = (self.case.tensor("x"), self.input_as("timesteps", DType::F32));
        let [_, h, w, c] = x.shape4();
        let dtype = self.backend.dtype();
        let twice = upload(self.backend, &x.to_f32()[..h * w * c].repeat(2), [2, h, w, c], dtype);
        let states = self.case.tensor("states");
        let [_, _, tokens, width] = states.shape4();
        let mut states = states.to_f32()[..tokens * width].to_vec();
        states.extend_from_within(..);
        states[tokens * width..].reverse();
        let states = upload(self.backend, &states, [2, 1, tokens, width], dtype);
        let index = upload(self.backend, &[1.0; 2], [1, 1, 1, 2], DType::I32);
        let table = self.alloc([1, 1, timesteps.len(), unet.time_columns()]);
        let (rows, context) = self.context([2, tokens, unet.context_columns()]);
        let outs = [0; 2].map(|_| self.alloc([2, h, w, config.unet.out_channels]));
        self.backend
            .run(&mut |ops| {
                unet.time_table(ops, table, TimeInputs { timesteps, guidance: None, added: None });
                unet.context(ops, rows, states);
                for (out, x) in outs.into_iter().zip([twice, twice.images(0, 1)]) {
                    unet.forward(ops, out, x, TableRow { table, index }, context, &[]);
                }
            })
            .expect("run");
        let [apart, shared] = outs.map(|out| download(self.backend, out));
        assert_ne!(apart[..h * w * c], apart[h * w * c..], "the contexts are alike");
        check(&self.case.name, &shared, &apart, MODEL);
    }

    fn vae(&mut self, config: &ModelConfig, carried: Carried) -> Vae {
        let AutoencoderConfig::Kl(config) = &config.vae else { panic!("{:?}", config.vae) };
        self.load(|plan| plan.component("vae", |plan| Vae::new(config, carried, plan)))
    }

    fn decode(&mut self, config: &ModelConfig, carried: Carried) {
        let vae = self.vae(config, carried);
        let x = self.input_as("x", DType::F32);
        self.compare(MODEL, |ops, out| vae.decode(ops, out, x));
    }

    fn encode(&mut self, config: &ModelConfig, carried: Carried) {
        let vae = self.vae(config, carried);
        let x = self.input("x");
        self.compare(MODEL, |ops, out| vae.encode(ops, out, x));
    }

    /// Builds the block at the case's path.
    fn load_block<M>(&mut self, build: impl Fn(&mut Plan) -> M) -> M {
        let path = self.case.scalars["path"].as_str().expect("path");
        let component = if self.case.scalars["component"] == "vae" { "vae" } else { "unet" };
        self.load(|plan| plan.component(component, |plan| plan.scope(path, &build)))
    }

    fn resnet(&mut self) {
        let (groups, eps) = (self.case.number("groups") as usize, self.case.number("eps") as f32);
        let channels = |field: &str| self.case.tensor(field).shape4()[3];
        let (i, o) = (channels("x"), channels("want"));
        // In a table the resnet's columns are some of many, and the rows of a batch come in any order.
        let column = 3;
        let resnet = self.load_block(|plan| Resnet::new(plan, i, o, groups, eps).with_time(column));
        let x = self.input("x");
        let time = self.case.has("table").then(|| {
            let rows = self.case.tensor("table").f32();
            let b = rows.len() / o;
            let mut table = vec![f32::NAN; b * (column + o)];
            for (wide, row) in table.chunks_exact_mut(column + o).rev().zip(rows.chunks_exact(o)) {
                wide[column..].copy_from_slice(row);
            }
            let dtype = self.backend.dtype();
            let index: Vec<f32> = (0..b).rev().map(|i| i as f32).collect();
            TableRow {
                table: upload(self.backend, &table, [1, 1, b, column + o], dtype),
                index: upload(self.backend, &index, [1, 1, 1, b], DType::I32),
            }
        });
        self.compare(BLOCK, |ops, out| resnet.forward(ops, "resnet", out, x, time));
        if i == o {
            let in_place = self.input("x");
            self.compare_at(in_place, BLOCK, |ops, out| resnet.forward(ops, "resnet", out, out, time));
        }
    }

    fn transformer(&mut self) {
        let [layers, heads, groups] =
            ["layers", "heads", "groups"].map(|field| self.case.number(field) as usize);
        let c = self.case.tensor("x").shape4()[3];
        let dim = self.case.tensor("states").shape4()[3];
        // Columns that other transformers have taken before.
        let taken = 5;
        let transformer = self.load_block(|plan| {
            let mut columns = taken;
            let transformer = Transformer::new(plan, c, layers, heads, groups, dim, &mut columns);
            assert_eq!(columns, taken + layers * 2 * c);
            transformer
        });
        let (x, states) = (self.input("x"), self.input("states"));
        let (rows, context) = self.context([x.b(), states.w(), taken + layers * 2 * c]);
        self.compare(BLOCK, |ops, out| {
            transformer.context(ops, rows, states);
            transformer.forward(ops, "attentions.0", out, x, context);
        });
    }
}

/// Runs all cases of a kind, of all models.
fn agrees_with_torch(kind: &str, run: impl Fn(&mut Run, &ModelConfig)) {
    let mut cases = 0;
    for model in ["tiny", "sd15", "sd2"] {
        let (config, checkpoint) = open(model);
        for case in fixture("models", model).iter().filter(|case| case.scalars["model"] == kind) {
            let backend = &mut Cpu::new();
            run(&mut Run { backend, checkpoint: &checkpoint, case, regions: Vec::new() }, &config);
            cases += 1;
        }
    }
    assert!(cases > 0, "no cases of {kind}");
}

#[test]
fn resnet() {
    agrees_with_torch("resnet", |run, _| run.resnet());
}

#[test]
fn transformer() {
    agrees_with_torch("transformer", |run, _| run.transformer());
}

#[test]
fn clip() {
    agrees_with_torch("clip", |run, config| run.clip(config));
}

#[test]
fn unet() {
    agrees_with_torch("unet", |run, config| run.unet(config));
}

/// U-Nets of `tools/fixtures/siblings.py`: uneven depths, a middle of one resnet or none, other inputs.
#[test]
fn unets_of_siblings() {
    for model in ["ssd", "vega", "koala", "refiner", "pix2pix", "playground", "cosxl", "cosxl_edit"] {
        let (config, checkpoint) = open_in("tests/fixtures/siblings", model);
        let cases = fixture("siblings", model);
        let case = cases.iter().find(|case| case.has("states")).expect("an evaluation");
        println!("{model}");
        let mut backend = Cpu::new();
        let mut run = Run { backend: &mut backend, checkpoint: &checkpoint, case, regions: Vec::new() };
        match config.unet.text_time {
            Some(_) => run.unet_with_sizes(&config),
            None => run.unet(&config),
        }
    }
}

#[test]
fn what_comes_before_the_context_is_computed_once() {
    agrees_with_torch("unet", |run, config| run.unet_for_two_contexts(config));
}

/// XL's prompt is in its time embedding too.
#[test]
fn rows_of_guidance_share_one_input_where_the_times_know_no_prompt() {
    for (shapes, images) in [(KnownShapes::Sd15, 3), (KnownShapes::Sd21, 3), (KnownShapes::Sdxl, 6)] {
        let counted = counted(shapes, 3, Some(256), DType::F16);
        let input = counted.denoise.calls.iter().find_map(|counted| match counted.call {
            Call::ModelInput(v) => Some(v.out),
            _ => None,
        });
        assert_eq!(input.expect("an input").b(), images);
    }
}

#[test]
fn vae_decoder() {
    agrees_with_torch("decode", |run, config| run.decode(config, Carried::WHOLE));
}

#[test]
fn vae_encoder() {
    agrees_with_torch("encode", |run, config| run.encode(config, Carried::WHOLE));
}

/// In f32 the share changes nothing but the exponents, so the whole tolerance holds.
#[test]
fn a_vae_carried_small_gives_the_same_pictures_and_latents() {
    agrees_with_torch("decode", |run, config| run.decode(config, Carried::IN_A_HALF));
    agrees_with_torch("encode", |run, config| run.encode(config, Carried::IN_A_HALF));
}

/// What a checkpoint says about the plan of a configuration.
fn plan_check(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<usize, String> {
    let mut plan = Plan::measure(DType::F16);
    Models::new(config, 0, &mut plan);
    checkpoint.check(&plan.requests).map_err(|error| error.to_string())?;
    Ok(plan.requests.iter().map(|request| request.keys.len()).sum())
}

#[test]
fn plans_want_exactly_the_keys_of_checkpoints() {
    for model in ["tiny", "sd15", "sd2"] {
        let (config, checkpoint) = open(model);
        assert_eq!(plan_check(&config, &checkpoint), Ok(checkpoint.tensors().len()), "{model}");

        let refused = |change: &dyn Fn(&mut ModelConfig)| {
            let mut other = config.clone();
            change(&mut other);
            plan_check(&other, &checkpoint).expect_err(model)
        };
        let message = refused(&|other| other.unet.layers_per_block[0] += 1);
        assert!(message.contains("down_blocks.0.resnets") && message.contains("missing"), "{message}");
        let message = refused(&|other| other.text_encoders[0].clip.num_hidden_layers += 1);
        assert!(message.contains("encoder.layers") && message.contains("missing"), "{message}");
        let message = refused(&|other| match &mut other.vae {
            AutoencoderConfig::Kl(vae) => vae.use_quant_conv ^= true,
            AutoencoderConfig::Tiny(vae) => panic!("{vae:?}"),
        });
        assert!(message.contains("quant_conv"), "{message}");
        let message = refused(&|other| other.unet.block_out_channels[0] *= 2);
        assert!(message.contains("shape"), "{message}");
    }
}
