//! What a row of the table of parameters says, and in which words.

use super::range::Range;
use super::table::Parameter;

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
    pub(super) const fn new(
        group: Group,
        flag: &'static str,
        value_name: &'static str,
        help: &'static [Word],
    ) -> Self {
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

    pub(super) const fn short(self, short: char) -> Self {
        Row { short: Some(short), ..self }
    }
    pub(super) const fn alias(self, alias: &'static str) -> Self {
        Row { alias: Some(alias), ..self }
    }
    pub(super) const fn fields(self, openai: Field, a1111: Field) -> Self {
        Row { openai, a1111, ..self }
    }
    pub(super) const fn key(self, key: Key) -> Self {
        Row { key, ..self }
    }
    pub(super) const fn range(self, range: Range) -> Self {
        Row { range, ..self }
    }
    pub(super) const fn default(self, default: &'static str) -> Self {
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
