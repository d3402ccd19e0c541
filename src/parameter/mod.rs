//! The parameters of a request and the settings around it: one table, from which the command line, both HTTP
//! interfaces, /openapi.json, the page and the text in images take names, ranges, defaults and descriptions.
//!
//! A new parameter of a request is a row of the table, a line in [`RequestPatch`](crate::pipeline::RequestPatch), which
//! gives it its type, and a field of [`Request`](crate::pipeline::Request), which gives it its meaning.

mod range;
mod sentence;
mod table;

pub use self::range::Range;
pub(crate) use self::sentence::sentence;
pub use self::sentence::{Part, Sentence};
pub use self::table::{Field, Group, Interface, Key, Parameter, Row, Word};

impl Parameter {
    /// The parameter of a long flag, without its dashes.
    pub fn of_flag(flag: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|parameter| parameter.row().flag == flag)
    }

    /// The parameter that an interface reads as it is from a field.
    pub fn of_field(interface: Interface, field: &str) -> Option<Self> {
        let is_plain =
            |parameter: &Self| matches!(parameter.field(interface), Field::Plain(name) if name == field);
        Self::ALL.iter().copied().find(is_plain)
    }

    pub fn field(self, interface: Interface) -> Field {
        match interface {
            Interface::CommandLine => Field::None,
            Interface::OpenAi => self.row().openai,
            Interface::A1111 => self.row().a1111,
        }
    }

    /// The name in a sentence. A parameter that an HTTP interface does not have is named after its flag.
    pub fn name(self, interface: Interface) -> String {
        let flag = self.row().flag;
        match (interface, self.field(interface)) {
            (Interface::CommandLine, _) => format!("--{flag}"),
            (_, Field::None) => flag.replace('-', "_"),
            (_, Field::Plain(name) | Field::Own(name) | Field::Part(_, name)) => name.to_string(),
        }
    }

    /// What the parameter does, in the names of an interface.
    pub fn help(self, interface: Interface) -> String {
        Sentence::of(self.row().help).say(interface)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_help_is_there() {
        let all = Parameter::ALL;
        let unique = |names: Vec<&str>| names.iter().collect::<HashSet<_>>().len() == names.len();
        assert!(unique(all.iter().map(|parameter| parameter.row().flag).collect()));
        assert!(unique(all.iter().filter_map(|parameter| parameter.row().key.name()).collect()));
        for interface in [Interface::OpenAi, Interface::A1111] {
            let plain = all.iter().filter_map(|parameter| match parameter.field(interface) {
                Field::Plain(name) => Some(name),
                _ => None,
            });
            assert!(unique(plain.collect()), "{interface:?}");
        }
        for parameter in all {
            assert!(!parameter.help(Interface::CommandLine).is_empty(), "{parameter:?}");
            assert_eq!(Parameter::of_flag(parameter.row().flag), Some(*parameter));
        }
    }

    #[test]
    fn every_interface_has_its_own_names() {
        for (parameter, names) in [
            (Parameter::Steps, ["--steps", "num_inference_steps", "steps"]),
            (Parameter::GuidanceScale, ["--guidance-scale", "guidance_scale", "cfg_scale"]),
            (Parameter::Width, ["--width", "width", "width"]),
            (Parameter::NumImages, ["--num-images", "n", "batch_size"]),
            (Parameter::InitImage, ["--init-image", "image", "init_images"]),
            (Parameter::Sampler, ["--sampler", "sampler", "sampler_name"]),
            (Parameter::VaeTiling, ["--vae-tiling", "vae_tiling", "vae_tiling"]),
            (Parameter::ClipSkip, ["--clip-skip", "clip_skip", "CLIP_stop_at_last_layers"]),
        ] {
            let of = [Interface::CommandLine, Interface::OpenAi, Interface::A1111];
            assert_eq!(of.map(|interface| parameter.name(interface)), names);
        }
        assert_eq!(Parameter::Width.field(Interface::OpenAi).name(), Some("size"));
        let help = Parameter::Strength.help(Interface::A1111);
        assert!(help.starts_with("How much of init_images is generated anew"), "{help}");
    }
}
