//! How strong a file's changes are where no tensor says it: PEFT's configurations.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;
use crate::weights::component::Shard;

/// Where diffusers writes PEFT's configurations into the header of a file.
const ADAPTER_METADATA: &str = "lora_adapter_metadata";
/// PEFT's own file, and its configuration beside it.
const ADAPTER: [&str; 2] = ["adapter_model.safetensors", "adapter_config.json"];

/// What is known of alpha, by component; under "" for all.
pub struct Alphas(BTreeMap<&'static str, Alpha>);

struct Alpha {
    alpha: f64,
    /// For modules whose names end like this.
    pattern: Map<String, Value>,
    /// Whether alpha is divided by the square root of the rank (rsLoRA).
    rank_stabilized: bool,
}

impl Alphas {
    pub fn read(location: &Location, file: &Shard) -> Result<Self> {
        let mut alphas = BTreeMap::new();
        if let Some(text) = file.metadata(ADAPTER_METADATA) {
            let all: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
                let message = format!("{ADAPTER_METADATA} in its header: expected a JSON object ({error})");
                Error::file(location, message)
            })?;
            for component in ["", "unet", "text_encoder", "text_encoder_2"] {
                let of_component = |(key, value): (&String, &Value)| {
                    let rest = key.strip_prefix(component)?;
                    let key = if component.is_empty() { rest } else { rest.strip_prefix('.')? };
                    Some((key.to_string(), value.clone()))
                };
                let config = all.iter().filter_map(of_component).collect();
                alphas.extend(Alpha::of(&config).map(|alpha| (component, alpha)));
            }
        }
        if let Location::Disk(path) = location
            && location.name() == ADAPTER[0]
        {
            let config = Location::from(path.with_file_name(ADAPTER[1]));
            if config.is_file() {
                alphas.extend(Alpha::of(&Object::read(&config)?.map).map(|alpha| ("", alpha)));
            }
        }
        Ok(Alphas(alphas))
    }

    /// What a module's change is multiplied by: 1 where nothing is known.
    pub fn scale(&self, component: &str, module: &str, rank: usize) -> f32 {
        let Some(Alpha { alpha, pattern, rank_stabilized }) = self.0.get(component).or(self.0.get("")) else {
            return 1.0;
        };
        let ends_with =
            |name: &str| module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let of_module = pattern.iter().find(|(name, _)| ends_with(name));
        let alpha = of_module.and_then(|(_, alpha)| alpha.as_f64()).unwrap_or(*alpha);
        let rank = rank as f64;
        (alpha / if *rank_stabilized { rank.sqrt() } else { rank }) as f32
    }
}

impl Alpha {
    /// Of a `LoraConfig`; `None` if it says nothing of alpha.
    fn of(config: &Map<String, Value>) -> Option<Self> {
        Some(Alpha {
            alpha: config.get("lora_alpha")?.as_f64()?,
            pattern: config.get("alpha_pattern").and_then(Value::as_object).cloned().unwrap_or_default(),
            rank_stabilized: config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}
