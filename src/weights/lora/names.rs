//! What LoRA files call the modules of a model.
//!
//! Files with `_` between the names cannot be taken apart again (`to_out_0`), so it goes the other way round:
//! every spelling of every module of the model is written down.

use std::collections::HashMap;

use crate::weights::names::canonical;
use crate::weights::plan::Request;
use crate::weights::single_file::names::unet_modules;

/// Where a tensor of the checkpoint went: which request, and which of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub request: usize,
    pub key: usize,
}

/// A module of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub weight: Option<Place>,
    pub bias: Option<Place>,
}

/// The modules of a model by their spellings.
pub struct Names {
    targets: Vec<Target>,
    spellings: HashMap<String, usize>,
}

impl Names {
    /// Of the U-Net and the text encoders that these requests are for.
    pub fn new(requests: &[Request]) -> Self {
        let mut targets: Vec<Target> = Vec::new();
        let mut modules: HashMap<(&str, String), usize> = HashMap::new();
        for (r, request) in requests.iter().enumerate().filter(|(_, request)| request.component != "vae") {
            for (k, key) in request.keys.iter().enumerate() {
                let Some((module, tensor)) = key.rsplit_once('.') else { continue };
                let module = canonical(request.component, module).into_owned();
                let target = *modules.entry((request.component, module)).or_insert(targets.len());
                if target == targets.len() {
                    targets.push(Target::default());
                }
                let place = Some(Place { request: r, key: k });
                match tensor {
                    "weight" => targets[target].weight = place,
                    "bias" => targets[target].bias = place,
                    _ => {}
                }
            }
        }
        let originals = unet_modules();
        let mut spellings = HashMap::new();
        for ((component, module), target) in modules {
            let all = match component {
                "unet" => unet(&module, &originals),
                "text_encoder" => text_encoder(&module, "text_encoder", &["lora_te", "lora_te1"]),
                _ => text_encoder(&module, component, &["lora_te2"]),
            };
            spellings.extend(all.into_iter().map(|spelling| (spelling, target)));
            // PEFT's own files name no component: those of a text encoder are known by this prefix.
            if component == "text_encoder" {
                spellings.insert(format!("text_model.{module}"), target);
            }
        }
        Names { targets, spellings }
    }

    /// The module that a file spells so.
    pub fn find(&self, spelling: &str) -> Option<Target> {
        self.spellings.get(spelling).map(|&target| self.targets[target])
    }
}

fn unet(module: &str, originals: &[(String, String)]) -> Vec<String> {
    let underscores = |path: &str| path.replace('.', "_");
    let mut all = vec![
        module.to_string(),
        format!("unet.{module}"),
        format!("lora_unet_{}", underscores(module)),
        format!("lycoris_{}", underscores(module)),
    ];
    let dotted = format!("{module}.");
    for (ours, original) in originals {
        if let Some(rest) = dotted.strip_prefix(ours.as_str()) {
            let path = format!("{original}{rest}");
            let path = path.trim_end_matches('.');
            all.push(format!("diffusion_model.{path}"));
            all.push(format!("lora_unet_{}", underscores(path)));
        }
    }
    if let Some(path) = of_processor(module, "processor.", ["to_q", "to_k", "to_v", "to_out.0"]) {
        // Files of the U-Net alone have no prefix.
        all.extend([format!("unet.{path}"), path]);
    }
    all
}

fn text_encoder(module: &str, component: &str, kohya: &[&str]) -> Vec<String> {
    let underscores = module.replace('.', "_");
    let mut all = Vec::new();
    for prefix in ["text_model.", ""] {
        all.push(format!("{component}.{prefix}{module}"));
        let old = of_processor(module, "", ["q_proj", "k_proj", "v_proj", "out_proj"]);
        all.extend(old.map(|path| format!("{component}.{prefix}{path}")));
        let prefix = prefix.replace('.', "_");
        all.extend(kohya.iter().map(|kohya| format!("{kohya}_{prefix}{underscores}")));
    }
    all
}

/// What diffusers called a layer of an attention before it used PEFT: `to_q` to `to_out`, in a processor.
fn of_processor(module: &str, processor: &str, layers: [&str; 4]) -> Option<String> {
    const OLD: [&str; 4] = ["to_q", "to_k", "to_v", "to_out"];
    layers.iter().zip(OLD).find_map(|(layer, old)| {
        let attention = module.strip_suffix(layer)?.strip_suffix('.')?;
        Some(format!("{attention}.{processor}{old}"))
    })
}
