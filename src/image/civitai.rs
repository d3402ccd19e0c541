//! The models that Civitai's own generator lists in a picture, under the key `Civitai resources`.

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// `checkpoint`, `lora`, `embed`, ...
    #[serde(rename = "type", default)]
    kind: String,
    model_name: Option<String>,
    model_version_id: Option<u64>,
}

/// None, if the value is not such a list.
pub fn resources(value: &str) -> Vec<Resource> {
    serde_json::from_str(value).unwrap_or_default()
}

impl Resource {
    pub fn is_checkpoint(&self) -> bool {
        self.kind == "checkpoint"
    }

    /// Its name, or the number that Civitai knows it by.
    pub fn name(&self) -> String {
        let number = || self.model_version_id.map(|id| format!("model version {id}"));
        self.model_name.clone().or_else(number).unwrap_or_else(|| "without a name".into())
    }

    /// Kind and name.
    pub fn describe(&self) -> String {
        format!("{} {}", self.kind, self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_have_kinds_and_names() {
        let value = r#"[{"type":"checkpoint","modelVersionId":1,"modelName":"DreamShaper","weight":1},
                        {"type":"lora","weight":0.7,"modelVersionId":87153},{}]"#;
        let found = resources(value);
        let names: Vec<String> = found.iter().map(Resource::describe).collect();
        assert_eq!(names, ["checkpoint DreamShaper", "lora model version 87153", " without a name"]);
        assert!(found[0].is_checkpoint() && !found[1].is_checkpoint());
        for value in ["", "[", "{}", "[1]", "null"] {
            assert!(resources(value).is_empty(), "{value}");
        }
    }
}
