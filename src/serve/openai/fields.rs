//! The fields of a request for pictures, and what they ask for.

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::App;
use super::super::body::{from_json, from_texts};
use super::super::errors::ApiError;
use super::super::painting::{LONGEST_PROMPT, Order};
use super::super::pictures::OutputFormat;
use super::models;
use crate::engine::Wanted;
use crate::error::{Error, Result};
use crate::parameter::{Field, Interface, Parameter};
use crate::pipeline::{Init, PreviewMethod, Request, RequestPatch};
use crate::raster::Raster;

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

    /// The fields of the table of parameters, which /openapi.json has from there.
    #[serde(skip)]
    #[schema(ignore)]
    pub parameters: RequestPatch,
}

/// A picture to start from.
pub struct StartPicture {
    pub picture: Raster,
    pub mask: Option<Raster>,
}

impl Fields {
    /// # Errors
    /// A field that is unknown, or not of its type.
    pub fn of_json(body: &Map<String, Value>) -> Result<Self, ApiError> {
        let (mut parameters, mut others) = (RequestPatch::default(), Map::new());
        for (field, value) in body {
            match Parameter::of_field(Interface::OpenAi, field) {
                Some(parameter) => parameters.set_json(parameter, value).map_err(|error| of_error(&error))?,
                None => drop(others.insert(field.clone(), value.clone())),
            }
        }
        let fields: Fields = from_json(&others.into()).map_err(with_parameters)?;
        Ok(Fields { parameters, ..fields })
    }

    /// # Errors
    /// A field that is unknown, there twice, or not of its type.
    pub fn of_texts(texts: Vec<(String, String)>) -> Result<Self, ApiError> {
        let (mut parameters, mut others) = (RequestPatch::default(), Vec::new());
        for (field, text) in texts {
            match Parameter::of_field(Interface::OpenAi, &field) {
                Some(parameter) if parameters.has(parameter) => {
                    return Err(ApiError::field(&field, "is there twice"));
                }
                Some(parameter) => parameters.set(parameter, &text).map_err(|error| of_error(&error))?,
                None => others.push((field, text)),
            }
        }
        let fields: Fields = from_texts(&others).map_err(with_parameters)?;
        Ok(Fields { parameters, ..fields })
    }

    /// What these fields ask for, checked.
    pub fn order(
        &self,
        app: &App,
        headers: &HeaderMap,
        picture: Option<StartPicture>,
    ) -> Result<Order, ApiError> {
        self.check(app)?;
        let request = self.request(app, picture, self.size()?).map_err(|error| of_error(&error))?;
        let mut order = Order {
            request,
            format: self.output_format.unwrap_or_default().format(self.quality()),
            priority: self.priority.unwrap_or_default(),
            deadline: App::deadline(self.deadline, headers)?,
            previews: None,
            interface: Interface::OpenAi,
        };
        let evaluations = order.check(app)?.iter().map(|pass| pass.table.evaluations()).sum::<usize>();
        let method = PreviewMethod::default_of(app.engine.description());
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
        let (stream, parameters) = (self.stream == Some(true), &self.parameters);
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
                parameters.hires_strength.is_some() && parameters.hires_scale.is_none(),
                "needs `hires_scale`",
            ),
            (
                "hires_steps",
                parameters.hires_steps.is_some() && parameters.hires_scale.is_none(),
                "needs `hires_scale`",
            ),
        ];
        if let Some((field, _, message)) = wrong.into_iter().find(|(_, is_wrong, _)| *is_wrong) {
            return Err(ApiError::field(field, message));
        }
        models::check(app, self.model.as_deref())
    }

    fn request(&self, app: &App, picture: Option<StartPicture>, size: Option<[usize; 2]>) -> Result<Request> {
        let model = app.engine.description();
        let own = picture.as_ref().map(|start| start.picture.size_below(model.config.vae.scale_factor()));
        let [width, height] = size.or(own).map_or([None; 2], |size| size.map(Some));
        let prompt = Some(self.prompt.clone());
        let patch = RequestPatch { prompt, width, height, ..self.parameters.clone() };
        let init = picture.map(|StartPicture { picture, mask }| {
            let strength = patch.strength.unwrap_or(Init::default_strength(model, mask.is_some()));
            Init { picture, mask, strength }
        });
        Ok(Request { init, ..patch.request(model)? })
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

fn of_error(error: &Error) -> ApiError {
    ApiError::of_error(error, Interface::OpenAi)
}

/// Names the fields of the table, too, where a field is unknown.
fn with_parameters(mut error: ApiError) -> ApiError {
    if error.error.message.starts_with("there is no field") {
        let plain = Parameter::ALL.iter().filter_map(|parameter| match parameter.row().openai {
            Field::Plain(name) => Some(format!(", `{name}`")),
            _ => None,
        });
        error.error.message.extend(plain);
    }
    error
}

const _: () = assert!(LONGEST_PROMPT == 4000 && MOST_PREVIEWS == 10, "as the schemas say");
