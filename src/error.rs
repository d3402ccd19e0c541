//! Errors, in sentences that say what to try.

use std::path::PathBuf;

use crate::columns::bytes;
use crate::parameter::{Interface, Parameter, Range, Sentence};

/// An error that a user can act on. Bugs (a wrong shape, a misaligned pointer) are panics instead.
///
/// `Display` gives parameters the names of the command line; [`Error::say`] those of any interface.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read or is not what it should be.
    #[error("{}: {}", path.display(), message.say(Interface::CommandLine))]
    File { path: PathBuf, message: Sentence },

    /// A tensor of a checkpoint that is missing, unexpected or misshapen.
    #[error("{}: {key}: {message}", path.display())]
    Tensor { path: PathBuf, key: String, message: String },

    /// A value of the user's that cannot be used.
    #[error("{}", _0.say(Interface::CommandLine))]
    Invalid(Box<Invalid>),

    /// A model of the hub that cannot be fetched.
    #[error("{id}: {message}")]
    Hub { id: String, message: String },

    /// Too little memory, of the GPU or of the host (which cannot say how much it has).
    #[error(
        "out of memory: {purpose} need {}{}; try a smaller picture or fewer pictures at once", 
        bytes(*needed), free.map(|free| format!(", the GPU has {} free", bytes(free))).unwrap_or_default()
    )]
    OutOfMemory { purpose: String, needed: usize, free: Option<usize> },

    /// A CUDA call that failed.
    #[error("CUDA: {operation}: {message}")]
    Cuda { operation: String, message: String },

    /// A failure inside sdrt that no user caused.
    #[error("internal error: {0}")]
    Internal(String),

    /// The user asked to stop.
    #[error("cancelled after {done} of {steps} steps")]
    Cancelled { done: usize, steps: usize },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a value: the parameters, what was expected, and what to try.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Invalid {
    /// The parameters that are wrong, with their values where these say something.
    pub parameters: Vec<(Parameter, Option<String>)>,
    /// What is wrong, where the expectation does not say it.
    pub problem: Option<Sentence>,
    /// Follows the word `expected`.
    pub expected: Option<Sentence>,
    pub advice: Option<Sentence>,
}

impl Error {
    pub fn file(path: impl Into<PathBuf>, message: impl Into<Sentence>) -> Self {
        Error::File { path: path.into(), message: message.into() }
    }
    pub fn tensor(path: impl Into<PathBuf>, key: impl ToString, message: impl ToString) -> Self {
        Error::Tensor { path: path.into(), key: key.to_string(), message: message.to_string() }
    }
    pub fn hub(id: impl ToString, message: impl ToString) -> Self {
        Error::Hub { id: id.to_string(), message: message.to_string() }
    }

    /// A value that belongs to no parameter, or to none alone.
    pub fn invalid(message: impl Into<Sentence>) -> Self {
        Invalid { problem: Some(message.into()), ..Invalid::default() }.error()
    }

    pub fn internal(message: impl ToString) -> Self {
        Error::Internal(message.to_string())
    }

    /// Whether the user can mend it by other values.
    pub fn is_wrong_usage(&self) -> bool {
        matches!(self, Error::Invalid(_))
    }

    /// Whether the device, or the program, cannot be trusted any more.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Error::Cuda { .. } | Error::Internal(_))
    }

    /// The sentence, in the names that an interface gives to parameters.
    pub fn say(&self, interface: Interface) -> String {
        match self {
            Error::Invalid(invalid) => invalid.say(interface),
            Error::File { path, message } => format!("{}: {}", path.display(), message.say(interface)),
            _ => self.to_string(),
        }
    }

    /// The first of the parameters that are wrong.
    pub fn parameter(&self) -> Option<Parameter> {
        match self {
            Error::Invalid(invalid) => invalid.parameters.first().map(|(parameter, _)| *parameter),
            _ => None,
        }
    }
}

impl Invalid {
    /// A value of a parameter.
    pub fn value(parameter: Parameter, value: impl ToString) -> Self {
        Invalid { parameters: vec![(parameter, Some(value.to_string()))], ..Self::default() }
    }

    /// Parameters whose values do not matter.
    pub fn of<const N: usize>(parameters: [Parameter; N]) -> Self {
        Invalid { parameters: parameters.map(|parameter| (parameter, None)).into(), ..Self::default() }
    }

    /// A value of one more parameter.
    pub fn and(mut self, parameter: Parameter, value: impl ToString) -> Self {
        self.parameters.push((parameter, Some(value.to_string())));
        self
    }

    pub fn problem(self, problem: impl Into<Sentence>) -> Self {
        Invalid { problem: Some(problem.into()), ..self }
    }

    pub fn expected(self, expected: impl Into<Sentence>) -> Self {
        Invalid { expected: Some(expected.into()), ..self }
    }

    pub fn advice(self, advice: impl Into<Sentence>) -> Self {
        Invalid { advice: Some(advice.into()), ..self }
    }

    pub fn error(self) -> Error {
        Error::Invalid(Box::new(self))
    }

    pub fn say(&self, interface: Interface) -> String {
        let parameter = |(parameter, value): &(Parameter, Option<String>)| {
            let name = parameter.name(interface);
            value.as_ref().map_or(name.clone(), |value| format!("{name} {value}"))
        };
        let parameters: Vec<String> = self.parameters.iter().map(parameter).collect();
        let expected = self.expected.as_ref().map(|expected| format!("expected {}", expected.say(interface)));
        let others = [&self.problem, &self.advice].map(|part| part.as_ref().map(|part| part.say(interface)));
        let [problem, advice] = others;
        let sentence: Vec<String> = [problem, expected, advice].into_iter().flatten().collect();
        let sentence = sentence.join("; ");
        match parameters.split_last() {
            None => sentence,
            Some((last, [])) => format!("{last}: {sentence}"),
            Some((last, before)) => format!("{} and {last}: {sentence}", before.join(", ")),
        }
    }
}

impl Parameter {
    /// Checks that a number lies in the parameter's range.
    pub fn check(self, number: impl Number) -> Result<()> {
        let range = self.row().range;
        if range.contains(number.as_f64()) {
            return Ok(());
        }
        let expected = match range {
            Range::Above { above, to } if to > 1.0 => {
                format!("a number above {above}, such as {}", 2.0 * above)
            }
            range => range.to_string(),
        };
        Err(Invalid::value(self, number).expected(expected).error())
    }
}

/// A number that a range may hold.
pub trait Number: ToString + Copy {
    fn as_f64(self) -> f64;
}

macro_rules! numbers {
    ($($number:ty),*) => { $(impl Number for $number { fn as_f64(self) -> f64 { self as f64 } })* };
}
numbers!(usize, u64, u8, f32, f64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameter::sentence;

    #[test]
    fn an_error_is_said_in_the_names_of_each_interface() {
        let steps = Invalid::value(Parameter::Steps, 5)
            .problem(sentence!["the noise levels of ", Parameter::Sigmas, " are 4 steps"])
            .advice(sentence!["leave ", Parameter::Steps, " out"]);
        let steps = steps.error();
        assert_eq!(
            steps.to_string(),
            "--steps 5: the noise levels of --sigmas are 4 steps; leave --steps out"
        );
        assert_eq!(
            steps.say(Interface::OpenAi),
            "num_inference_steps 5: the noise levels of sigmas are 4 steps; leave num_inference_steps out"
        );
        assert_eq!(steps.parameter(), Some(Parameter::Steps));

        let ends = Invalid::value(Parameter::GuidanceScale, "a").and(Parameter::Width, 3).expected("more");
        assert_eq!(ends.say(Interface::A1111), "cfg_scale a and width 3: expected more");
        let three = [Parameter::OriginalSize, Parameter::Crop, Parameter::TargetSize];
        let three = Invalid::of(three).problem("no");
        assert_eq!(three.say(Interface::CommandLine), "--original-size, --crop and --target-size: no");

        let file = Error::file("a.bin", sentence!["no model; try ", Parameter::Vae]);
        assert_eq!(file.to_string(), "a.bin: no model; try --vae");
        assert_eq!(file.parameter(), None);
    }

    #[test]
    fn ranges_of_the_table_are_checked() {
        assert!(Parameter::GuidanceRescale.check(0.5f32).is_ok());
        let error = Parameter::GuidanceRescale.check(1.5f32).unwrap_err();
        assert_eq!(error.to_string(), "--guidance-rescale 1.5: expected a number from 0 to 1");
        let error = Parameter::HiresScale.check(f64::NAN).unwrap_err();
        assert_eq!(error.to_string(), "--hires-scale NaN: expected a number above 1, such as 2");
    }

    #[test]
    fn failures_of_the_device_and_of_the_program_are_fatal() {
        let cuda = Error::Cuda { operation: "copy".into(), message: "lost".into() };
        assert!(cuda.is_fatal() && Error::internal("a thread is gone").is_fatal());
        assert!(!Error::invalid("no").is_fatal() && !Error::Cancelled { done: 1, steps: 2 }.is_fatal());
        assert!(
            Error::invalid("no").is_wrong_usage() && !Error::internal("a thread is gone").is_wrong_usage()
        );
        assert!(!Error::internal("a thread is gone").to_string().contains("CUDA"));
    }
}
