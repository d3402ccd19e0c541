//! The fields of a request for pictures, and what they ask for.

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::App;
use super::super::errors::ApiError;
use super::super::painting::{LONGEST_PROMPT, Order};
use super::super::pictures::OutputFormat;
use super::models;
use crate::engine::Wanted;
use crate::error::{Error, Result};
use crate::parameter::Interface;
use crate::pipeline::{Hires, Init, PreviewMethod, Request};
use crate::raster::Raster;
use crate::rng::random_seed;
use crate::sampler::NoiseLevels;

/// Previews that a request may ask for.
pub const MOST_PREVIEWS: usize = 10;
/// Of a JPEG, as `sdrt run` has it.
const QUALITY: u8 = 95;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    #[default]
    B64Json,
    Url,
}

/// OpenAI's fields, and behind them those of sdrt. What is left out is the model's own.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // The last ones.
pub struct Fields {
    #[schema(max_length = 4000)]
    pub prompt: String,
    /// As `/v1/models` has it.
    pub model: Option<String>,
    /// Pictures; picture i has the seed `seed` + i.
    #[schema(minimum = 1)]
    pub n: Option<usize>,
    /// `WIDTHxHEIGHT` in multiples of 8, or `auto`: the model's, or that of the picture to start from.
    #[schema(pattern = "^(auto|[0-9]{1,5}x[0-9]{1,5})$")]
    pub size: Option<String>,
    pub response_format: Option<ResponseFormat>,
    pub output_format: Option<OutputFormat>,
    /// The quality of a JPEG, in percent.
    #[schema(maximum = 100)]
    pub output_compression: Option<u8>,
    /// Answers with server-sent events.
    pub stream: Option<bool>,
    /// So many previews of each picture, with `stream`.
    #[schema(maximum = 10)]
    pub partial_images: Option<usize>,

    #[schema(max_length = 4000)]
    pub negative_prompt: Option<String>,
    /// `plain` or `a1111`: `(word:1.3)`, `[word]`, `BREAK`.
    pub prompt_style: Option<String>,
    /// `chunk` or `truncate`: what becomes of more than 75 tokens.
    pub long_prompt: Option<String>,
    /// The layer of the text encoder that is read, from the end.
    #[schema(minimum = 1)]
    pub clip_skip: Option<usize>,
    #[schema(minimum = 1)]
    pub num_inference_steps: Option<usize>,
    pub guidance_scale: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    pub guidance_rescale: Option<f32>,
    /// As `sdrt run --help` lists them.
    pub sampler: Option<String>,
    pub schedule: Option<String>,
    #[schema(minimum = 0, maximum = 1)]
    pub eta: Option<f64>,
    /// Noise levels from high to low, `"14.6,7.8,0"`, instead of a schedule.
    pub sigmas: Option<String>,
    /// Random where it is left out.
    pub seed: Option<u64>,
    /// `cpu` or `cuda`: whose noise a seed gives.
    pub rng: Option<String>,
    /// Hires fix: paints, enlarges by this, and paints again.
    #[schema(exclusive_minimum = 1)]
    pub hires_scale: Option<f64>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub hires_strength: Option<f64>,
    #[schema(minimum = 1)]
    pub hires_steps: Option<usize>,
    /// Of `/v1/images/edits`: how much of the picture is painted anew.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub strength: Option<f64>,
    /// With `stream`: events `sdrt.progress` besides.
    pub progress: Option<bool>,
    /// Seconds after which nobody wants the pictures any more.
    #[schema(exclusive_minimum = 0)]
    pub deadline: Option<f64>,
    /// The higher, the sooner.
    pub priority: Option<i32>,

    /// Taken and passed over, as the fields below.
    pub quality: Option<String>,
    pub style: Option<String>,
    pub background: Option<String>,
    pub moderation: Option<String>,
    pub input_fidelity: Option<String>,
    pub user: Option<String>,
    pub safety_identifier: Option<String>,
}

/// A picture to start from.
pub struct StartPicture {
    pub picture: Raster,
    pub mask: Option<Raster>,
}

impl Fields {
    /// What these fields ask for, checked.
    pub fn order(
        &self,
        app: &App,
        headers: &HeaderMap,
        picture: Option<StartPicture>,
    ) -> Result<Order, ApiError> {
        self.check(app)?;
        let request = self.request(app, picture, self.size()?);
        let request = request.map_err(|error| ApiError::of_error(&error, Interface::OpenAi))?;
        let mut order = Order {
            request,
            format: self.output_format.unwrap_or_default().format(self.quality()),
            priority: self.priority.unwrap_or_default(),
            deadline: App::deadline(self.deadline, headers)?,
            previews: None,
            interface: Interface::OpenAi,
        };
        let evaluations = order.check(app)?.iter().map(|pass| pass.table.evaluations()).sum::<usize>();
        let method = PreviewMethod::default_of(&app.engine.description().config);
        order.previews = (self.previews() > 0)
            .then(|| Wanted { every: evaluations.div_ceil(self.previews() + 1).max(1), method });
        Ok(order)
    }

    /// Previews of each picture.
    pub fn previews(&self) -> usize {
        self.partial_images.unwrap_or_default()
    }

    fn quality(&self) -> u8 {
        self.output_compression.map_or(QUALITY, |percent| percent.max(1))
    }

    /// What the library does not check.
    fn check(&self, app: &App) -> Result<(), ApiError> {
        let stream = self.stream == Some(true);
        let wrong = [
            ("output_compression", self.output_compression > Some(100), "expected 0 to 100"),
            ("partial_images", self.previews() > MOST_PREVIEWS, "expected 0 to 10"),
            ("partial_images", self.previews() > 0 && !stream, "needs `stream` to be true"),
            ("progress", self.progress == Some(true) && !stream, "needs `stream` to be true"),
            (
                "response_format",
                stream && self.response_format == Some(ResponseFormat::Url),
                "a stream has its pictures in itself; expected b64_json",
            ),
            (
                "hires_strength",
                self.hires_strength.is_some() && self.hires_scale.is_none(),
                "needs `hires_scale`",
            ),
            ("hires_steps", self.hires_steps.is_some() && self.hires_scale.is_none(), "needs `hires_scale`"),
        ];
        if let Some((field, _, message)) = wrong.into_iter().find(|(_, is_wrong, _)| *is_wrong) {
            return Err(ApiError::field(field, message));
        }
        models::check(app, self.model.as_deref())
    }

    fn request(&self, app: &App, picture: Option<StartPicture>, size: Option<[usize; 2]>) -> Result<Request> {
        let model = app.engine.description();
        let defaults = match &self.sampler {
            Some(sampler) => Request::defaults(model, sampler.parse()?),
            None => app.engine.defaults(),
        };
        let sigmas: Option<NoiseLevels> = parsed(&self.sigmas)?;
        let own = picture.as_ref().map(|start| start.picture.size_below(model.config.vae.scale_factor()));
        let [width, height] = size.or(own).unwrap_or([defaults.width, defaults.height]);
        let init = picture.map(|StartPicture { picture, mask }| {
            let strength = self.strength.unwrap_or(Init::default_strength(model, mask.is_some()));
            Init { picture, mask, strength }
        });
        Ok(Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone().unwrap_or_default(),
            prompt_style: parsed(&self.prompt_style)?.unwrap_or_default(),
            long_prompt: parsed(&self.long_prompt)?,
            clip_skip: self.clip_skip,
            steps: self
                .num_inference_steps
                .or(sigmas.as_ref().map(NoiseLevels::steps))
                .unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            guidance_rescale: self.guidance_rescale.unwrap_or_default(),
            schedule: parsed(&self.schedule)?.unwrap_or_default(),
            eta: self.eta,
            sigmas,
            seed: self.seed.unwrap_or_else(random_seed),
            rng: parsed(&self.rng)?.unwrap_or_default(),
            width,
            height,
            images: self.n.unwrap_or(1),
            init,
            hires: self.hires_scale.map(|scale| Hires {
                scale,
                strength: self.hires_strength.unwrap_or(Hires::DEFAULT_STRENGTH),
                steps: self.hires_steps,
            }),
            ..defaults
        })
    }

    /// Width and height, unless they are left open.
    fn size(&self) -> Result<Option<[usize; 2]>, ApiError> {
        let Some(size) = self.size.as_deref().filter(|size| *size != "auto") else { return Ok(None) };
        let sides = size.split_once('x').map(|(width, height)| [width.parse(), height.parse()]);
        match sides {
            Some([Ok(width), Ok(height)]) => Ok(Some([width, height])),
            _ => {
                let message = format!("{size}: expected auto, or WIDTHxHEIGHT as in 512x768");
                Err(ApiError::field("size", message))
            }
        }
    }
}

fn parsed<T: std::str::FromStr<Err = Error>>(text: &Option<String>) -> Result<Option<T>> {
    text.as_deref().map(str::parse).transpose()
}

const _: () = assert!(LONGEST_PROMPT == 4000 && MOST_PREVIEWS == 10, "as the schemas say");
