//! Flags, and what is printed. The work is done by the library.

mod bench;
mod control;
mod emoji;
mod from;
mod info;
mod lora;
mod model;
mod output;
mod picture;
mod preview;
mod profile;
mod prompt;
mod run;
mod sampling;
mod size;
mod source;
mod tiling;
mod workload;

use std::io::{IsTerminal, Write};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
pub use from::parse;
use sdrt::device::Device;
use sdrt::ops::DType;
use size::SizeArgs;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

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
}

impl Cli {
    pub fn run(&self) -> Result<()> {
        let level =
            [LevelFilter::WARN, LevelFilter::DEBUG, LevelFilter::TRACE][usize::from(self.verbose.min(2))];
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .without_time();
        let ours = Targets::new().with_default(LevelFilter::WARN).with_target("sdrt", level);
        tracing_subscriber::registry().with(lines).with(ours).init();
        match &self.command {
            Command::Run(run) => run.run(),
            Command::Info(info) => info.run(),
            Command::Bench(bench) => bench.run(),
            Command::Profile(profile) => profile.run(),
        }
    }
}

#[derive(Args)]
#[command(next_help_heading = "Machine")]
struct DeviceArgs {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// What weights and activations are kept in: f16, bf16 or f32 [default: f16 on a GPU, f32 on the CPU]
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
