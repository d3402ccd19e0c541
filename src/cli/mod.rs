//! Flags, and what is printed. The work is done by the library.

mod bench;
mod control;
mod emoji;
mod from;
mod info;
mod log;
mod lora;
mod model;
mod output;
mod parameters;
mod picture;
mod preview;
mod profile;
mod prompt;
mod run;
mod serve;
mod signals;
mod size;
mod source;
mod tiling;
mod workload;

use std::io::Write;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
pub use from::parse;
use sdrt::device::Device;
use sdrt::ops::DType;
use size::SizeArgs;

/// Stable Diffusion, from a prompt to a picture.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Says more on stderr; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 100)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Info(info::Info),
    Bench(bench::Bench),
    Profile(profile::Profile),
    Serve(Box<serve::Serve>),
}

impl Cli {
    pub fn run(&self) -> Result<()> {
        match &self.command {
            Command::Serve(serve) => serve.log_format.start(self.verbose),
            _ => log::start(self.verbose),
        }
        match &self.command {
            Command::Run(run) => run.run(),
            Command::Info(info) => info.run(),
            Command::Bench(bench) => bench.run(),
            Command::Profile(profile) => profile.run(),
            Command::Serve(serve) => serve.run(),
        }
    }
}

#[derive(Args)]
#[command(next_help_heading = "Machine")]
struct DeviceArgs {
    #[arg(long, default_value = "auto")]
    device: Device,
    #[arg(long)]
    dtype: Option<DType>,
}

/// Says on stderr that `--device auto` found no GPU.
fn say_notice(notice: Option<&str>) {
    if let Some(why) = notice {
        say(&format!("running on the CPU: {why}"));
    }
}

/// A line on stderr. If nobody can read it, that is no reason to stop.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn ms(milliseconds: f64) -> String {
    format!("{milliseconds:.1}")
}
