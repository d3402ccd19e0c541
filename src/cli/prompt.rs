//! What to paint: flags, files and stdin.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use sdrt::error::{Error, Result};
use sdrt::location::Location;
use sdrt::text::Embedding;

/// Stands for stdin.
const STDIN: &str = "-";

#[derive(Args)]
#[command(next_help_heading = "Prompt")]
pub struct PromptArgs {
    #[arg(short, long, value_name = "TEXT", required_unless_present_any = ["prompt_file", "from"])]
    prompt: Option<String>,
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    #[arg(long = "embedding", value_name = "FILE[:NAME]")]
    pub embeddings: Vec<Embedding>,
}

/// A prompt, and where it stands.
pub struct Prompt {
    pub text: String,
    /// `FILE, line N`, if it is of a file.
    place: Option<String>,
}

impl PromptArgs {
    /// Whether the flags say what to generate, whatever an image has recorded.
    pub fn is_given(&self) -> bool {
        self.prompt.is_some() || self.prompt_file.is_some()
    }

    /// At least one; `recorded` is the prompt of an image where no flag gives one.
    pub fn read(&self, recorded: Option<&str>) -> Result<Vec<Prompt>> {
        let Some(file) = &self.prompt_file else {
            let text = match self.prompt.as_deref() {
                Some(STDIN) => read_stdin("--prompt")?.trim().into(),
                Some(text) => text.into(),
                None => recorded.unwrap_or_default().into(),
            };
            return Ok(vec![Prompt { text, place: None }]);
        };
        let prompts = if file.as_os_str() == STDIN {
            lines(&read_stdin("--prompt-file")?, Path::new("stdin"))
        } else {
            lines(&Location::from(file.as_path()).read_text()?, file)
        };
        if prompts.is_empty() {
            let message = format!("--prompt-file {}: has no prompts; expected one a line", file.display());
            return Err(Error::invalid(message));
        }
        Ok(prompts)
    }
}

impl Prompt {
    /// Puts the place in front of a sentence.
    pub fn locate(&self, sentence: &str) -> String {
        self.place.as_ref().map_or(sentence.to_string(), |place| format!("{place}: {sentence}"))
    }

    pub fn locate_error(&self, error: Error) -> anyhow::Error {
        let sentence = self.locate(&error.to_string());
        anyhow::Error::new(error).context(sentence)
    }
}

fn lines(text: &str, file: &Path) -> Vec<Prompt> {
    // Some editors of Windows start a file with this mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let numbered = text.lines().map(str::trim).zip(1..);
    let prompts = numbered.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    let prompt = |(line, number): (&str, usize)| Prompt {
        text: line.into(),
        place: Some(format!("{}, line {number}", file.display())),
    };
    prompts.map(prompt).collect()
}

fn read_stdin(flag: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().read_to_end(&mut bytes);
    read.map_err(|error| Error::file("stdin", format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|_| Error::invalid(format!("{flag} -: stdin is not text in UTF-8")))
}
