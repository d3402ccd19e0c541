//! ControlNets in a picture's parameters.
//!
//! ```text
//! ControlNet 0: "Module: none, Model: canny [d14c016b], Weight: 0.8, Resize Mode: Just Resize, Guidance Start: 0,
//!     Guidance End: 1, Control Mode: Balanced"
//! Control model 0: nets/canny, Control image 0: edges.png, Control image hash 0: 5e884898da28
//! ```
//! The first key is that of A1111's ControlNet extension (`scripts/infotext.py`), with what it calls the way in which
//! sdrt uses a ControlNet. It does not say where files are; the keys of our own do.

use super::parameters::{Parameters, number_of, plain};
use crate::pipeline::Control;
use crate::raster::Raster;
use crate::sha256;

/// A ControlNet that steered a picture, and what it read.
#[derive(Clone, Debug, PartialEq)]
pub struct UsedControlNet {
    pub name: String,
    /// [`controlnet::hash`](crate::weights::controlnet::hash).
    pub hash: String,
    /// A path, or an id of the hub.
    pub model: String,
    /// The path of what it read.
    pub image: String,
    /// [`image_hash`].
    pub image_hash: String,
    pub strength: f32,
    pub start: f64,
    pub end: f64,
}

const UNIT: &str = "ControlNet";
const MODEL: &str = "Control model";
const IMAGE: &str = "Control image";
const IMAGE_HASH: &str = "Control image hash";

/// The first digits of the SHA-256 of a picture's pixels, whatever file they are in.
pub fn image_hash(image: &Raster) -> String {
    const DIGITS: usize = 12;
    sha256::short(&image.rgb, DIGITS)
}

impl UsedControlNet {
    /// The settings of the ControlNet of this number.
    fn settings(&self, number: usize) -> [(String, String); 4] {
        let UsedControlNet { hash, strength, start, end, .. } = self;
        let name = plain(&self.name);
        let unit = format!(
            "Module: none, Model: {name} [{hash}], Weight: {strength}, Resize Mode: Just Resize, Guidance Start: \
             {start}, Guidance End: {end}, Control Mode: Balanced"
        );
        let values = [&unit, &self.model, &self.image, &self.image_hash];
        let keys = [UNIT, MODEL, IMAGE, IMAGE_HASH].map(|key| format!("{key} {number}"));
        std::array::from_fn(|i| (keys[i].clone(), values[i].clone()))
    }

    fn read(parameters: &Parameters, number: usize) -> Option<Self> {
        let get = |key: &str| parameters.get(&format!("{key} {number}"));
        let unit = get(UNIT)?;
        let of_unit = |field: &str| {
            let mut fields = unit.split(", ").filter_map(|item| item.split_once(": "));
            fields.find(|(name, _)| *name == field).map(|(_, value)| value)
        };
        let (name, hash) = of_unit("Model")?.strip_suffix(']')?.rsplit_once(" [")?;
        Some(UsedControlNet {
            name: name.to_string(),
            hash: hash.to_string(),
            model: get(MODEL)?.to_string(),
            image: get(IMAGE)?.to_string(),
            image_hash: get(IMAGE_HASH)?.to_string(),
            strength: of_unit("Weight")?.parse().ok()?,
            start: of_unit("Guidance Start")?.parse().ok()?,
            end: of_unit("Guidance End")?.parse().ok()?,
        })
    }

    /// What it was given.
    pub fn control(&self, image: Raster) -> Control {
        Control { image, strength: self.strength, start: self.start, end: self.end }
    }
}

pub fn settings(controlnets: &[UsedControlNet]) -> Vec<(String, String)> {
    controlnets.iter().enumerate().flat_map(|(number, net)| net.settings(number)).collect()
}

/// Those of a picture of ours; other programs say too little to use theirs.
pub fn read(parameters: &Parameters) -> Vec<UsedControlNet> {
    (0..).map_while(|number| UsedControlNet::read(parameters, number)).collect()
}

/// Whether [`read`] takes the key where there are so many ControlNets.
pub fn is_taken(key: &str, controlnets: usize) -> bool {
    let numbered = |name: &&str| number_of(key, name).is_some_and(|number| number < controlnets);
    [UNIT, MODEL, IMAGE, IMAGE_HASH].iter().any(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(controlnets: &[UsedControlNet]) -> Parameters {
        let steps = [("Steps", "2"), ("Sampler", "Euler"), ("Seed", "1")];
        let steps = steps.map(|(key, value)| (key.to_string(), value.to_string()));
        let settings = steps.into_iter().chain(settings(controlnets)).collect();
        Parameters::parse(
            &Parameters { prompt: "a fox".into(), settings, ..Parameters::default() }.to_string(),
        )
    }

    fn canny() -> UsedControlNet {
        UsedControlNet {
            name: "canny".into(),
            hash: "d14c016b".into(),
            model: "nets/canny".into(),
            image: "edges.png".into(),
            image_hash: "5e884898da28".into(),
            strength: 0.8,
            start: 0.0,
            end: 1.0,
        }
    }

    #[test]
    fn what_is_written_comes_back() {
        let odd = UsedControlNet {
            model: "owner/name:a, b.safetensors".into(),
            image: "in \"quotes\", C: \\ 猫.png".into(),
            strength: -1.0 / 3.0,
            start: 1.0 / 3.0,
            end: 0.7,
            ..canny()
        };
        let nets = [canny(), odd];
        let again = parameters(&nets);
        assert_eq!(read(&again), nets);
        assert!(again.settings.iter().skip(3).all(|(key, _)| is_taken(key, 2)));
        assert!(!is_taken("ControlNet 2", 2) && !is_taken("Seed", 2));
        let other = "p\nSteps: 1, Seed: 2, ControlNet 0: \"Module: canny, Model: x [d14c016b], Weight: 1\"";
        assert_eq!(read(&Parameters::parse(other)), []);
    }

    /// `parse_unit` of the extension splits at every comma, then at the one `": "`.
    #[test]
    fn the_extension_reads_its_key() {
        let odd = UsedControlNet { name: "a: b, c".into(), ..canny() };
        let text = parameters(&[odd]);
        let unit = text.get("ControlNet 0").unwrap();
        let fields: Vec<Vec<&str>> = unit.split(',').map(|item| item.trim().split(": ").collect()).collect();
        assert!(fields.iter().all(|field| field.len() == 2), "{unit}");
        let names: Vec<&str> = fields.iter().map(|field| field[0]).collect();
        let known =
            ["Module", "Model", "Weight", "Resize Mode", "Guidance Start", "Guidance End", "Control Mode"];
        assert_eq!(names, known);
        assert_eq!(fields[1][1], "a b c [d14c016b]");
    }
}
