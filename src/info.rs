//! What a model is made of, the memory it takes and the work it does: all known without running it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::ops::DType;
use crate::ops::count::Count;
use crate::pipeline::{Counted, Description, Model, Models, Request};
use crate::weights::{self, Checkpoint, Plan, Source};

/// One tensor: of the checkpoint as stored, or, without one, as planned.
#[derive(Clone, Debug, Serialize)]
pub struct Weight {
    pub component: &'static str,
    pub key: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

/// A stage of painting as counted.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    pub stage: &'static str,
    pub verbs: usize,
    pub flops: u64,
    /// Bytes that its verbs move.
    pub bytes: u64,
    pub arena_bytes: usize,
}

pub struct Info {
    pub description: Description,
    /// Of the checkpoint, or, without one, as planned.
    pub tensors: Vec<Weight>,
    pub dtype: DType,
    /// Images in one U-Net call.
    pub unet_batch: usize,
    /// Model evaluations of the whole picture.
    pub evaluations: usize,
    /// Memory for the weights of `dtype`.
    pub weight_bytes: usize,
    /// Memory for latents, prompts and activations.
    pub arena_bytes: usize,
    /// Encoding a prompt, one step, decoding.
    pub stages: [Stage; 3],
}

impl Info {
    /// Counts `request` for activations of `dtype`. A checkpoint is checked as if it were loaded.
    pub fn new(model: &Model, request: &Request, dtype: DType) -> Result<Self> {
        let description = model.describe()?;
        let pass = &request.check(&description)?[0];
        let evaluations = pass.table.evaluations();
        let config = &description.config;
        let mut plan = Plan::measure(dtype);
        Models::new(config, 0, &mut plan);
        let tensors = match model {
            Model::Files(files) => {
                let (_, checkpoint) = files.open()?;
                checkpoint.check(&plan.requests)?;
                stored(&checkpoint)
            }
            Model::Random { .. } => planned(&plan.requests),
        };
        let counted = Counted::new(&description, request, dtype)?;
        let unet_batch = request.images * request.rows(config);
        Ok(Info {
            tensors,
            dtype,
            unet_batch,
            evaluations,
            weight_bytes: plan.bytes(),
            arena_bytes: counted.footprint.bytes(),
            stages: [
                Stage::new("encode", &counted.encode),
                Stage::new("step", &counted.denoise),
                Stage::new("decode", &counted.decode),
            ],
            description,
        })
    }

    /// Operations of a whole picture, or as many as there are at once.
    pub fn image_flops(&self) -> u64 {
        let [encode, step, decode] = &self.stages;
        encode.flops + step.flops * self.evaluations as u64 + decode.flops
    }

    /// The tensors of each component: how many, their bytes, their dtypes.
    pub fn components(&self) -> BTreeMap<&'static str, (usize, usize, Vec<String>)> {
        let mut components = BTreeMap::new();
        for tensor in &self.tensors {
            let (count, bytes, dtypes): &mut (usize, usize, Vec<String>) =
                components.entry(tensor.component).or_default();
            *count += 1;
            *bytes += tensor.bytes;
            if !dtypes.contains(&tensor.dtype) {
                dtypes.push(tensor.dtype.clone());
            }
        }
        components
    }
}

impl Stage {
    fn new(stage: &'static str, count: &Count) -> Self {
        Stage {
            stage,
            verbs: count.calls.len(),
            flops: count.flops(),
            bytes: count.bytes(),
            arena_bytes: count.peak_bytes(),
        }
    }
}

fn stored(checkpoint: &Checkpoint) -> Vec<Weight> {
    let tensors = checkpoint.tensors();
    tensors
        .into_iter()
        .map(|(component, stored)| Weight {
            component,
            key: stored.key.clone(),
            dtype: format!("{:?}", stored.dtype).to_lowercase(),
            shape: stored.shape.clone(),
            bytes: stored.size(),
        })
        .collect()
}

fn planned(requests: &[weights::Request]) -> Vec<Weight> {
    let one = |request: &weights::Request, key: &String| Weight {
        component: request.component,
        key: key.clone(),
        dtype: request.tensor.dtype.to_string(),
        shape: request.shape.clone(),
        bytes: request.shape.iter().product::<usize>() * request.tensor.dtype.size(),
    };
    requests.iter().flat_map(|request| request.keys.iter().map(move |key| one(request, key))).collect()
}
