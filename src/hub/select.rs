//! Which files of a repository a model needs.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use crate::error::{Error, Result};
use crate::json::Object;

/// What makes a repository a model in the diffusers layout.
pub const MODEL_INDEX: &str = "model_index.json";
/// What describes a component.
const CONFIG: &str = "config.json";

/// Components that a pipeline loads, and what their files are.
const COMPONENTS: [(&str, Files); 7] = [
    ("scheduler", Files::Scheduler),
    ("tokenizer", Files::Tokenizer),
    ("tokenizer_2", Files::Tokenizer),
    ("text_encoder", Files::Weights("model")),
    ("text_encoder_2", Files::Weights("model")),
    ("vae", Files::Weights("diffusion_pytorch_model")),
    ("unet", Files::Weights("diffusion_pytorch_model")),
];

enum Files {
    Scheduler,
    /// Every JSON and text file.
    Tokenizer,
    /// A configuration, and weights of this name.
    Weights(&'static str),
}

/// Paths in a repository, in the order in which they are to be fetched: where the last one is there, so are
/// the others.
#[derive(Debug, Default, PartialEq)]
pub struct Selection {
    /// Configurations, vocabularies and the indices of shards.
    pub texts: Vec<String>,
    /// One for each component that has weights.
    pub weights: Vec<String>,
    /// Those of `texts` that name further weights; [`shards`] reads them.
    pub indices: Vec<String>,
}

impl Selection {
    /// Adds the weights of a component, or the index of their shards.
    fn add_weights(&mut self, file: String) {
        if file.ends_with(".json") {
            self.texts.push(file.clone());
            self.indices.push(file);
        } else {
            self.weights.push(file);
        }
    }
}

/// The files of the components that `model_index.json` lists, out of those that there are. The error is the
/// rest of a sentence about the repository.
pub fn select(model_index: &Object, names: &BTreeSet<String>) -> Result<Selection, String> {
    let mut selection = Selection { texts: vec![MODEL_INDEX.into()], ..Selection::default() };
    for (component, files) in COMPONENTS {
        // ["library", "Class"], or [null, null] for a component that was left out.
        let class = model_index.get(component).and_then(|value| value.get(1));
        if class.is_none_or(|class| class.is_null()) {
            continue;
        }
        match files {
            Files::Scheduler => selection.texts.push(config(component, "scheduler_config.json", names)?),
            Files::Tokenizer => {
                let is_text = |name: &&String| {
                    let file = name.strip_prefix(component).and_then(|rest| rest.strip_prefix('/'));
                    file.is_some_and(|file| {
                        !file.contains('/') && (file.ends_with(".json") || file.ends_with(".txt"))
                    })
                };
                selection.texts.extend(names.iter().filter(is_text).cloned());
            }
            Files::Weights(base) => {
                selection.texts.push(config(component, CONFIG, names)?);
                selection.add_weights(weights(component, base, names)?);
            }
        }
    }
    Ok(selection)
}

fn config(component: &str, file: &str, names: &BTreeSet<String>) -> Result<String, String> {
    let path = format!("{component}/{file}");
    if names.contains(&path) {
        Ok(path)
    } else {
        Err(format!("has no {path}, which {MODEL_INDEX} calls for"))
    }
}

/// The weights of a component, or the index of their shards: in half precision where there is a choice.
fn weights(component: &str, base: &str, names: &BTreeSet<String>) -> Result<String, String> {
    find_weights(&format!("{component}/{base}"), names).ok_or_else(|| {
        let pickles = [".bin", ".ckpt", ".pt"];
        let is_pickle = |name: &&String| {
            name.starts_with(&format!("{component}/")) && pickles.iter().any(|end| name.ends_with(end))
        };
        match names.iter().find(is_pickle) {
            Some(pickle) => format!(
                "has {pickle} but no safetensors file beside it, and sdrt reads no pickles; look for another \
                 revision of the model (owner/name@revision), or save it again with diffusers: \
                 save_pretrained(..., safe_serialization=True)"
            ),
            None => format!("has no {component}/{base}.safetensors, which {MODEL_INDEX} calls for"),
        }
    })
}

fn find_weights(base: &str, names: &BTreeSet<String>) -> Option<String> {
    let variants = [
        format!("{base}.fp16.safetensors"),
        format!("{base}.safetensors.index.fp16.json"),
        format!("{base}.fp16.safetensors.index.json"),
        format!("{base}.safetensors"),
        format!("{base}.safetensors.index.json"),
    ];
    variants.into_iter().find(|file| names.contains(file))
}

/// The files of a repository that is one component by itself: a ControlNet, a VAE.
pub fn component(names: &BTreeSet<String>) -> Option<Selection> {
    let is_component = names.contains(CONFIG) && !names.contains(MODEL_INDEX);
    let file = find_weights("diffusion_pytorch_model", names).filter(|_| is_component)?;
    let mut selection = Selection { texts: vec![CONFIG.into()], ..Selection::default() };
    selection.add_weights(file);
    Some(selection)
}

/// The files that the index of a component's shards names, beside the index at `path`.
pub fn shards(index: &Object, path: &str) -> Result<Vec<String>> {
    let Some(weight_map) = index.get("weight_map").and_then(|map| map.as_object()) else {
        return Err(index.refuse("weight_map", "expected an object of keys and the files they are in"));
    };
    let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let mut shards = BTreeSet::new();
    for (key, shard) in weight_map {
        let file = shard.as_str().filter(|file| is_relative(file) && !file.contains('/'));
        let Some(file) = file else {
            let message = format!("weight_map gives {shard} as its file; expected a file name");
            return Err(Error::tensor(&index.file, key, message));
        };
        shards.insert(format!("{folder}{file}"));
    }
    Ok(shards.into_iter().collect())
}

/// The checkpoint of a repository that has no `model_index.json`. The error is the rest of a sentence about
/// the repository.
pub fn checkpoint(id: &str, names: &BTreeSet<String>) -> Result<String, String> {
    let at_root = |name: &&String| !name.contains('/') && name.ends_with(".safetensors");
    let files: Vec<&String> = names.iter().filter(at_root).collect();
    match files[..] {
        [file] => Ok(file.clone()),
        [] => Err(format!(
            "has neither {MODEL_INDEX} nor a .safetensors file, so it is no model that sdrt reads"
        )),
        [first, ..] => {
            let list: Vec<&str> = files.iter().map(|file| file.as_str()).collect();
            Err(format!("has several checkpoints: {}; name one of them, as in {id}:{first}", list.join(", ")))
        }
    }
}

/// Whether a path that came from elsewhere stays below the folder it is joined to.
pub fn is_relative(path: &str) -> bool {
    let is_plain = |part: Component| matches!(part, Component::Normal(_));
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != ".")
        && Path::new(path).components().all(is_plain)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::location::Location;

    fn object(value: Value) -> Object {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("index.json");
        std::fs::write(&file, value.to_string()).unwrap();
        Object::read(&Location::from(file)).unwrap()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_component_of_xl_is_taken_once_and_in_half_precision() {
        let index = object(json!({
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": [null, null],
        }));
        let all = names(&[
            "README.md",
            "model_index.json",
            "sd_xl_base.safetensors",
            "scheduler/scheduler_config.json",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/pytorch_model.bin",
            "text_encoder/flax_model.msgpack",
            "text_encoder/model.onnx",
            "text_encoder_2/config.json",
            "text_encoder_2/model.safetensors.index.json",
            "text_encoder_2/model.safetensors.index.fp16.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "tokenizer/extra/a.json",
            "tokenizer_2/merges.txt",
            "tokenizer_2/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "vae_1_0/diffusion_pytorch_model.safetensors",
        ]);
        let selection = select(&index, &all).unwrap();
        let texts = [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "tokenizer_2/merges.txt",
            "tokenizer_2/vocab.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
            "text_encoder_2/model.safetensors.index.fp16.json",
            "vae/config.json",
            "unet/config.json",
        ];
        assert_eq!(selection.texts, texts);
        assert_eq!(selection.indices, ["text_encoder_2/model.safetensors.index.fp16.json"]);
        let weights = [
            "text_encoder/model.fp16.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
        ];
        assert_eq!(selection.weights, weights);
    }

    #[test]
    fn a_repository_that_lacks_something_is_refused() {
        let index = object(json!({"vae": ["diffusers", "AutoencoderKL"]}));
        let refused = |files: &[&str]| select(&index, &names(files)).unwrap_err();
        assert!(refused(&[]).starts_with("has no vae/config.json, which"));
        assert!(refused(&["vae/config.json"]).starts_with("has no vae/diffusion_pytorch_model.safetensors"));
        let pickle = refused(&["vae/config.json", "vae/diffusion_pytorch_model.bin"]);
        assert!(pickle.starts_with("has vae/diffusion_pytorch_model.bin but no safetensors"), "{pickle}");
    }

    #[test]
    fn shards_are_files_beside_their_index() {
        let read = |map: Value| shards(&object(json!({"weight_map": map})), "unet/a.json");
        let files = read(json!({"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"})).unwrap();
        assert_eq!(files, ["unet/a.safetensors", "unet/b.safetensors"]);
        for bad in [json!("../a.safetensors"), json!("/a"), json!("a/b"), json!(""), json!(".."), json!(3)] {
            let error = read(json!({"x": bad})).unwrap_err().to_string();
            assert!(error.contains("expected a file name"), "{error}");
        }
        assert!(read(json!(3)).unwrap_err().to_string().contains("weight_map is 3"));
    }

    #[test]
    fn a_component_by_itself_is_its_configuration_and_its_weights() {
        let half = "diffusion_pytorch_model.fp16.safetensors";
        let found = component(&names(&["config.json", "diffusion_pytorch_model.safetensors", half])).unwrap();
        assert_eq!((found.texts, found.weights), (vec!["config.json".into()], vec![half.into()]));
        let index = "diffusion_pytorch_model.safetensors.index.json";
        let found = component(&names(&["config.json", index])).unwrap();
        assert_eq!(
            (found.texts, found.indices),
            (vec!["config.json".into(), index.into()], vec![index.into()])
        );
        let read = json!({"weight_map": {"x": "a.safetensors"}});
        assert_eq!(shards(&object(read), index).unwrap(), ["a.safetensors"]);
        assert_eq!(component(&names(&[half])), None);
        assert_eq!(component(&names(&["config.json", "model_index.json", half])), None);
    }

    #[test]
    fn without_a_model_index_the_only_checkpoint_is_meant() {
        let found = checkpoint("o/n", &names(&["README.md", "a.safetensors", "vae/b.safetensors"]));
        assert_eq!(found.as_deref(), Ok("a.safetensors"));
        let several = checkpoint("o/n", &names(&["a.safetensors", "b.safetensors"])).unwrap_err();
        assert!(several.contains("a.safetensors, b.safetensors; name one of them, as in o/n:a.safetensors"));
        assert!(checkpoint("o/n", &names(&["a.ckpt"])).unwrap_err().starts_with("has neither"));
    }
}
