//! `sdrt run`

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use indicatif::ProgressBar;
use rayon::prelude::*;
use sdrt::columns::columns;
use sdrt::error::Error;
use sdrt::image;
use sdrt::pipeline::{Description, Painting, Pipeline, Request, Times};
use sdrt::rng::Rng;
use sdrt::sampler::{Sampler, Schedule};
use serde_json::json;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::model::ModelArgs;
use super::size::ConditioningArgs;
use super::{DeviceArgs, SizeArgs, ms, say, say_notice};
use crate::progress::{Progress, unit};

/// torch's CPU generator looks at no more than these bits of a seed.
const SEED_BITS: u32 = 32;
/// What a shell reports for a program that Ctrl-C ended.
const KILLED_BY_CTRL_C: i32 = 130;

/// Paints pictures.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Run {
    /// What the picture shows
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// What it should not show; acts with a guidance scale above 1
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    negative_prompt: String,
    #[command(flatten)]
    model: ModelArgs,
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How far to follow the prompt; up to 1 is no guidance, at half the time [default: the model's]
    #[arg(long, visible_alias = "cfg-scale", value_name = "X")]
    guidance_scale: Option<f32>,
    /// ddim, pndm, euler, euler-a, heun, dpm++2m, dpm++2m-sde, lms, unipc, lcm or ddpm [default: the
    /// model's]
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// model, leading, linspace, trailing, karras or exponential
    #[arg(long, value_name = "NAME", default_value = "model")]
    schedule: Schedule,
    /// The same seed paints the same picture; picture i of several has seed N + i [default: random]
    #[arg(short, long, value_name = "N", value_parser = seed)]
    seed: Option<u64>,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    conditioning: ConditioningArgs,
    /// Pictures at once; several go to name-0.png, name-1.png, ...
    #[arg(short = 'b', long, value_name = "N", default_value_t = 1)]
    num_images: usize,
    /// Where the PNG goes
    #[arg(short, long, value_name = "FILE", default_value = "sdrt.png")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Whose noise a seed gives: cpu (torch's CPU generator, as diffusers) or cuda (Philox, as A1111)
    #[arg(long, value_name = "NAME", default_value_t)]
    rng: Rng,
    /// Prints warnings and errors only
    #[arg(short, long)]
    quiet: bool,
    /// Prints one JSON object on stdout instead of a table
    #[arg(long)]
    json: bool,
}

fn seed(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| {
        Error::invalid(format!(
            "--seed {text}: expected a whole number from 0 to {}; leave --seed out for a random one",
            u64::MAX
        ))
    })
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) >> (u64::BITS - SEED_BITS)
}

impl Run {
    pub fn run(&self) -> Result<()> {
        let progress = Progress { quiet: self.quiet || self.json };
        let model = self.model.model(progress)?;
        let description = model.describe()?;
        let request = self.request(&description)?;
        let evaluations = request.check(&description)?.evaluations();
        let files: Vec<PathBuf> =
            (0..request.images).map(|i| image::numbered(&self.output, i, request.images)).collect();
        files.iter().try_for_each(|file| image::check_destination(file))?;

        let opened = self.device.device.open(self.device.dtype)?;
        let machine = opened.backend.describe();
        let dtype = opened.backend.dtype();
        if !progress.quiet {
            say_notice(opened.notice.as_deref());
        }

        let start = Instant::now();
        let bar = progress.loading();
        let mut pipeline = model.load(opened.backend, &mut |done, bytes| {
            bar.set_length(bytes as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let load = start.elapsed();

        let painting = paint(&mut pipeline, &request, progress.denoising(evaluations, request.steps))?;
        let mut warnings = painting.warnings.clone();
        if !request.negative_prompt.is_empty() && request.guidance_scale <= 1.0 {
            let scale = request.guidance_scale;
            warnings
                .push(format!("the negative prompt has no effect: --guidance-scale {scale} is not above 1"));
        }
        warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));

        let start = Instant::now();
        save(&painting, &request, &self.model.model.name(), &files)?;
        let stages = Stages { load, times: painting.times, save: start.elapsed() };

        if self.json {
            warnings.extend(opened.notice.map(|why| format!("running on the CPU: {why}")));
            let seeds: Vec<u64> = painting.pictures.iter().map(|picture| picture.seed).collect();
            let times_ms: BTreeMap<_, _> =
                stages.rows().into_iter().map(|(name, time)| (name, in_ms(time))).collect();
            let object = json!({
                "files": files.iter().map(|file| file.to_string_lossy()).collect::<Vec<_>>(),
                "seeds": seeds,
                "model": self.model.model.to_string(),
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "width": request.width,
                "height": request.height,
                "sampler": request.sampler.name(),
                "schedule": request.schedule.name(),
                "steps": request.steps,
                "evaluations": evaluations,
                "guidance_scale": request.guidance_scale,
                "rng": request.rng.to_string(),
                "device": machine,
                "dtype": dtype.to_string(),
                "times_ms": times_ms,
                "warnings": warnings,
            });
            writeln!(std::io::stdout(), "{object}")?;
        } else if !self.quiet {
            let mut out = std::io::stdout();
            for (file, picture) in files.iter().zip(&painting.pictures) {
                writeln!(
                    out,
                    "{} ({}x{}, seed {})",
                    file.display(),
                    picture.width,
                    picture.height,
                    picture.seed
                )?;
            }
            writeln!(out, "\n{machine}\n{}", stages.table(request.steps).trim_end())?;
        }
        Ok(())
    }

    /// The model's suggestion with what the flags say instead.
    fn request(&self, model: &Description) -> Result<Request, Error> {
        let sampler = self.sampler.map_or_else(|| model.scheduler.default_sampler(), Ok)?;
        let defaults = Request::defaults(model, sampler);
        Ok(Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            steps: self.steps.unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            sampler,
            schedule: self.schedule,
            seed: self.seed.unwrap_or_else(random_seed),
            rng: self.rng,
            height: self.size.height.unwrap_or(defaults.height),
            width: self.size.width.unwrap_or(defaults.width),
            images: self.num_images,
            size: self.conditioning.conditioning(),
        })
    }
}

/// Paints with a bar, and stops after the step in which Ctrl-C is pressed. A second Ctrl-C ends the
/// program at once.
fn paint(pipeline: &mut Pipeline, request: &Request, bar: ProgressBar) -> Result<Painting> {
    let cancelled = Arc::new(AtomicBool::new(false));
    // In this order: the flag that the first one looks at is set by the second.
    flag::register_conditional_shutdown(SIGINT, KILLED_BY_CTRL_C, cancelled.clone())?;
    flag::register(SIGINT, cancelled.clone())?;
    let painting = pipeline.paint(request, &mut |done, _| {
        bar.set_position(done as u64);
        if cancelled.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    Ok(painting?)
}

fn save(painting: &Painting, request: &Request, model: &str, files: &[PathBuf]) -> Result<(), Error> {
    painting.pictures.par_iter().zip(files).try_for_each(|(picture, file)| {
        let parameters = image::parameters(request, picture.seed, model);
        image::write(file, &image::png(picture, &parameters))
    })
}

/// How long everything took.
struct Stages {
    load: Duration,
    times: Times,
    save: Duration,
}

impl Stages {
    /// `image` is what another picture of the same size would take: neither loading nor recording.
    fn rows(&self) -> [(&'static str, Duration); 7] {
        let Times { record, text, denoise, decode, .. } = self.times;
        let image = text + denoise + decode + self.save;
        [
            ("load", self.load),
            ("record", record),
            ("text", text),
            ("denoise", denoise),
            ("decode", decode),
            ("save", self.save),
            ("image", image),
        ]
    }

    fn table(&self, steps: usize) -> String {
        let evaluations = self.times.evaluations;
        let speed = evaluations as f64 / self.times.denoise.as_secs_f64();
        let mut lines = vec![vec!["stage".to_string(), "ms".to_string()]];
        for (name, time) in self.rows() {
            let mut line = vec![name.to_string(), ms(in_ms(time))];
            if name == "denoise" {
                line.push(format!("{speed:.1} {}", unit(evaluations, steps)));
            }
            lines.push(line);
        }
        columns(&lines, 1)
    }
}

fn in_ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}
