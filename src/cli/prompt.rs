//! What to paint: flags, files and stdin.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use sdrt::error::{Error, Result};
use sdrt::location::Location;
use sdrt::pipeline::Request;
use sdrt::text::{Embedding, LongPrompt, PromptStyle};

/// Stands for stdin.
const STDIN: &str = "-";

#[derive(Args)]
#[command(next_help_heading = "Prompt")]
pub struct PromptArgs {
    /// What the picture shows; - reads it from stdin
    #[arg(short, long, value_name = "TEXT", required_unless_present_any = ["prompt_file", "from"])]
    prompt: Option<String>,
    /// Paints a picture for every line, with the seeds N, N + 1, ..., to name-0.png, name-1.png, ...; empty
    /// lines and those that start with # are passed over; - reads stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// What it should not show; acts with a guidance scale above 1
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    negative_prompt: String,
    /// How prompts are read: plain (every character is text, as in diffusers) or a1111 (weights as in
    /// (word:1.3) and [word], BREAK)
    #[arg(long, value_name = "NAME", default_value_t)]
    prompt_style: PromptStyle,
    /// What becomes of more than 75 tokens: chunk (they are encoded 75 by 75) or truncate (the rest is left
    /// out) [default: chunk for a1111, truncate for plain]
    #[arg(long, value_name = "NAME")]
    long_prompt: Option<LongPrompt>,
    /// The layer of the text encoder that is read, from the end: 1 is the last, as A1111 counts [default: 1; XL:
    /// 2]
    #[arg(long, value_name = "N")]
    clip_skip: Option<usize>,
    /// A textual inversion; acts where a prompt has its name; may be given several times
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
    /// At least one.
    pub fn read(&self) -> Result<Vec<Prompt>> {
        let Some(file) = &self.prompt_file else {
            let text = self.prompt.as_deref().unwrap_or_default();
            let text = if text == STDIN { read_stdin("--prompt")?.trim().into() } else { text.into() };
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

impl PromptArgs {
    /// The request with what these flags say, without the prompt.
    pub fn apply(&self, request: Request) -> Request {
        Request {
            negative_prompt: self.negative_prompt.clone(),
            prompt_style: self.prompt_style,
            long_prompt: self.long_prompt,
            clip_skip: self.clip_skip,
            ..request
        }
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
