//! `sdrt serve`

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use sdrt::engine::{self, Batching, Engine};
use sdrt::error::Error;
use sdrt::pipeline::{Model, ModelFiles};
use sdrt::serve::{self, Limits, Metrics, Timeouts};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::DeviceArgs;
use super::log::LogFormat;
use super::model::{ModelArgs, RefinerArgs};
use super::signals::Signals;
use crate::progress::Progress;

/// How often the engine is looked after.
const PULSE: Duration = Duration::from_secs(1);

/// Serves pictures over HTTP: the interfaces of OpenAI and A1111, and a page to paint with.
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    refiner: RefinerArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// The address to listen at; 0.0.0.0 is every network that the machine is in
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", help_heading = "Network")]
    host: String,
    /// 0: one that is free
    #[arg(long, value_name = "N", default_value_t = 7860, help_heading = "Network")]
    port: u16,
    #[arg(long, value_name = "KEY", env = "SDRT_API_KEY", hide_env_values = true, help_heading = "Network")]
    api_key: Option<String>,
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    cors: Vec<String>,
    /// step: pictures join and leave a batch at every step; request: a batch is painted to its end
    #[arg(long, value_name = "WHEN", default_value = "step", help_heading = "Queue")]
    batching: When,
    /// How long --batching request waits for more pictures
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds, help_heading = "Queue")]
    batch_wait: Duration,
    /// Pictures that are denoised at once
    #[arg(long, value_name = "N", default_value_t = nonzero(engine::Settings::default().max_batch), help_heading = "Queue")]
    max_batch: NonZeroUsize,
    /// Images that may wait; requests are rejected while so many do
    #[arg(long, value_name = "N", default_value_t = nonzero(engine::Settings::default().max_queue), help_heading = "Queue")]
    max_queue: NonZeroUsize,
    /// Pictures of one request
    #[arg(long, value_name = "N", default_value_t = nonzero(Limits::default().images), help_heading = "Limits")]
    max_images: NonZeroUsize,
    /// Pixels of one picture
    #[arg(long, value_name = "N", default_value_t = nonzero(Limits::default().pixels), help_heading = "Limits")]
    max_pixels: NonZeroUsize,
    /// Model evaluations of one picture, which most samplers have one of in a step
    #[arg(
        long,
        value_name = "N",
        default_value_t = nonzero(engine::Settings::default().max_evaluations),
        help_heading = "Limits"
    )]
    max_steps: NonZeroUsize,
    /// Bytes of a request, pictures to start from included
    #[arg(long, value_name = "BYTES", default_value_t = nonzero(Limits::default().body), help_heading = "Limits")]
    max_body: NonZeroUsize,
    /// How long a request may take to arrive
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds, help_heading = "Limits")]
    read_timeout: Duration,
    /// How long pictures in flight may take to be finished once the server is stopped, with Ctrl-C or SIGTERM;
    /// a second time ends it at once
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "Operation")]
    grace: Duration,
    /// How the log on stderr is written; json has an object a line
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Operation")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    Step,
    Request,
}

impl Serve {
    pub fn run(&self) -> Result<()> {
        let batching = match self.batching {
            When::Step => Batching::Step,
            When::Request => Batching::Request { wait: self.batch_wait },
        };
        let paints = engine::Settings {
            max_batch: self.max_batch.get(),
            batching,
            max_queue: self.max_queue.get(),
            max_evaluations: self.max_steps.get(),
            ..engine::Settings::default()
        };
        let limits = Limits {
            body: self.max_body.get(),
            images: self.max_images.get(),
            pixels: self.max_pixels.get(),
        };
        let settings = serve::Settings {
            model: self.model.model.name(),
            refiner: self.refiner.name(),
            api_key: self.api_key.clone(),
            cors: self.cors.clone(),
            limits,
            timeouts: Timeouts { head: self.read_timeout, body: self.read_timeout, ..Timeouts::default() },
            grace: self.grace,
        };
        settings.check()?;
        let listener = self.listen()?;
        let address = listener.local_addr()?;
        allow_connections();
        let progress = Progress { quiet: false };
        let refiner = self.refiner.locate(progress)?;
        let model = Model::Files(ModelFiles { refiner, ..self.model.files(progress)? });
        let metrics = Arc::new(Metrics::default());
        let engine = Engine::start(model, self.device.device, self.device.dtype, paints, metrics.clone())?;
        let machine = engine.machine();
        if let Some(why) = &machine.notice {
            tracing::warn!("running on the CPU: {why}");
        }
        tracing::info!(model = settings.model, device = machine.describe, "ready at http://{address}/");

        let runtime = Runtime::new()?;
        let died = AtomicBool::new(false);
        let unfinished = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let stop = stop(Signals::new()?, engine.clone(), &died);
            Ok::<usize, anyhow::Error>(serve::serve(listener, engine, metrics, settings, stop).await?)
        });
        // Blocked threads are no reason to stay.
        runtime.shutdown_background();
        match unfinished? {
            _ if died.into_inner() => anyhow::bail!("the engine has stopped, and with it the server"),
            0 => Ok(()),
            n => {
                anyhow::bail!("{n} pictures were not finished within --grace {} s", self.grace.as_secs_f64())
            }
        }
    }

    /// Taken before the model is loaded, so that nobody waits for an address that is not free.
    fn listen(&self) -> Result<TcpListener> {
        let Serve { host, port, .. } = self;
        let cannot =
            |error| Error::invalid(format!("--host {host} --port {port}: cannot listen there: {error}"));
        let addresses: Vec<SocketAddr> = (host.as_str(), *port).to_socket_addrs().map_err(cannot)?.collect();
        let listener = TcpListener::bind(&addresses[..]).map_err(cannot)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

/// Until a signal comes, or the engine is dead. Another signal ends the program at once.
async fn stop(mut signals: Signals, engine: Engine, died: &AtomicBool) {
    let dead = async {
        while engine.load().alive {
            sleep(PULSE).await;
        }
        died.store(true, Ordering::Relaxed);
    };
    tokio::select! {
        _ = signals.next() => {}
        () = dead => {}
    }
    // Without what std's exit runs first: the CUDA driver would be taken from under the engine's threads.
    tokio::spawn(async move { signal_hook::low_level::exit(signals.next().await) });
}

/// Each connection is an open file, of which a shell often allows fewer than the system does.
#[cfg(unix)]
fn allow_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // What stands there serves fewer clients, and is no reason to stop.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(not(unix))]
fn allow_connections() {}

/// A default that is not 0.
fn nonzero(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("a limit above 0")
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| Error::invalid(format!("{text}: expected a number of seconds, 0 or more")))
}
