//! `--from`: the parameters that an image was generated with.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches};
use sdrt::device::Opened;
use sdrt::error::Error;
use sdrt::image::{Origin, Recorded, UsedControlNet, UsedLora};

use super::parameters::described;
use super::{Cli, Command, DeviceArgs, emoji};

#[derive(Args)]
#[command(next_help_heading = "Prompt")]
pub struct FromArgs {
    #[arg(long, value_name = "IMAGE")]
    from: Option<PathBuf>,
    #[arg(skip)]
    recorded: Option<Recorded>,
}

/// Parses the command line. The values that an image has recorded lie below those of the flags.
///
/// # Errors
/// [`clap::Error`]; [`Error`] for an image that cannot be used.
pub fn parse() -> Result<Cli> {
    let mut matches = described(Cli::command()).try_get_matches()?;
    let is_model_given = matches.subcommand_matches("run").is_some_and(|run| is_given(run, "model"));
    let mut cli = Cli::from_arg_matches_mut(&mut matches)?;
    if let Command::Run(run) = &mut cli.command
        && let Some(picture) = &run.from.from
    {
        let recorded = Recorded::read(picture)?;
        check_model(&recorded, is_model_given)?;
        let given = run.given();
        let mut patch = recorded.patch(&given).map_err(|error| cannot_use(picture, &error))?;
        // Without its model, where it took over means nothing; a warning names both.
        patch.refiner_start = patch.refiner_start.filter(|_| run.refiner.name().is_some());
        run.parameters.patch = given.or(patch);
        run.from.recorded = Some(recorded);
    }
    Ok(cli)
}

fn is_given(run: &ArgMatches, id: &str) -> bool {
    run.value_source(id) == Some(ValueSource::CommandLine)
}

/// An image has the name of its model, not its location.
fn check_model(recorded: &Recorded, is_model_given: bool) -> Result<(), Error> {
    match recorded.model().filter(|name| name != emoji::NAME && !is_model_given) {
        Some(name) => Err(Error::invalid(format!(
            "--from: the picture was painted with {name}; say where that model is with --model"
        ))),
        None => Ok(()),
    }
}

/// A value is wrong that the user did not type.
fn cannot_use(picture: &Path, error: &Error) -> Error {
    Error::invalid(format!("--from {}: {error}; the flag wins over the picture", picture.display()))
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
