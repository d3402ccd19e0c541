//! Text that names parameters, for any interface.

use super::table::{Interface, Parameter, Word};

/// A piece of a [`Sentence`].
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    Text(String),
    Name(Parameter),
}

/// Text whose parameters get their names from the interface that says it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sentence(pub Vec<Part>);

/// Makes a [`Sentence`] of texts and parameters.
macro_rules! sentence {
    ($($part:expr),+ $(,)?) => {
        $crate::parameter::Sentence(vec![$($crate::parameter::Part::from($part)),+])
    };
}
pub(crate) use sentence;

impl Sentence {
    /// A text of a constant table.
    pub fn of(words: &[Word]) -> Self {
        let part = |word: &Word| match *word {
            Word::Text(text) => Part::Text(text.into()),
            Word::Name(parameter) => Part::Name(parameter),
        };
        Sentence(words.iter().map(part).collect())
    }

    pub fn say(&self, interface: Interface) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Name(parameter) => parameter.name(interface),
        };
        self.0.iter().map(part).collect()
    }
}

impl<T: ToString> From<T> for Sentence {
    fn from(text: T) -> Self {
        Sentence(vec![Part::Text(text.to_string())])
    }
}

impl<T: ToString> From<T> for Part {
    fn from(text: T) -> Self {
        Part::Text(text.to_string())
    }
}

impl From<Parameter> for Part {
    fn from(parameter: Parameter) -> Self {
        Part::Name(parameter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_said_in_the_names_of_the_interface() {
        let sentence =
            sentence!["lower ", Parameter::NumImages, ", or ", Parameter::Width, format!(" to {}", 8)];
        assert_eq!(sentence.say(Interface::CommandLine), "lower --num-images, or --width to 8");
        assert_eq!(sentence.say(Interface::OpenAi), "lower n, or width to 8");
        assert_eq!(sentence.say(Interface::A1111), "lower batch_size, or width to 8");
        assert_eq!(Sentence::from("dpm++2m -- no flag --").say(Interface::A1111), "dpm++2m -- no flag --");
    }
}
