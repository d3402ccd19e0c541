//! How long the stages of painting take, whole, as a user meets them.
//!
//! | stage | what is measured |
//! |-------|------------------|
//! | `load` | [`Model::load`] on a device that is open already, files in the page cache |
//! | `text_encode` | tokens, text encoder, keys and values of all cross-attention, time table; what ControlNets read |
//! | `unet_step` | `denoise` divided by its evaluations |
//! | `denoise` | noise, and all steps as one replay |
//! | `vae_decode` | latents to pixels on the host |
//! | `image` | the sum of `text_encode`, `denoise` and `vae_decode`: prompt to pixels, without a file |

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ceiling::Ceiling;
use crate::columns::columns;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image;
use crate::location::Location;
use crate::ops::DType;
use crate::pipeline::{Counted, Model, Request, Times};
use crate::roofline::{self, Work};
use crate::workload::Workload;

/// Repeats of a measurement after the one that warms up, while time allows.
const REPEATS: usize = 5;
/// No further repeat is begun after this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to measure, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    pub workload: Workload,
    pub device: Device,
    pub dtype: Option<DType>,
    /// Pictures at once; each is measured.
    pub images: Vec<usize>,
    /// Measure the machine's ceiling again, though it is remembered.
    pub remeasure: bool,
}

/// One stage at one number of pictures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub stage: String,
    /// 0 for `load`, which has none.
    pub images: usize,
    pub unet_batch: usize,
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub repeats: usize,
    pub width: usize,
    pub height: usize,
    pub steps: usize,
    /// `None` for `load`, and in files of before it could be chosen.
    #[serde(default)]
    pub guidance_scale: Option<f32>,
    #[serde(default)]
    pub controlnets: usize,
    pub machine: String,
    /// The machine's measured ceiling; `None` on the CPU, and in files of before it was measured.
    #[serde(default)]
    pub ceiling: Option<Ceiling>,
    #[serde(skip)]
    pub work: Work,
}

/// Measures every stage. `on_stage` hears what comes next.
pub fn measure(settings: &Settings, on_stage: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let Settings { workload, device, dtype, images, remeasure } = settings;
    let requests: Vec<Request> =
        images.iter().map(|&images| workload.request(images)).collect::<Result<_>>()?;
    let config = workload.model.describe()?.config;
    let controlnets = config.controlnets.len();

    // On a backend of its own, whose memory is all free.
    let ceiling = roofline::ceiling(&mut *device.open(*dtype)?.backend, *remeasure)?;
    on_stage("loading");
    let mut pipeline = None;
    let mut load = || {
        // The one before gives its memory back first.
        pipeline = None;
        let backend = device.open(*dtype)?.backend;
        let start = Instant::now();
        pipeline = Some(workload.load(backend)?);
        Ok(start.elapsed())
    };
    let loads = match workload.model {
        Model::Files(_) => repeat(load)?,
        // Nothing is read, so that there is nothing to learn from repeats.
        Model::Random { .. } => vec![load()?],
    };
    let mut pipeline = pipeline.expect("loaded at least once");
    let (machine, dtype) = (pipeline.backend().describe(), pipeline.backend().dtype());
    let mut rows =
        vec![Row { ceiling, ..Row::new("load", &machine, controlnets, None, &loads, Work::default()) }];
    for request in &requests {
        on_stage(&format!("painting {} of {}x{}", request.images, request.width, request.height));
        let times = repeat(|| {
            let painting = pipeline.paint(request, &mut |_, _| ControlFlow::Continue(()))?;
            Ok(painting.times)
        })?;
        let evaluations = times[0].evaluations;
        let counted = Counted::new(pipeline.description(), request, dtype)?;
        let unet_batch = request.images * if request.is_guided(&config) { 2 } else { 1 };
        let [encode, step, decode] = [&counted.encode, &counted.denoise, &counted.decode]
            .map(|stage| Work::counted(&stage.calls, ceiling));
        let denoise = step.times(evaluations as f64);
        let mut row = |stage: &str, work: Work, time: fn(&Times) -> Duration| {
            let times: Vec<Duration> = times.iter().map(time).collect();
            let painted = Some((request, unet_batch));
            rows.push(Row { ceiling, ..Row::new(stage, &machine, controlnets, painted, &times, work) });
        };
        row("text_encode", encode, |t| t.text);
        row("unet_step", step, |t| t.denoise / t.evaluations as u32);
        row("denoise", denoise, |t| t.denoise);
        row("vae_decode", decode, |t| t.decode);
        row("image", encode.plus(denoise).plus(decode), |t| t.text + t.denoise + t.decode);
    }
    Ok(rows)
}

impl Row {
    /// `painted`: the request and its images in one U-Net call.
    fn new(
        stage: &str,
        machine: &str,
        controlnets: usize,
        painted: Option<(&Request, usize)>,
        times: &[Duration],
        work: Work,
    ) -> Self {
        let mut ms: Vec<f64> = times.iter().map(|time| 1e3 * time.as_secs_f64()).collect();
        ms.sort_by(f64::total_cmp);
        let of = |value: fn(&Request) -> usize| painted.map_or(0, |(request, _)| value(request));
        Row {
            stage: stage.to_string(),
            images: of(|request| request.images),
            unet_batch: painted.map_or(0, |(_, unet_batch)| unet_batch),
            median_ms: median(&ms),
            min_ms: ms[0],
            max_ms: ms[ms.len() - 1],
            repeats: ms.len(),
            width: of(|request| request.width),
            height: of(|request| request.height),
            steps: of(|request| request.steps),
            guidance_scale: painted.map(|(request, _)| request.guidance_scale),
            controlnets,
            machine: machine.to_string(),
            ceiling: None,
            work,
        }
    }
}

/// Runs `body` to warm up, then again for as often as time allows; the warm-up counts if it took all.
fn repeat<T>(mut body: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    let start = Instant::now();
    let mut results = vec![body()?];
    if start.elapsed() > PATIENCE {
        return Ok(results);
    }
    results.clear();
    while results.is_empty() || (results.len() < REPEATS && start.elapsed() < PATIENCE) {
        results.push(body()?);
    }
    Ok(results)
}

/// The middle of sorted numbers.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// The rows for a terminal, beside the medians of `before` and how many times faster the new ones are.
pub fn table(rows: &[Row], before: &[Row]) -> String {
    let mut heading = vec!["stage", "images", "U-Net batch", "median ms", "min", "max"];
    heading.extend(roofline::CELLS);
    if !before.is_empty() {
        heading.extend(["before ms", "x"]);
    }
    let mut lines: Vec<Vec<String>> = vec![heading.into_iter().map(String::from).collect()];
    for row in rows {
        let mut line = vec![row.stage.clone()];
        line.extend(
            [row.images, row.unet_batch].map(|n| if n == 0 { "-".to_string() } else { n.to_string() }),
        );
        line.extend([row.median_ms, row.min_ms, row.max_ms].map(|ms| format!("{ms:.3}")));
        if row.work.bytes > 0.0 {
            line.extend(row.work.cells(row.median_ms));
        } else {
            line.extend(roofline::CELLS.map(|_| "-".to_string()));
        }
        if let Some(old) = before.iter().find(|old| old.same_as(row)) {
            line.push(format!("{:.3}", old.median_ms));
            line.push(format!("{:.2}", old.median_ms / row.median_ms));
        }
        lines.push(line);
    }
    columns(&lines, 1)
}

impl Row {
    /// Whether both measure the same work.
    fn same_as(&self, other: &Row) -> bool {
        let what = |row: &Row| {
            let Row { images, unet_batch, controlnets, width, height, .. } = *row;
            (row.stage.clone(), images, unet_batch, controlnets, width, height)
        };
        let counts_steps = matches!(self.stage.as_str(), "denoise" | "image");
        what(self) == what(other) && (!counts_steps || self.steps == other.steps)
    }
}

/// Writes rows as lines of JSON.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    write_lines(path, rows)
}

pub(crate) fn write_lines(path: &Path, rows: &[impl Serialize]) -> Result<()> {
    let lines = rows.iter().map(|row| serde_json::to_string(row).expect("numbers and strings") + "\n");
    image::write(path, lines.collect::<String>().as_bytes())
}

/// Reads what [`write`] wrote.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let text = Location::from(path).read_text()?;
    let row = |(i, line)| {
        serde_json::from_str(line)
            .map_err(|error| Error::file(path, format!("line {}: not of sdrt bench: {error}", i + 1)))
    };
    text.lines().enumerate().map(row).collect()
}
