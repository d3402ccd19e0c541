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
use sdrt::columns::columns;
use sdrt::error::Error;
use sdrt::image::Origin;
use sdrt::location::Location;
use sdrt::pipeline::{
    Control, Description, Hires, Model, ModelFiles, Painting, Picture, Pipeline, Previews, Request,
    RequestPatch, Times,
};
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::control::{ControlArgs, Steering};
use super::from::FromArgs;
use super::lora::{LoraArgs, Tagged};
use super::model::{ModelArgs, RefinerArgs};
use super::output::{self, OutputArgs};
use super::parameters::ParameterArgs;
use super::picture::PictureArgs;
use super::preview::PreviewArgs;
use super::prompt::{Prompt, PromptArgs};
use super::tiling::TilingArgs;
use super::{DeviceArgs, ms, say, say_notice};
use crate::progress::{Progress, unit};

/// What a shell reports for a program that Ctrl-C ended.
const KILLED_BY_CTRL_C: i32 = 130;

/// Paints pictures.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Run {
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    pub from: FromArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    pub refiner: RefinerArgs,
    #[command(flatten)]
    loras: LoraArgs,
    #[command(flatten)]
    pub parameters: ParameterArgs,
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    tiling: TilingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    preview: PreviewArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Run {
    pub fn run(&self) -> Result<()> {
        let prompts = self.prompts.read(self.parameters.patch.prompt.as_deref())?;
        let progress = Progress { quiet: self.quiet || self.json };
        let mut loras = self.loras.open(self.from.loras(), progress)?;
        let of_prompt =
            |prompt: &Prompt| loras.of_prompt(&prompt.text).map_err(|error| prompt.locate_error(error));
        let tagged: Vec<Tagged> = prompts.iter().map(of_prompt).collect::<Result<_>>()?;
        let steering = self.control.steering(&self.from.controlnets())?;
        let controlnets: Vec<Location> =
            steering.iter().map(|net| net.locate(progress)).collect::<Result<_>>()?;
        let model = Model::Files(ModelFiles {
            embeddings: self.prompts.embeddings.clone(),
            controlnets: controlnets.clone(),
            preview_vae: self.preview.locate_vae(progress)?,
            refiner: self.refiner.locate(progress)?,
            ..self.model.files(progress)?
        });
        let description = model.describe()?;
        let request = self.request(&description, &steering)?;
        let passes = request.check(&description)?;
        let evaluations = passes.iter().map(|pass| pass.table.evaluations()).sum();
        let files = self.output.files(prompts.len() * request.images)?;
        let previews = self.preview.files(&self.output.output, &files.paths, request.images, &description)?;

        let used = steering.iter().zip(&controlnets).map(|(net, location)| net.used(location));
        let used = used.collect::<Result<_, _>>()?;
        let opened = self.from.open(&self.device)?;
        let machine = opened.backend.describe();
        let dtype = opened.backend.dtype();
        let origin = Origin {
            model: self.model.model.name(),
            refiner: self.refiner.name(),
            device: opened.backend.name(),
            dtype,
            lora_hashes: Vec::new(),
            loras: loras.used,
            controlnets: used,
        };
        let origins = tagged
            .iter()
            .map(|Tagged { hashes, .. }| Origin { lora_hashes: hashes.clone(), ..origin.clone() });
        let origins: Vec<Origin> = origins.collect();
        for (prompt, origin) in prompts.iter().zip(&origins) {
            files.check(&Request { prompt: prompt.text.clone(), ..request.clone() }, origin)?;
        }
        if !progress.quiet {
            say_notice(opened.notice.as_deref());
        }
        let (terminal, nothing_shown) = self.output.terminal(self.json);
        let mut warnings: Vec<String> = Vec::new();
        for warning in origins.iter().flat_map(|origin| self.from.warnings(origin)) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings.extend(nothing_shown.map(String::from));
        warn(&warnings);

        let start = Instant::now();
        let bar = progress.loading();
        let mut pipeline = model.load(opened.backend, &mut |done, bytes| {
            bar.set_length(bytes as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let mut load = start.elapsed();

        let cancelled = set_by_ctrl_c()?;
        let mut all = Stages::default();
        for (i, (prompt, paths)) in prompts.iter().zip(files.paths.chunks(request.images)).enumerate() {
            let start = Instant::now();
            let about_loras = pipeline.set_loras(&tagged[i].loras);
            let about_loras = about_loras.map_err(|error| prompt.locate_error(error))?;
            if tagged.iter().any(|tagged| !tagged.loras.is_empty()) {
                load += start.elapsed();
            }
            let request = Request {
                prompt: tagged[i].text.clone(),
                seed: request.seed.wrapping_add((i * request.images) as u64),
                ..request.clone()
            };
            let bar = progress.denoising(evaluations, request.steps);
            let mut save_previews = |_, pictures: Vec<Picture>| match &previews {
                Some(files) => files.save(&pictures, &request, &origins[i]),
                None => Ok(()),
            };
            let previews = previews.as_ref().map(|files| files.previews(&mut save_previews));
            let painting = paint(&mut pipeline, &request, bar, previews, &cancelled);
            let painting = painting.map_err(|error| prompt.locate_error(error))?;
            let mut late: Vec<String> =
                painting.warnings.iter().chain(&about_loras).map(|warning| prompt.locate(warning)).collect();
            if i == 0 {
                late.extend(without_effect(&request, &description));
            }
            warn(&late);
            warnings.extend(late);

            let start = Instant::now();
            // As it was written, with its tags.
            let request = Request { prompt: prompt.text.clone(), ..request };
            files.save(paths, &painting.pictures, &request, &origins[i])?;
            let stages = Stages {
                load: std::mem::take(&mut load),
                times: painting.times,
                save: start.elapsed(),
                prompts: 1,
            };
            all.add(&stages);
            if let Some(terminal) = &terminal {
                output::show(terminal, &painting.pictures)?;
            }
            if self.json {
                warnings.extend(opened.notice.iter().map(|why| format!("running on the CPU: {why}")));
                let mut object = report(&request, &painting, paths, &stages);
                object["model"] = self.model.model.to_string().into();
                object["device"] = machine.as_str().into();
                object["dtype"] = dtype.to_string().into();
                object["warnings"] = std::mem::take(&mut warnings).into();
                writeln!(std::io::stdout(), "{object}")?;
            } else if !self.quiet {
                let mut out = std::io::stdout();
                for (file, Picture { width, height, seed, .. }) in paths.iter().zip(&painting.pictures) {
                    writeln!(out, "{} ({width}x{height}, seed {seed})", file.display())?;
                }
            }
        }
        if !self.json && !self.quiet {
            writeln!(std::io::stdout(), "\n{machine}\n{}", all.table(request.steps).trim_end())?;
        }
        Ok(())
    }

    /// The values that flags give; a prompt stands for those of any flag.
    pub fn given(&self) -> RequestPatch {
        let prompt = self.prompts.is_given().then(String::new);
        self.parameters.patch.clone().or(RequestPatch { prompt, ..RequestPatch::default() })
    }

    /// The model's suggestion below the values of flags and of an image; without the prompt.
    fn request(&self, model: &Description, steering: &[Steering]) -> Result<Request, Error> {
        let controls: Vec<Control> = steering.iter().map(|net| net.control.clone()).collect();
        let patch = &self.parameters.patch;
        let mut request = patch.request(model)?;
        request.hires.iter_mut().for_each(|hires| hires.steps = hires.steps.filter(|&steps| steps > 0));
        if let Some(control) = controls.first() {
            let [width, height] = control.image.size_below(model.config.vae.scale_factor());
            request.width = patch.width.unwrap_or(width);
            request.height = patch.height.unwrap_or(height);
        }
        let request = self.picture.apply(request, model, patch)?;
        Ok(Request { tiling: self.tiling.tiling(), controls, prompt: String::new(), ..request })
    }
}

/// A flag that Ctrl-C sets. A second Ctrl-C ends the program at once.
fn set_by_ctrl_c() -> Result<Arc<AtomicBool>> {
    let cancelled = Arc::new(AtomicBool::new(false));
    // In this order: the flag that the first one looks at is set by the second.
    flag::register_conditional_shutdown(SIGINT, KILLED_BY_CTRL_C, cancelled.clone())?;
    flag::register(SIGINT, cancelled.clone())?;
    Ok(cancelled)
}

/// Paints with a bar, and stops after the step in which `cancelled` is set.
fn paint(
    pipeline: &mut Pipeline,
    request: &Request,
    bar: ProgressBar,
    previews: Option<Previews>,
    cancelled: &AtomicBool,
) -> Result<Painting, Error> {
    let mut on_step = |done, _| {
        bar.set_position(done as u64);
        if cancelled.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let painting = pipeline.paint_with_previews(request, &mut on_step, previews);
    bar.finish_and_clear();
    painting
}

/// What was asked for and does nothing.
fn without_effect(request: &Request, model: &Description) -> Vec<String> {
    let Request { negative_prompt, guidance_rescale, guidance_scale, image_guidance_scale, .. } = request;
    if request.is_guided(&model.config) {
        return Vec::new();
    }
    let why = if *guidance_scale > 1.0 {
        "the model takes the guidance scale as an input".to_string()
    } else {
        format!("--guidance-scale {guidance_scale} is not above 1")
    };
    let negative = (!negative_prompt.is_empty()).then_some("the negative prompt");
    let rescale = (*guidance_rescale > 0.0).then_some("--guidance-rescale");
    let image = image_guidance_scale.map(|_| "--image-guidance-scale");
    negative
        .into_iter()
        .chain(rescale)
        .chain(image)
        .map(|what| format!("{what} has no effect: {why}"))
        .collect()
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
}

/// What `--json` says of a prompt, but for what is the same for all.
fn report(request: &Request, painting: &Painting, files: &[PathBuf], stages: &Stages) -> Value {
    let seeds: Vec<u64> = painting.pictures.iter().map(|picture| picture.seed).collect();
    let times_ms: BTreeMap<_, _> =
        stages.rows().into_iter().map(|(name, time)| (name, in_ms(time))).collect();
    json!({
        "files": files.iter().map(|file| file.to_string_lossy()).collect::<Vec<_>>(),
        "seeds": seeds,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": painting.pictures[0].width,
        "height": painting.pictures[0].height,
        "strength": request.init.as_ref().map(|init| init.strength),
        "masked": request.init.as_ref().is_some_and(|init| init.mask.is_some()),
        "hires": request.hires.map(|Hires { scale, strength, steps }| {
            json!({ "scale": scale, "strength": strength, "steps": steps.unwrap_or(request.steps) })
        }),
        "sampler": request.sampler.name(),
        "schedule": request.schedule.name(),
        "steps": request.steps,
        "evaluations": painting.times.evaluations,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "guidance_start": request.guidance_start,
        "guidance_end": request.guidance_end,
        "image_guidance_scale": request.image_guidance_scale,
        "refiner_start": request.refiner_start,
        "eta": request.eta.or(request.sampler.default_eta()),
        "sigmas": request.sigmas.as_ref().map(|sigmas| sigmas.as_slice()),
        "rng": request.rng.to_string(),
        "times_ms": times_ms,
    })
}

/// How long everything took.
#[derive(Default)]
struct Stages {
    load: Duration,
    times: Times,
    save: Duration,
    prompts: u32,
}

impl Stages {
    fn add(&mut self, other: &Stages) {
        self.times.add(&other.times);
        self.load += other.load;
        self.save += other.save;
        self.prompts += other.prompts;
    }

    /// `image` is what another prompt would take at the same size: neither loading nor recording.
    fn rows(&self) -> Vec<(&'static str, Duration)> {
        let Times { record, text, picture, denoise, decode, .. } = self.times;
        let image = (text + picture + denoise + decode + self.save) / self.prompts;
        let rows = [
            ("load", self.load),
            ("record", record),
            ("text", text),
            ("picture", picture),
            ("denoise", denoise),
            ("decode", decode),
            ("save", self.save),
            ("image", image),
        ];
        rows.into_iter().filter(|(name, time)| *name != "picture" || !time.is_zero()).collect()
    }

    fn table(&self, steps: usize) -> String {
        let evaluations = self.times.evaluations;
        let speed = evaluations as f64 / self.times.denoise.as_secs_f64();
        let mut lines = vec![vec!["stage".to_string(), "ms".to_string()]];
        for (name, time) in self.rows() {
            let mut line = vec![name.to_string(), ms(in_ms(time))];
            if name == "denoise" {
                line.push(format!("{speed:.1} {}", unit(evaluations / self.prompts as usize, steps)));
            }
            lines.push(line);
        }
        columns(&lines, 1)
    }
}

fn in_ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}
