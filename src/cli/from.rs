//! `--from`: the flags that a picture was painted with.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser};
use sdrt::device::Opened;
use sdrt::error::Error;
use sdrt::image::{Origin, Recorded, UsedControlNet, UsedLora};

use super::{Cli, Command, DeviceArgs, emoji};

#[derive(Args)]
#[command(next_help_heading = "Prompt")]
pub struct FromArgs {
    /// Paints as this picture says that it was painted (PNG, JPEG or WebP of sdrt, A1111, Civitai); other
    /// flags win
    #[arg(long, value_name = "PICTURE")]
    from: Option<PathBuf>,
    #[arg(skip)]
    recorded: Option<Recorded>,
}

/// Parses the command line. A picture's flags are put behind it, without those that it gives itself.
///
/// # Errors
/// [`clap::Error`]; [`Error`] for a picture that cannot be used.
pub fn parse() -> Result<Cli> {
    let mut arguments: Vec<OsString> = env::args_os().collect();
    let mut matches = Cli::command().try_get_matches_from(&arguments)?;
    let picture = matches.subcommand_matches("run").and_then(|run| run.get_one::<PathBuf>("from"));
    let Some(picture) = picture.cloned() else { return Ok(Cli::from_arg_matches_mut(&mut matches)?) };

    let recorded = Recorded::read(&picture)?;
    let run = matches.subcommand_matches("run").expect("the command that has the flag");
    check_model(&recorded, run)?;
    let flags = recorded.flags(run.get_one("sampler").copied());
    let stands = |flag: &str| {
        is_given(run, &flag.replace('-', "_")) || (flag == "prompt" && is_given(run, "prompt_file"))
    };
    let missing = flags.into_iter().filter(|(flag, _)| !stands(flag));
    arguments.extend(missing.map(|(flag, value)| format!("--{flag}={value}").into()));
    let mut cli = Cli::try_parse_from(arguments).map_err(|error| cannot_use(&picture, &error))?;
    if let Command::Run(run) = &mut cli.command {
        run.from.recorded = Some(recorded);
    }
    Ok(cli)
}

fn is_given(run: &ArgMatches, id: &str) -> bool {
    run.value_source(id) == Some(ValueSource::CommandLine)
}

/// A picture knows its model's name, not where it is.
fn check_model(recorded: &Recorded, run: &ArgMatches) -> Result<(), Error> {
    match recorded.model().filter(|name| name != emoji::NAME && !is_given(run, "model")) {
        Some(name) => Err(Error::invalid(format!(
            "--from: the picture was painted with {name}; say where that model is with --model"
        ))),
        None => Ok(()),
    }
}

/// The first sentence of what is wrong with a value that the user did not type.
fn cannot_use(picture: &Path, error: &clap::Error) -> Error {
    let ours = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Error>());
    let sentence = ours.map_or_else(|| error.to_string(), Error::to_string);
    let line = sentence.trim_start_matches("error: ").lines().next().unwrap_or_default();
    Error::invalid(format!("--from {}: {line}; the flag wins over the picture", picture.display()))
}

impl FromArgs {
    /// What of the picture cannot be had, or not surely.
    pub fn warnings(&self, origin: &Origin) -> Vec<String> {
        self.recorded.as_ref().map_or_else(Vec::new, |recorded| recorded.warnings(origin))
    }

    /// The picture's LoRAs that its prompt does not name.
    pub fn loras(&self) -> Vec<UsedLora> {
        self.recorded.as_ref().map_or_else(Vec::new, Recorded::loras)
    }

    pub fn controlnets(&self) -> Vec<UsedControlNet> {
        self.recorded.as_ref().map_or_else(Vec::new, Recorded::controlnets)
    }

    /// Opens the machine, with the precision of the picture where the flag leaves that open and this machine
    /// has it.
    pub fn open(&self, flags: &DeviceArgs) -> Result<Opened, Error> {
        let recorded = self.recorded.as_ref().filter(|_| flags.dtype.is_none());
        match recorded.and_then(Recorded::gpu_dtype).map(|dtype| flags.device.open(Some(dtype))) {
            Some(Ok(opened)) => Ok(opened),
            _ => flags.device.open(flags.dtype),
        }
    }
}
