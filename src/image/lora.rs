//! LoRAs in a picture's parameters.
//!
//! ```text
//! Lora hashes: "style: 499ac92037ea, fog: 2d0a11ebd9c5"
//! AddNet Module 1: LoRA, AddNet Model 1: style(499ac92037ea), AddNet Weight A 1: 0.8, AddNet Weight B 1: 0.8,
//! Lora file 1: loras/style.safetensors
//! ```
//! All that act are in A1111's hashes, which Civitai reads, too. Those that no tag of the prompt names are in the keys
//! of the extension Additional Networks besides, from which A1111 makes tags; `A` is the U-Net. Where the file is
//! is a key of our own.

use std::collections::BTreeSet;

use super::parameters::{Parameters, number_of, plain};

/// A LoRA that acts on a picture, and that its prompt does not name.
#[derive(Clone, Debug, PartialEq)]
pub struct UsedLora {
    /// As a tag would name it.
    pub name: String,
    /// [`Lora::hash`](crate::weights::Lora::hash).
    pub hash: Option<String>,
    /// A path, or an id of the hub; other programs do not tell.
    pub file: Option<String>,
    pub text_encoder: f32,
    pub unet: f32,
}

const HASHES: &str = "Lora hashes";
/// What this module reads of the extension's keys, before a number that counts from 1.
const NUMBERED: [&str; 5] =
    ["AddNet Module", "AddNet Model", "AddNet Weight A", "AddNet Weight B", "Lora file"];
/// The extension's other kinds change weights in other ways.
const MODULE: &str = "LoRA";

/// The settings of a picture: names and hashes of all LoRAs, and those that its prompt does not name.
pub fn settings(hashes: &[(String, String)], loras: &[UsedLora]) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    if !hashes.is_empty() {
        let pairs: BTreeSet<String> =
            hashes.iter().map(|(name, hash)| format!("{}: {hash}", plain(name))).collect();
        settings.push((HASHES.to_string(), Vec::from_iter(pairs).join(", ")));
    }
    for (lora, number) in loras.iter().zip(1..) {
        let UsedLora { name, hash, file, text_encoder, unet } = lora;
        let hash = hash.as_ref().map(|hash| format!("({hash})")).unwrap_or_default();
        let values = [
            Some(MODULE.to_string()),
            Some(format!("{name}{hash}")),
            Some(unet.to_string()),
            Some(text_encoder.to_string()),
            file.clone(),
        ];
        let given = NUMBERED.iter().zip(values).filter_map(|(key, value)| Some((key, value?)));
        settings.extend(given.map(|(key, value)| (format!("{key} {number}"), value)));
    }
    settings
}

/// The LoRAs that the prompt does not name, up to the first that is of another kind or not there.
pub fn read(parameters: &Parameters) -> Vec<UsedLora> {
    let lora = |number: usize| {
        let [module, model, unet, text_encoder, file] =
            NUMBERED.map(|key| parameters.get(&format!("{key} {number}")));
        let (name, hash) = name_and_hash(model.filter(|_| module == Some(MODULE))?);
        let weight = |text: Option<&str>| text.map_or(Some(1.0), |text| text.trim().parse().ok());
        Some(UsedLora {
            name: name.to_string(),
            hash: hash.map(String::from),
            file: file.map(String::from),
            text_encoder: weight(text_encoder.or(unet))?,
            unet: weight(unet)?,
        })
    };
    (1..).map_while(lora).collect()
}

/// Names and hashes of all LoRAs, as far as a picture tells them.
pub fn read_hashes(parameters: &Parameters) -> Vec<(String, String)> {
    let pairs = parameters.get(HASHES).unwrap_or_default().split(',');
    let pair = |pair: &str| {
        let (name, hash) = pair.split_once(':')?;
        Some((name.trim().to_string(), hash.trim().to_string()))
    };
    let mut hashes: Vec<_> = pairs.filter_map(pair).collect();
    for UsedLora { name, hash, .. } in read(parameters) {
        if !hashes.iter().any(|(other, _)| *other == plain(&name)) {
            hashes.extend(hash.map(|hash| (name, hash)));
        }
    }
    hashes
}

/// Whether [`read`] takes the key where there are so many LoRAs.
pub fn is_taken(key: &str, loras: usize) -> bool {
    let numbered = |name: &&str| number_of(key, name).is_some_and(|number| (1..=loras).contains(&number));
    [HASHES, "AddNet Enabled"].contains(&key) || NUMBERED.iter().any(numbered)
}

/// `name(hash)`.
fn name_and_hash(model: &str) -> (&str, Option<&str>) {
    let parts = model.strip_suffix(')').and_then(|model| model.rsplit_once('('));
    match parts.filter(|(_, hash)| !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        Some((name, hash)) => (name.trim_end(), Some(hash)),
        None => (model, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(settings: Vec<(String, String)>) -> Parameters {
        let steps = [("Steps", "2"), ("Sampler", "Euler"), ("Seed", "1")];
        let steps = steps.map(|(key, value)| (key.to_string(), value.to_string()));
        let settings = steps.into_iter().chain(settings).collect();
        Parameters::parse(
            &Parameters { prompt: "a fox".into(), settings, ..Parameters::default() }.to_string(),
        )
    }

    #[test]
    fn what_is_written_comes_back() {
        let lora = |name: &str, file: Option<&str>| UsedLora {
            name: name.into(),
            hash: Some("499ac92037ea".into()),
            file: file.map(String::from),
            text_encoder: 1.0 / 3.0,
            unet: -0.5,
        };
        let loras = [
            lora("style", Some("loras/style.safetensors")),
            lora("two, \"odd\": (v2)", Some("owner/name@fp16:a b.safetensors")),
            UsedLora { hash: None, ..lora("untold", None) },
        ];
        let hashes =
            [("style".to_string(), "499ac92037ea".to_string()), ("tag".into(), "2d0a11ebd9c5".into())];
        let read_again = parameters(settings(&hashes, &loras));
        assert_eq!(read(&read_again), loras);
        assert_eq!(read_hashes(&read_again)[..2], hashes);
        assert!(read_again.settings.iter().skip(3).all(|(key, _)| is_taken(key, 3)));
        assert!(!is_taken("AddNet Model 4", 3) && !is_taken("Seed", 3));
        assert_eq!(settings(&[], &[]), []);
    }

    #[test]
    fn texts_are_those_of_a1111_and_additional_networks() {
        let lora = UsedLora {
            name: "style".into(),
            hash: Some("499ac92037ea".into()),
            file: Some("style.safetensors".into()),
            text_encoder: 0.8,
            unet: 0.8,
        };
        let hashes =
            [("a:b,c".to_string(), "2d0a11ebd9c5".to_string()), ("style".into(), "499ac92037ea".into())];
        let text = parameters(settings(&hashes, &[lora])).to_string();
        let expected = "a fox\nSteps: 2, Sampler: Euler, Seed: 1, Lora hashes: \"abc: 2d0a11ebd9c5, style: \
                        499ac92037ea\", AddNet Module 1: LoRA, AddNet Model 1: style(499ac92037ea), AddNet Weight \
                        A 1: 0.8, AddNet Weight B 1: 0.8, Lora file 1: style.safetensors";
        assert_eq!(text, expected);
        let other = "p\nSteps: 1, Seed: 2, AddNet Enabled: True, AddNet Module 1: LoRA, AddNet Model 1: \
                     van_gogh(db68853d039b), AddNet Weight A 1: -1.0, AddNet Module 2: LyCORIS, AddNet Model 2: x";
        let other = Parameters::parse(other);
        let loras = read(&other);
        assert_eq!(loras.len(), 1);
        assert_eq!((loras[0].name.as_str(), loras[0].unet, loras[0].text_encoder), ("van_gogh", -1.0, -1.0));
        assert_eq!(read_hashes(&other), [("van_gogh".to_string(), "db68853d039b".to_string())]);
        assert!(!is_taken("AddNet Model 2", loras.len()));
    }
}
