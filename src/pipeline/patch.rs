//! The parameters that a request gives, whoever reads them: flags, HTTP fields, or the text in images.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::Value as Json;

use super::init::Hires;
use super::model::Description;
use super::request::{Request, SizeConditioning};
use crate::error::{Invalid, Result};
use crate::parameter::{Key, Parameter, Range, sentence};
use crate::rng::{Rng, random_seed};
use crate::sampler::{NoiseLevels, Sampler, Schedule};
use crate::text::{LongPrompt, PromptStyle};

/// How a type of values is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Whole,
    Number,
}

/// A type of values that parameters have.
trait Value: Sized {
    const KIND: Kind;

    fn read(parameter: Parameter, text: &str) -> Result<Self>;

    fn write(&self, parameter: Parameter) -> String;

    /// Reads a text by default.
    fn read_json(parameter: Parameter, json: &Json) -> Result<Self> {
        Self::read(parameter, &of_json::<String>(parameter, json)?)
    }
}

fn of_json<T: serde::de::DeserializeOwned>(parameter: Parameter, json: &Json) -> Result<T> {
    T::deserialize(json).map_err(|error| Invalid::of([parameter]).problem(error).error())
}

impl Value for String {
    const KIND: Kind = Kind::Text;

    fn read(_: Parameter, text: &str) -> Result<Self> {
        Ok(text.into())
    }
    fn write(&self, _: Parameter) -> String {
        self.clone()
    }
}

macro_rules! numbers {
    ($($type:ty, $kind:ident, $expected:literal;)*) => { $(
        impl Value for $type {
            const KIND: Kind = Kind::$kind;

            fn read(parameter: Parameter, text: &str) -> Result<Self> {
                number(parameter, text, $expected)
            }
            fn write(&self, _: Parameter) -> String {
                self.to_string()
            }
            fn read_json(parameter: Parameter, json: &Json) -> Result<Self> {
                of_json(parameter, json)
            }
        }
    )* };
}
numbers! {
    usize, Whole, "a whole number";
    u64, Whole, "a whole number from 0 to 18446744073709551615";
    f32, Number, "a number";
    f64, Number, "a number";
}

fn number<T: FromStr<Err: Display>>(parameter: Parameter, text: &str, expected: &str) -> Result<T> {
    text.trim().parse().map_err(|error: T::Err| {
        let invalid = Invalid::value(parameter, text).expected(expected);
        match parameter {
            Parameter::Seed => {
                invalid.advice(sentence!["leave ", parameter, " out for a random one"]).error()
            }
            _ => invalid.problem(error).error(),
        }
    })
}

macro_rules! names {
    ($($type:ty),*) => { $(
        impl Value for $type {
            const KIND: Kind = Kind::Text;

            fn read(_: Parameter, text: &str) -> Result<Self> {
                text.parse()
            }
            fn write(&self, _: Parameter) -> String {
                self.to_string()
            }
        }
    )* };
}
names!(Sampler, Schedule, Rng, PromptStyle, LongPrompt, NoiseLevels);

/// Two whole numbers, between which the parameter's range has its separator.
impl Value for [usize; 2] {
    const KIND: Kind = Kind::Text;

    fn read(parameter: Parameter, text: &str) -> Result<Self> {
        let range = parameter.row().range;
        let numbers = || {
            let Range::Pair { separator, from, .. } = range else { return None };
            let number = |text: &str| {
                text.trim().parse().ok().filter(|n: &usize| (from as usize..10_000_000).contains(n))
            };
            let (first, second) = text.split_once(separator)?;
            Some([number(first)?, number(second)?])
        };
        numbers().ok_or_else(|| Invalid::value(parameter, text).expected(range).error())
    }
    fn write(&self, parameter: Parameter) -> String {
        let separator = match parameter.row().range {
            Range::Pair { separator, .. } => separator,
            _ => 'x',
        };
        format!("{}{separator}{}", self[0], self[1])
    }
}

macro_rules! patch {
    ($($field:ident: $type:ty = $parameter:ident;)*) => {
        /// Typed values of parameters; the model, or the sampler, decides those that are `None`.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct RequestPatch {
            $(pub $field: Option<$type>,)*
        }

        impl RequestPatch {
            /// The parameters of the fields.
            pub const PARAMETERS: &[Parameter] = &[$(Parameter::$parameter),*];

            pub fn has(&self, parameter: Parameter) -> bool {
                self.text(parameter).is_some()
            }

            /// How a parameter of [`RequestPatch::PARAMETERS`] is written in JSON.
            pub fn kind(parameter: Parameter) -> Option<Kind> {
                match parameter {
                    $(Parameter::$parameter => Some(<$type as Value>::KIND),)*
                    _ => None,
                }
            }

            /// Takes a value from its text. A parameter that has no field is ignored.
            ///
            /// # Errors
            /// A text that is no value of the parameter's type.
            pub fn set(&mut self, parameter: Parameter, text: &str) -> Result<()> {
                match parameter {
                    $(Parameter::$parameter => self.$field = Some(Value::read(parameter, text)?),)*
                    _ => {}
                }
                Ok(())
            }

            /// Takes a value from JSON, where null is none. A parameter that has no field is ignored.
            ///
            /// # Errors
            /// JSON that is no value of the parameter's type.
            pub fn set_json(&mut self, parameter: Parameter, json: &Json) -> Result<()> {
                match parameter {
                    _ if json.is_null() => {}
                    $(Parameter::$parameter => self.$field = Some(Value::read_json(parameter, json)?),)*
                    _ => {}
                }
                Ok(())
            }

            /// The value as [`RequestPatch::set`] reads it.
            pub fn text(&self, parameter: Parameter) -> Option<String> {
                match parameter {
                    $(Parameter::$parameter => self.$field.as_ref().map(|value| value.write(parameter)),)*
                    _ => None,
                }
            }

            /// These values, and those of `other` where there are none.
            pub fn or(self, other: Self) -> Self {
                RequestPatch { $($field: self.$field.or(other.$field),)* }
            }
        }
    };
}

patch! {
    prompt: String = Prompt;
    negative_prompt: String = NegativePrompt;
    prompt_style: PromptStyle = PromptStyle;
    long_prompt: LongPrompt = LongPrompt;
    clip_skip: usize = ClipSkip;
    steps: usize = Steps;
    guidance_scale: f32 = GuidanceScale;
    guidance_rescale: f32 = GuidanceRescale;
    guidance_start: f64 = GuidanceStart;
    guidance_end: f64 = GuidanceEnd;
    image_guidance_scale: f32 = ImageGuidanceScale;
    sampler: Sampler = Sampler;
    schedule: Schedule = Schedule;
    eta: f64 = Eta;
    sigmas: NoiseLevels = Sigmas;
    seed: u64 = Seed;
    rng: Rng = Rng;
    width: usize = Width;
    height: usize = Height;
    original_size: [usize; 2] = OriginalSize;
    crop: [usize; 2] = Crop;
    target_size: [usize; 2] = TargetSize;
    aesthetic_score: f32 = AestheticScore;
    negative_aesthetic_score: f32 = NegativeAestheticScore;
    refiner_start: f64 = RefinerStart;
    images: usize = NumImages;
    strength: f64 = Strength;
    hires_scale: f64 = HiresScale;
    hires_strength: f64 = HiresStrength;
    hires_steps: usize = HiresSteps;
}

impl RequestPatch {
    /// The request that lays these values over the model's suggestion, from noise. An image to start from, and its
    /// strength, are the caller's to add.
    ///
    /// # Errors
    /// A model whose sampler is not supported.
    pub fn request(&self, model: &Description) -> Result<Request> {
        let sampler = self.sampler.map_or_else(|| model.scheduler.default_sampler(), Ok)?;
        let defaults = Request::defaults(model, sampler);
        let of_sigmas = self.sigmas.as_ref().map(NoiseLevels::steps);
        Ok(Request {
            prompt: self.prompt.clone().unwrap_or_default(),
            negative_prompt: self.negative_prompt.clone().unwrap_or_default(),
            prompt_style: self.prompt_style.unwrap_or_default(),
            long_prompt: self.long_prompt,
            clip_skip: self.clip_skip,
            steps: self.steps.or(of_sigmas).unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            guidance_rescale: self.guidance_rescale.unwrap_or(defaults.guidance_rescale),
            guidance_start: self.guidance_start.unwrap_or(defaults.guidance_start),
            guidance_end: self.guidance_end.unwrap_or(defaults.guidance_end),
            image_guidance_scale: self.image_guidance_scale,
            schedule: self.schedule.unwrap_or_default(),
            eta: self.eta,
            sigmas: self.sigmas.clone(),
            seed: self.seed.unwrap_or_else(random_seed),
            rng: self.rng.unwrap_or_default(),
            width: self.width.unwrap_or(defaults.width),
            height: self.height.unwrap_or(defaults.height),
            size: SizeConditioning {
                original: self.original_size,
                crop: self.crop.unwrap_or_default(),
                target: self.target_size,
            },
            aesthetic_score: self.aesthetic_score,
            negative_aesthetic_score: self.negative_aesthetic_score,
            refiner_start: self.refiner_start.or(defaults.refiner_start),
            images: self.images.unwrap_or(defaults.images),
            hires: self.hires_scale.map(|scale| Hires {
                scale,
                strength: self.hires_strength.unwrap_or(Hires::DEFAULT_STRENGTH),
                steps: self.hires_steps,
            }),
            ..defaults
        })
    }

    /// The values of a request.
    pub fn of(request: &Request) -> Self {
        let Request { size, hires, .. } = request;
        RequestPatch {
            prompt: Some(request.prompt.clone()),
            negative_prompt: Some(request.negative_prompt.clone()),
            prompt_style: Some(request.prompt_style),
            long_prompt: request.long_prompt,
            clip_skip: request.clip_skip,
            steps: Some(request.steps),
            guidance_scale: Some(request.guidance_scale),
            guidance_rescale: Some(request.guidance_rescale),
            guidance_start: Some(request.guidance_start),
            guidance_end: Some(request.guidance_end),
            image_guidance_scale: request.image_guidance_scale,
            sampler: Some(request.sampler),
            schedule: Some(request.schedule),
            eta: request.eta,
            sigmas: request.sigmas.clone(),
            seed: Some(request.seed),
            rng: Some(request.rng),
            width: Some(request.width),
            height: Some(request.height),
            original_size: size.original,
            crop: Some(size.crop),
            target_size: size.target,
            aesthetic_score: request.aesthetic_score,
            negative_aesthetic_score: request.negative_aesthetic_score,
            refiner_start: request.refiner_start,
            images: Some(request.images),
            strength: request.init.as_ref().map(|init| init.strength),
            hires_scale: hires.map(|hires| hires.scale),
            hires_strength: hires.map(|hires| hires.strength),
            hires_steps: hires.and_then(|hires| hires.steps),
        }
    }

    /// The keys of the text in images with the values that are not the defaults, in the order of the table: those
    /// that need nothing but [`Key::Plain`].
    pub fn recorded(&self) -> impl Iterator<Item = (&'static str, String)> {
        Self::PARAMETERS.iter().filter_map(|&parameter| {
            let Key::Plain(key) = parameter.row().key else { return None };
            let text = self.text(parameter)?;
            (parameter.row().default != Some(text.as_str())).then_some((key, text))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Init, KnownShapes};

    /// A text of each parameter that is not its default.
    fn texts() -> Vec<(Parameter, &'static str)> {
        let text = |parameter: &Parameter| match parameter {
            Parameter::PromptStyle => "a1111",
            Parameter::LongPrompt => "truncate",
            Parameter::Sampler => "euler",
            Parameter::Schedule => "karras",
            Parameter::Rng => "cuda",
            Parameter::Sigmas => "14.6,7.8,0",
            Parameter::OriginalSize | Parameter::TargetSize => "512x256",
            Parameter::Crop => "3,4",
            _ if RequestPatch::kind(*parameter) == Some(Kind::Number) => "0.25",
            _ => "2",
        };
        RequestPatch::PARAMETERS.iter().map(|parameter| (*parameter, text(parameter))).collect()
    }

    #[test]
    fn every_parameter_reaches_the_request_and_comes_back() {
        let mut patch = RequestPatch::default();
        for (parameter, text) in texts() {
            assert!(!patch.has(parameter));
            patch.set(parameter, text).unwrap();
            assert_eq!(patch.text(parameter).as_deref(), Some(text), "{parameter:?}");
            let json = match RequestPatch::kind(parameter).unwrap() {
                Kind::Text => Json::from(text),
                Kind::Whole | Kind::Number => serde_json::from_str(text).unwrap(),
            };
            let mut other = RequestPatch::default();
            other.set_json(parameter, &json).unwrap();
            assert_eq!(other.text(parameter).as_deref(), Some(text), "{parameter:?}");
            other.set_json(parameter, &Json::Null).unwrap();
            assert!(other.has(parameter));
        }
        let request = patch.request(&KnownShapes::Sd15.describe()).unwrap();
        // The strength is that of an image to start from, which is none.
        assert_eq!(RequestPatch::of(&request), RequestPatch { strength: None, ..patch });
    }

    #[test]
    fn values_lie_over_values() {
        let patch = |steps, seed| RequestPatch { steps, seed, ..RequestPatch::default() };
        assert_eq!(patch(Some(1), None).or(patch(Some(2), Some(3))), patch(Some(1), Some(3)));
    }

    #[test]
    fn what_is_no_value_is_said() {
        let refused = |parameter, text| RequestPatch::default().set(parameter, text).unwrap_err().to_string();
        let steps = refused(Parameter::Steps, "many");
        assert_eq!(steps, "--steps many: invalid digit found in string; expected a whole number");
        let seed = refused(Parameter::Seed, "-1");
        assert!(seed.contains("expected a whole number from 0 to") && seed.ends_with("out for a random one"));
        let size = refused(Parameter::OriginalSize, "0x5");
        assert_eq!(size, "--original-size 0x5: expected two whole numbers from 1 on, as in 1024x1024");
        let json = RequestPatch::default().set_json(Parameter::Steps, &Json::from("two")).unwrap_err();
        assert_eq!(json.to_string(), "--steps: invalid type: string \"two\", expected usize");
    }

    #[test]
    fn a_request_holds_to_the_ranges_of_the_table() {
        let model = KnownShapes::Sd15.describe();
        for &parameter in RequestPatch::PARAMETERS {
            let text = match parameter.row().range {
                Range::Closed { to, .. } | Range::Above { to, .. } => (to + 0.5).to_string(),
                Range::Whole { from: from @ 1.., .. } => (from - 1).to_string(),
                Range::Finite => "inf".to_string(),
                Range::Free | Range::Pair { .. } | Range::Whole { .. } => continue,
            };
            let mut patch = RequestPatch { sampler: Some(Sampler::Ddim), ..RequestPatch::default() };
            if matches!(parameter, Parameter::HiresStrength | Parameter::HiresSteps) {
                patch.hires_scale = Some(2.0);
            }
            patch.set(parameter, &text).unwrap();
            let mut request = patch.request(&model).unwrap();
            request.init = patch.strength.map(|strength| Init { strength, ..Init::blank() });
            let error = request.check(&model).unwrap_err();
            assert_eq!(error.parameter(), Some(parameter), "{error}");
        }
    }

    #[test]
    fn the_defaults_of_the_table_are_those_of_requests() {
        let defaults =
            RequestPatch::of(&RequestPatch::default().request(&KnownShapes::Sd15.describe()).unwrap());
        for &parameter in RequestPatch::PARAMETERS {
            if let (Some(default), Some(text)) = (parameter.row().default, defaults.text(parameter)) {
                assert_eq!(default, text, "{parameter:?}");
            }
        }
        let strength = Parameter::HiresStrength.row().default;
        assert_eq!(strength, Some(&*Hires::DEFAULT_STRENGTH.to_string()));
    }
}
