//! The command line: parse, run, say what failed.

mod cli;
mod progress;

use std::error::Error as _;
use std::process::ExitCode;

use clap::error::ErrorKind;
use sdrt::Error;

/// Done.
const OK: u8 = 0;
/// A file, a tensor, a device, a failure of our own, or the user's Ctrl-C.
const FAILED: u8 = 1;
/// A flag, or the value of one.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let code = match cli::parse().and_then(|cli| cli.run()) {
        Ok(()) => OK,
        Err(error) => failure(&error),
    };
    ExitCode::from(code)
}

fn failure(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref() {
        return usage(error);
    }
    let cause = error.root_cause();
    // Whoever read our output has enough of it, as with `sdrt info | head`.
    if cause.downcast_ref().is_some_and(|e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe) {
        return OK;
    }
    cli::say(&format!("error: {error}"));
    let is_usage = cause.downcast_ref().is_some_and(Error::is_wrong_usage);
    if is_usage { USAGE } else { FAILED }
}

/// A parser of ours knows more about its flag than clap does: its sentence stands alone.
fn usage(error: &clap::Error) -> u8 {
    let ours = error.source().filter(|source| source.is::<Error>());
    match ours.filter(|_| error.kind() == ErrorKind::ValueValidation) {
        Some(sentence) => cli::say(&format!("error: {sentence}")),
        // That the terminal is gone is no news.
        None => drop(error.print()),
    }
    if error.use_stderr() { USAGE } else { OK }
}
