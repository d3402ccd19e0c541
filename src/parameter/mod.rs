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
pub use self::table::Parameter;

/// An interface that gives parameters names of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    CommandLine,
    OpenAi,
    A1111,
}

/// The heading under which `--help` lists a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Prompt,
    Model,
    Sampling,
    Size,
    FromImage,
    ControlNets,
    Machine,
    Output,
    Network,
}

/// The field of an HTTP interface that holds a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The interface does not have the parameter.
    None,
    /// The value as it is.
    Plain(&'static str),
    /// A field with rules of its own, which the interface's code reads.
    Own(&'static str),
    /// A part of a field, by the names of the field and the part; read by the interface's code.
    Part(&'static str, &'static str),
}

/// The key of the text in images that holds a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The text in images does not have the parameter.
    None,
    /// Written where the value is not the default, and read as it is.
    Plain(&'static str),
    /// Written by [`Origin`](crate::image::Origin), and read as it is.
    Read(&'static str),
    /// Written by [`Origin`](crate::image::Origin), and read by [`Recorded`](crate::image::Recorded).
    Own(&'static str),
}

/// A text of a constant table: words, and the names of parameters, which depend on the interface.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    Text(&'static str),
    Name(Parameter),
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The long flag of the command line, without its dashes.
    pub flag: &'static str,
    pub short: Option<char>,
    /// Another name of the flag.
    pub alias: Option<&'static str>,
    /// The value as `--help` names it; empty for a switch.
    pub value_name: &'static str,
    pub group: Group,
    pub openai: Field,
    pub a1111: Field,
    pub key: Key,
    pub range: Range,
    /// The default of all models, as the command line takes it.
    pub default: Option<&'static str>,
    pub help: &'static [Word],
}

impl Row {
    const fn new(group: Group, flag: &'static str, value_name: &'static str, help: &'static [Word]) -> Self {
        Row {
            flag,
            short: None,
            alias: None,
            value_name,
            group,
            openai: Field::None,
            a1111: Field::None,
            key: Key::None,
            range: Range::Free,
            default: None,
            help,
        }
    }

    const fn short(self, short: char) -> Self {
        Row { short: Some(short), ..self }
    }
    const fn alias(self, alias: &'static str) -> Self {
        Row { alias: Some(alias), ..self }
    }
    const fn fields(self, openai: Field, a1111: Field) -> Self {
        Row { openai, a1111, ..self }
    }
    const fn key(self, key: Key) -> Self {
        Row { key, ..self }
    }
    const fn range(self, range: Range) -> Self {
        Row { range, ..self }
    }
    const fn default(self, default: &'static str) -> Self {
        Row { default: Some(default), ..self }
    }
}

impl Field {
    /// The field that an error is about.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Field::None => None,
            Field::Plain(name) | Field::Own(name) | Field::Part(name, _) => Some(name),
        }
    }
}

impl Key {
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Key::None => None,
            Key::Plain(name) | Key::Read(name) | Key::Own(name) => Some(name),
        }
    }
}

impl Group {
    /// The heading in words.
    pub const fn heading(self) -> &'static str {
        match self {
            Group::Prompt => "Prompt",
            Group::Model => "Model",
            Group::Sampling => "Sampling",
            Group::Size => "Size",
            Group::FromImage => "From an image",
            Group::ControlNets => "ControlNets",
            Group::Machine => "Machine",
            Group::Output => "Output",
            Group::Network => "Network",
        }
    }
}

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
