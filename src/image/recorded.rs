//! What a picture's parameters ask of this program.

use std::path::{Path, PathBuf};

use super::a1111_names::{automatic, sampler_and_schedule};
use super::civitai::{self, Resource};
use super::controlnet::{self, UsedControlNet};
use super::lora::{self, UsedLora};
use super::origin::{LATENT, Origin, REFINER, REFINER_START, VERSION};
use super::parameters::{Parameters, plain};
use super::read;
use crate::error::Result;
use crate::ops::DType;
use crate::parameter::{Key, Parameter};
use crate::pipeline::RequestPatch;
use crate::sampler::{Sampler, Schedule};

/// The parameters of an image's file, as values of a request and in what these leave out.
#[derive(Clone, Debug)]
pub struct Recorded {
    path: PathBuf,
    parameters: Parameters,
}

/// A1111's other key of eta.
const ETA_DDIM: &str = "Eta DDIM";
/// The keys of hires fix.
const HIRES: [Parameter; 3] = [Parameter::HiresScale, Parameter::HiresSteps, Parameter::HiresStrength];
/// Other keys that are taken, or that change no pixel.
const UNDERSTOOD: [&str; 16] = [
    "Sampler",
    "Schedule type",
    "Size",
    "Model",
    "RNG",
    "Device",
    "Precision",
    "Version",
    "Model hash",
    "Hashes",
    "TI hashes",
    "User",
    "Created Date",
    "Civitai resources",
    "Civitai metadata",
    "SDCPP",
];
/// Settings that change nothing at these values.
const NEUTRAL: [(&str, &str); 3] = [("Clip skip", "1"), ("ENSD", "0"), ("Hires steps", "0")];

impl Recorded {
    /// # Errors
    /// A file that is no picture, or does not say how it was painted.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Recorded { path: path.into(), parameters: Parameters::parse(&read(path)?) })
    }

    /// The values that ask for the image, without those that `given` has.
    ///
    /// # Errors
    /// A value that its parameter does not take.
    pub fn patch(&self, given: &RequestPatch) -> Result<RequestPatch> {
        let mut patch = RequestPatch::default();
        for (parameter, text) in self.values(given.sampler) {
            if !given.has(parameter) {
                patch.set(parameter, &text)?;
            }
        }
        Ok(patch)
    }

    /// The parameters that ask for the image, with their values as it has them. `sampler` is the one that is asked for
    /// instead of the image's.
    fn values(&self, sampler: Option<Sampler>) -> Vec<(Parameter, String)> {
        let Parameters { prompt, negative_prompt, .. } = &self.parameters;
        let mut values =
            vec![(Parameter::Prompt, prompt.clone()), (Parameter::NegativePrompt, negative_prompt.clone())];
        let mut push = |parameter, value: Option<&str>| {
            values.extend(value.map(|value| (parameter, value.trim().to_string())));
        };
        let own = |key| self.parameters.get(key).filter(|&value| !NEUTRAL.contains(&(key, value)));
        for &parameter in Parameter::ALL {
            if let Key::Plain(key) | Key::Read(key) = parameter.row().key {
                push(parameter, own(key));
            }
        }
        push(Parameter::Eta, own(ETA_DDIM));
        push(Parameter::RefinerStart, own(REFINER_START));
        for parameter in HIRES.into_iter().filter(|_| self.is_hires()) {
            push(parameter, parameter.row().key.name().and_then(own));
        }
        if !self.is_ours() {
            push(Parameter::PromptStyle, Some("a1111"));
        }
        if let Some((width, height)) = self.size() {
            push(Parameter::Width, Some(width));
            push(Parameter::Height, Some(height));
        }
        let name = self.parameters.get("Sampler");
        let known = name.and_then(sampler_and_schedule);
        push(Parameter::Sampler, known.map(|(sampler, _)| sampler.name()).or(name));
        let combined = known.and_then(|(_, schedule)| schedule).map(Schedule::name);
        let sampler = sampler.or(known.map(|(sampler, _)| sampler));
        push(Parameter::Schedule, combined.or_else(|| self.schedule(sampler)));
        push(Parameter::Rng, Some(self.rng()));
        values
    }

    /// Whether it was painted in two passes with the upscaler that is here, too.
    fn is_hires(&self) -> bool {
        self.parameters.get("Hires upscaler") == Some(LATENT)
            && self.parameters.get("Hires upscale").is_some()
    }

    /// Width and height.
    fn size(&self) -> Option<(&str, &str)> {
        self.parameters.get("Size")?.split_once('x')
    }

    /// A1111's pictures without the key took the noise of torch's CUDA generator.
    fn rng(&self) -> &str {
        match self.parameters.get("RNG").unwrap_or("GPU") {
            "CPU" => "cpu",
            "GPU" | "NV" => "cuda",
            other => other,
        }
    }

    /// The schedule beside a sampler, which decides where an A1111 picture says `Automatic` or nothing.
    fn schedule(&self, sampler: Option<Sampler>) -> Option<&str> {
        match self.parameters.get("Schedule type") {
            None | Some("Automatic") if !self.is_ours() => sampler.map(automatic).map(Schedule::name),
            // A1111's name for what the samplers of k-diffusion do by themselves.
            Some("Uniform") => Some(Schedule::Linspace.name()),
            said => said,
        }
    }

    /// The name of the model.
    pub fn model(&self) -> Option<String> {
        let named = self.parameters.get("Model").map(String::from);
        named
            .or_else(|| self.resources().iter().find(|resource| resource.is_checkpoint()).map(Resource::name))
    }

    /// The LoRAs that the prompt does not name.
    pub fn loras(&self) -> Vec<UsedLora> {
        lora::read(&self.parameters)
    }

    /// The ControlNets that can be used again: those of sdrt.
    pub fn controlnets(&self) -> Vec<UsedControlNet> {
        if self.is_ours() { controlnet::read(&self.parameters) } else { Vec::new() }
    }

    fn resources(&self) -> Vec<Resource> {
        self.parameters.get("Civitai resources").map(civitai::resources).unwrap_or_default()
    }

    /// What the weights were kept in on a GPU. On a CPU there is no choice.
    pub fn gpu_dtype(&self) -> Option<DType> {
        let on_gpu = self.is_ours() && self.parameters.get("Device").is_some_and(|device| device != "CPU");
        self.parameters.get("Precision").filter(|_| on_gpu)?.parse().ok()
    }

    /// What of the picture cannot be had, or not surely.
    pub fn warnings(&self, origin: &Origin) -> Vec<String> {
        let path = self.path.display();
        let others = [
            self.other_model(origin),
            self.other_refiner(origin),
            self.left_out(origin),
            self.missing(),
            self.other_machine(origin),
        ];
        let files = self.other_loras(origin).into_iter().chain(self.other_controlnets(origin));
        others.into_iter().flatten().chain(files).map(|what| format!("{path} {what}")).collect()
    }

    fn other_model(&self, origin: &Origin) -> Option<String> {
        let model = self.model().filter(|model| *model != origin.model)?;
        let hash =
            self.parameters.get("Model hash").map(|hash| format!(" (hash {hash})")).unwrap_or_default();
        Some(format!("was painted with {model}{hash}, this is {}", origin.model))
    }

    fn other_refiner(&self, origin: &Origin) -> Option<String> {
        let here = origin.refiner.as_ref()?;
        let there = self.parameters.get(REFINER).filter(|there| plain(there) != plain(here))?;
        Some(format!("was refined with {there}, this is {here}"))
    }

    /// LoRAs that have the name of one of the picture's, and other weights.
    fn other_loras(&self, origin: &Origin) -> Vec<String> {
        let mut others = Vec::new();
        for (name, there) in lora::read_hashes(&self.parameters) {
            let of_name = |(other, _): &&(String, String)| plain(other) == plain(&name);
            let here: Vec<&(String, String)> = origin.lora_hashes.iter().filter(of_name).collect();
            let is_here = here.iter().any(|(_, here)| here.starts_with(&there));
            others.extend(here.first().filter(|_| !is_here).map(|(_, here)| {
                format!("was painted with another LoRA {name} (hash {there}) than this one (hash {here})")
            }));
        }
        others
    }

    /// ControlNets and what they read, where they are not the picture's.
    fn other_controlnets(&self, origin: &Origin) -> Vec<String> {
        let model = |net: &UsedControlNet| format!("{} (hash {})", plain(&net.name), net.hash);
        let recorded = self.controlnets();
        let mut others = Vec::new();
        for (there, here) in recorded.iter().zip(&origin.controlnets) {
            if model(there) != model(here) {
                others.push(format!("was steered by {}, this is {}", model(there), model(here)));
            }
            if there.image_hash != here.image_hash {
                others.push(format!(
                    "was steered by another picture than {}: {}, whose pixels have the hash {}",
                    here.image, there.image, there.image_hash
                ));
            }
        }
        let left = recorded.iter().skip(origin.controlnets.len());
        others.extend(left.map(|net| format!("was steered by {} too, which is left out here", model(net))));
        others
    }

    fn left_out(&self, origin: &Origin) -> Option<String> {
        let (loras, controlnets) = (self.loras().len(), self.controlnets().len());
        let is_taken = |key: &str| {
            (origin.refiner.is_some() && [REFINER, REFINER_START].contains(&key))
                || lora::is_taken(key, loras)
                || controlnet::is_taken(key, controlnets)
                || (self.is_hires() && is_of_hires(key))
        };
        let settings = self.parameters.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut left_out: Vec<String> = settings
            .filter(|(key, _)| !UNDERSTOOD.contains(key) && !is_read(key))
            .filter(|setting| !NEUTRAL.contains(setting))
            .filter(|(key, _)| !is_taken(key))
            .map(|(key, value)| format!("{key}: {value}"))
            .collect();
        let resources = self.resources();
        left_out
            .extend(resources.iter().filter(|resource| !resource.is_checkpoint()).map(Resource::describe));
        (!left_out.is_empty()).then(|| format!("has what is left out here: {}", left_out.join(", ")))
    }

    fn missing(&self) -> Option<String> {
        let missing: Vec<&str> = ["Steps", "Sampler", "CFG scale", "Seed", "Size"]
            .into_iter()
            .filter(|key| self.parameters.get(key).is_none())
            .collect();
        (!missing.is_empty()).then(|| format!("does not say its {}", missing.join(", ")))
    }

    /// Says what differs between the machine of a picture of ours and this one.
    fn other_machine(&self, origin: &Origin) -> Option<String> {
        let said = |key| self.parameters.get(key).unwrap_or("?");
        let there = (said("Version"), said("Device"), said("Precision").to_string());
        let here = (VERSION, origin.device.as_str(), origin.dtype.to_string());
        let painter = |(version, device, dtype)| format!("{version} on {device} in {dtype}");
        (self.is_ours() && there != here).then(|| {
            format!(
                "was painted by {}, this is {}: pixels may differ slightly",
                painter(there),
                painter(here)
            )
        })
    }

    fn is_ours(&self) -> bool {
        self.parameters.get("Version").is_some_and(|version| version.starts_with("sdrt "))
    }
}

/// Whether the value of a key is taken as it is.
fn is_read(key: &str) -> bool {
    let reads = |parameter: &Parameter| match parameter.row().key {
        Key::Plain(name) | Key::Read(name) => name == key,
        Key::None | Key::Own(_) => false,
    };
    key == ETA_DDIM || Parameter::ALL.iter().any(reads)
}

fn is_of_hires(key: &str) -> bool {
    key == "Hires upscaler" || HIRES.iter().any(|parameter| parameter.row().key.name() == Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Hires, KnownShapes, Request, SizeConditioning};
    use crate::rng::Rng;
    use crate::text::{LongPrompt, PromptStyle};

    fn recorded(text: &str) -> Recorded {
        Recorded { path: "a.png".into(), parameters: Parameters::parse(text) }
    }

    fn origin() -> Origin {
        Origin {
            model: "tiny".into(),
            device: "CPU".into(),
            dtype: DType::F32,
            refiner: None,
            lora_hashes: Vec::new(),
            loras: Vec::new(),
            controlnets: Vec::new(),
        }
    }

    fn request() -> Request {
        let defaults = Request::defaults(&KnownShapes::Sd15.describe(), Sampler::Pndm);
        Request { prompt: "a cat, asleep".into(), seed: 5, ..defaults }
    }

    #[test]
    fn parameters_are_what_a1111_reads() {
        let text = origin().parameters(&request(), 0).to_string();
        let settings = format!(
            "Steps: 20, Sampler: PLMS, Schedule type: Automatic, CFG scale: 7.5, Seed: 5, Size: 512x512, \
             Model: tiny, RNG: CPU, Device: CPU, Precision: f32, Version: {VERSION}"
        );
        assert_eq!(text, format!("a cat, asleep\n{settings}"));
        let batch = Request { images: 3, seed: u64::MAX, ..request() };
        let text = origin().parameters(&batch, 2).to_string();
        assert!(text.contains("Seed: 1, ") && text.contains("Batch size: 3, Batch pos: 2, "), "{text}");
    }

    /// The value of a flag.
    fn flag(recorded: &Recorded, sampler: Option<Sampler>, name: &str) -> String {
        let parameter = Parameter::of_flag(name).unwrap();
        let found = recorded.values(sampler).into_iter().find(|(other, _)| *other == parameter);
        found.map(|(_, value)| value).unwrap_or_default()
    }

    #[test]
    fn what_was_asked_for_comes_back() {
        for sampler in Sampler::ALL {
            for schedule in Schedule::ALL {
                let (guidance_scale, seed, rng) = (1.0 / 3.0, u64::MAX - 4, Rng::Cuda);
                let asked = Request { sampler, schedule, guidance_scale, seed, rng, ..request() };
                let again = recorded(&origin().parameters(&asked, 0).to_string());
                let flag = |name| flag(&again, None, name);
                assert_eq!((flag("prompt"), flag("negative-prompt")), (asked.prompt, String::new()));
                assert_eq!(flag("steps"), asked.steps.to_string());
                assert_eq!(flag("sampler").parse::<Sampler>().unwrap(), sampler);
                assert_eq!(flag("schedule").parse::<Schedule>().unwrap(), schedule);
                assert_eq!(flag("guidance-scale").parse::<f32>().unwrap(), guidance_scale);
                assert_eq!(flag("seed"), seed.to_string());
                assert_eq!((flag("width"), flag("height")), ("512".to_string(), "512".to_string()));
                assert_eq!(flag("rng").parse::<Rng>().unwrap(), rng);
                assert_eq!(again.warnings(&origin()), [""; 0]);
            }
        }
    }

    #[test]
    fn what_is_seldom_asked_for_comes_back_too() {
        let asked = Request {
            clip_skip: Some(2),
            eta: Some(0.25),
            guidance_rescale: 0.7,
            guidance_start: 0.25,
            guidance_end: 0.75,
            sigmas: Some("14.6,3.5,0".parse().unwrap()),
            size: SizeConditioning { original: Some([512, 256]), crop: [3, 4], target: Some([64, 32]) },
            prompt_style: PromptStyle::A1111,
            long_prompt: Some(LongPrompt::Truncate),
            hires: Some(Hires { scale: 1.5, strength: 0.6, steps: Some(9) }),
            ..request()
        };
        let again = recorded(&origin().parameters(&asked, 0).to_string());
        for (name, value) in [
            ("clip-skip", "2"),
            ("eta", "0.25"),
            ("guidance-rescale", "0.7"),
            ("guidance-start", "0.25"),
            ("guidance-end", "0.75"),
            ("sigmas", "14.6,3.5,0"),
            ("original-size", "512x256"),
            ("crop", "3,4"),
            ("target-size", "64x32"),
            ("prompt-style", "a1111"),
            ("long-prompt", "truncate"),
            ("hires-scale", "1.5"),
            ("hires-strength", "0.6"),
            ("hires-steps", "9"),
        ] {
            assert_eq!(flag(&again, None, name), value);
        }
        assert_eq!(again.warnings(&origin()), [""; 0]);
        let given = RequestPatch { eta: Some(1.0), ..RequestPatch::default() };
        let patch = again.patch(&given).unwrap();
        assert_eq!((patch.eta, patch.clip_skip, patch.crop), (None, Some(2), Some([3, 4])));
        let unknown = recorded("p\nSteps: 1, Sampler: Restart, Seed: 2");
        let message = unknown.patch(&given).unwrap_err().to_string();
        assert!(message.starts_with("--sampler Restart: no such sampler"), "{message}");
        let given = RequestPatch { sampler: Some(Sampler::Heun), ..given };
        assert_eq!(unknown.patch(&given).unwrap().steps, Some(1));
    }

    #[test]
    fn what_a1111_leaves_open_is_as_there() {
        for (said, sampler, schedule) in [
            ("DPM++ 2M Karras", "dpm++2m", "karras"),
            ("DPM++ 2M SDE Exponential", "dpm++2m-sde", "exponential"),
            ("DPM++ 2M", "dpm++2m", "karras"),
            ("DPM++ 2M, Schedule type: Uniform", "dpm++2m", "linspace"),
            ("DPM++ 2M SDE, Schedule type: Automatic", "dpm++2m-sde", "exponential"),
            ("euler_a karras", "euler-a", "karras"),
            ("Euler a", "euler-a", "linspace"),
            ("DDIM", "ddim", "model"),
            ("Restart, Schedule type: Bus", "Restart", "Bus"),
        ] {
            let read = recorded(&format!("p\nSteps: 1, Sampler: {said}, Seed: 2"));
            assert_eq!(flag(&read, None, "sampler"), sampler);
            assert_eq!(flag(&read, None, "schedule"), schedule, "{said}");
            assert_eq!(flag(&read, None, "rng"), "cuda");
        }
        let read = recorded("p\nSteps: 1, Sampler: Restart, Seed: 2");
        assert_eq!(flag(&read, Some(Sampler::DpmPp2m), "schedule"), "karras");
        assert_eq!(flag(&read, None, "schedule"), "");
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let read = recorded(
            "a (cat:1.2)\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, \
             Model hash: 6ce0161689, Model: v1-5, Clip skip: 1, ENSD: 0, Hires upscale: 2",
        );
        assert_eq!(
            read.warnings(&origin()),
            [
                "a.png was painted with v1-5 (hash 6ce0161689), this is tiny",
                "a.png has what is left out here: Hires upscale: 2",
            ]
        );
        let missing = recorded("a cat").warnings(&origin());
        assert_eq!(missing, ["a.png does not say its Steps, Sampler, CFG scale, Seed, Size"]);
    }

    #[test]
    fn loras_of_other_weights_are_named() {
        let hashes = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, hash)| (name.to_string(), hash.to_string()));
            Origin { lora_hashes: pairs.collect(), ..origin() }
        };
        let there = hashes(&[("style", "499ac92037ea"), ("style", "2d0a11ebd9c5"), ("a:b", "0123456789ab")]);
        let read = recorded(&there.parameters(&request(), 0).to_string());
        assert_eq!(read.warnings(&there), [""; 0]);
        assert_eq!(read.warnings(&origin()), [""; 0]);
        let sentence =
            "a.png was painted with another LoRA ab (hash 0123456789ab) than this one (hash ba9876543210)";
        assert_eq!(read.warnings(&hashes(&[("a:b", "ba9876543210")])), [sentence]);
    }

    #[test]
    fn another_machine_is_named() {
        let there = Origin { device: "NVIDIA H100 (sm_90)".into(), dtype: DType::F16, ..origin() };
        let read = recorded(&there.parameters(&request(), 0).to_string());
        assert_eq!(read.gpu_dtype(), Some(DType::F16));
        let warnings = read.warnings(&origin());
        let sentence = format!(
            "a.png was painted by {VERSION} on NVIDIA H100 (sm_90) in f16, this is {VERSION} on CPU in f32: \
             pixels may differ slightly"
        );
        assert_eq!(warnings, [sentence]);
        assert_eq!(recorded(&origin().parameters(&request(), 0).to_string()).gpu_dtype(), None);
    }
}
