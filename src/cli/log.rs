//! What is said on stderr besides results: warnings, and with `-v` more.

use std::io::{IsTerminal, stderr};

use clap::ValueEnum;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{Layer, Registry};

/// How a server writes its log.
#[derive(Clone, Copy, ValueEnum)]
pub enum LogFormat {
    Text,
    /// An object a line
    Json,
}

/// The log of a command that ends by itself: warnings.
pub fn start(verbose: u8) {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).without_time();
    init(lines.boxed(), LevelFilter::WARN, verbose);
}

impl LogFormat {
    /// The log of a server: a line for every request, with the time.
    pub fn start(self, verbose: u8) {
        let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_target(false);
        let lines = match self {
            LogFormat::Text => lines.with_ansi(stderr().is_terminal()).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        };
        init(lines, LevelFilter::INFO, verbose);
    }
}

fn init(lines: Box<dyn Layer<Registry> + Send + Sync>, quiet: LevelFilter, verbose: u8) {
    let level = [quiet, LevelFilter::DEBUG, LevelFilter::TRACE][usize::from(verbose.min(2))];
    let ours = Targets::new().with_default(LevelFilter::WARN).with_target("sdrt", level);
    tracing_subscriber::registry().with(lines.with_filter(ours)).init();
}
