//! The fields of A1111's requests. Those that are not here change nothing and are passed over; those that would
//! change the picture in a way that there is not are refused.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::super::App;
use super::super::body::from_json;
use super::super::errors::ApiError;
use super::super::openai;
use super::super::painting::Order;
use super::super::pictures::Role;
use crate::engine::Wanted;
use crate::error::Result;
use crate::image::{Format, a1111_names};
use crate::model::config::UNetInput;
use crate::parameter::{Interface, Parameter};
use crate::pipeline::{Hires, Init, PreviewMethod, Request, RequestPatch};
use crate::raster::Raster;
use crate::rng::Rng;
use crate::text::PromptStyle;

/// Where the latents have no quick preview, there is none.
const PREVIEWS: Wanted = Wanted { every: 5, method: PreviewMethod::Projection };
/// A1111's.
const STRENGTH: f64 = 0.75;
const HIRES_SCALE: f64 = 2.0;
/// As a seed.
const RANDOM: i64 = -1;
const LATENT: &str = "Latent";

/// What both requests have.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct Common {
    /// -1: random.
    #[schema(minimum = -1)]
    seed: Option<i64>,
    /// Also with a schedule behind it: `DPM++ 2M Karras`.
    sampler_name: Option<String>,
    sampler_index: Option<String>,
    scheduler: Option<String>,
    #[schema(minimum = 1)]
    batch_size: Option<usize>,
    #[schema(minimum = 1)]
    n_iter: Option<usize>,
    override_settings: Option<Overrides>,
    /// The server's own, if any.
    refiner_checkpoint: Option<String>,

    styles: Option<Vec<String>>,
    subseed_strength: Option<f64>,
    seed_resize_from_w: Option<i64>,
    seed_resize_from_h: Option<i64>,
    restore_faces: Option<bool>,
    tiling: Option<bool>,
    script_name: Option<String>,
    alwayson_scripts: Option<BTreeMap<String, Value>>,

    /// The fields of the table of parameters, which /openapi.json has from there.
    #[serde(skip)]
    #[schema(ignore)]
    parameters: RequestPatch,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
struct Overrides {
    #[serde(rename = "CLIP_stop_at_last_layers")]
    #[schema(minimum = 1)]
    clip_skip: Option<usize>,
    sd_model_checkpoint: Option<String>,
    /// `GPU` and `NV`: torch's CUDA generator, `CPU`: the other.
    randn_source: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// As /openapi.json shows them; read one by one, they say which field is wrong.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code)]
pub struct Txt2ImgBody {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    own: Txt2Img,
}

#[derive(Deserialize, ToSchema)]
#[allow(dead_code)]
pub struct Img2ImgBody {
    #[serde(flatten)]
    common: Common,
    #[serde(flatten)]
    own: Img2Img,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct Txt2Img {
    /// Hires fix with the upscaler `Latent`.
    enable_hr: Option<bool>,
    #[schema(exclusive_minimum = 1)]
    hr_scale: Option<f64>,
    hr_upscaler: Option<String>,
    hr_second_pass_steps: Option<usize>,
    hr_resize_x: Option<usize>,
    hr_resize_y: Option<usize>,
    hr_sampler_name: Option<String>,
    hr_prompt: Option<String>,
    hr_negative_prompt: Option<String>,
    /// Of the second pass.
    #[schema(minimum = 0, maximum = 1)]
    denoising_strength: Option<f64>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct Img2Img {
    /// One picture, in Base64 or as a data URL.
    init_images: Option<Vec<String>>,
    /// Light is painted.
    mask: Option<String>,
    /// 1: dark is painted.
    inpainting_mask_invert: Option<i64>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    denoising_strength: Option<f64>,
    /// 0: the picture is brought to the size of the request.
    resize_mode: Option<i64>,
}

impl Txt2Img {
    pub fn order(&self, common: &Common, app: &App, headers: &HeaderMap) -> Result<Order, ApiError> {
        let hires = self.enable_hr == Some(true);
        let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let upscaler = self.hr_upscaler.as_deref().unwrap_or(LATENT);
        refuse([
            ("hr_upscaler", hires && upscaler != LATENT, "there is Latent alone"),
            ("hr_resize_x", hires && self.hr_resize_x > Some(0), "use hr_scale"),
            ("hr_resize_y", hires && self.hr_resize_y > Some(0), "use hr_scale"),
            ("hr_sampler_name", hires && is_set(&self.hr_sampler_name), "both passes have one sampler"),
            ("hr_prompt", hires && is_set(&self.hr_prompt), "both passes have one prompt"),
            ("hr_negative_prompt", hires && is_set(&self.hr_negative_prompt), "both passes have one prompt"),
        ])?;
        let request = common.request(app)?;
        let hires = hires.then(|| Hires {
            scale: self.hr_scale.unwrap_or(HIRES_SCALE),
            strength: self.denoising_strength.unwrap_or(Hires::DEFAULT_STRENGTH),
            steps: self.hr_second_pass_steps.filter(|&steps| steps > 0),
        });
        order(app, headers, Request { hires, ..request })
    }
}

impl Img2Img {
    pub async fn order(&self, common: &Common, app: &App, headers: &HeaderMap) -> Result<Order, ApiError> {
        refuse([("resize_mode", self.resize_mode.unwrap_or_default() != 0, "there is 0 alone")])?;
        let [picture] = self.init_images.as_deref().unwrap_or_default() else {
            return Err(ApiError::field("init_images", "expected one picture in Base64"));
        };
        let mut request = common.request(app)?;
        let picture = app.decode("init_images", from_base64("init_images", picture)?, Role::Start).await?;
        let mask = match &self.mask {
            Some(mask) => Some(app.decode("mask", from_base64("mask", mask)?, Role::Mask).await?),
            None => None,
        };
        let mask = mask.map(|mask| match self.inpainting_mask_invert {
            Some(1) => Raster { rgb: mask.rgb.iter().map(|byte| 255 - byte).collect(), ..mask },
            _ => mask,
        });
        let own = picture.size_below(app.engine.description().config.vae.scale_factor());
        request.width = common.parameters.width.unwrap_or(own[0]);
        request.height = common.parameters.height.unwrap_or(own[1]);
        request.init = Some(Init { picture, mask, strength: self.denoising_strength.unwrap_or(STRENGTH) });
        order(app, headers, request)
    }
}

fn order(app: &App, headers: &HeaderMap, request: Request) -> Result<Order, ApiError> {
    let quick = PreviewMethod::default_of(app.engine.description()) == PREVIEWS.method;
    Ok(Order {
        request,
        format: Format::Png,
        priority: 0,
        deadline: App::deadline(None, headers)?,
        previews: quick.then_some(PREVIEWS),
        interface: Interface::A1111,
    })
}

impl Common {
    /// # Errors
    /// A field that is not of its type.
    pub fn of_json(body: &Value) -> Result<Self, ApiError> {
        let mut common: Common = from_json(body)?;
        for (field, value) in body.as_object().into_iter().flatten() {
            if let Some(parameter) = Parameter::of_field(Interface::A1111, field) {
                let set = common.parameters.set_json(parameter, value);
                set.map_err(|error| ApiError::of_error(&error, Interface::A1111))?;
            }
        }
        Ok(common)
    }

    /// What these fields ask for, from noise.
    fn request(&self, app: &App) -> Result<Request, ApiError> {
        let scripts: Vec<&str> =
            self.alwayson_scripts.iter().flatten().map(|(name, _)| name.as_str()).collect();
        if let Some(seed) = self.seed.filter(|&seed| seed < RANDOM) {
            return Err(ApiError::field(
                "seed",
                format!("{seed} is no seed; expected 0 or more, or -1 for any"),
            ));
        }
        refuse([
            ("styles", self.styles.as_ref().is_some_and(|styles| !styles.is_empty()), "there are none"),
            ("subseed_strength", self.subseed_strength.unwrap_or_default() != 0.0, "there are no subseeds"),
            ("seed_resize_from_w", self.seed_resize_from_w > Some(0), "seeds are not resized"),
            ("seed_resize_from_h", self.seed_resize_from_h > Some(0), "seeds are not resized"),
            ("restore_faces", self.restore_faces == Some(true), "there is no such thing"),
            ("tiling", self.tiling == Some(true), "there is no such thing"),
            (
                "script_name",
                self.script_name.as_ref().is_some_and(|name| !name.is_empty()),
                "there are no scripts",
            ),
            ("alwayson_scripts", !scripts.is_empty(), "there are no scripts"),
        ])?;
        let refiner = self.refiner_checkpoint.as_deref().filter(|name| !["", "None"].contains(name));
        if refiner.is_some() && refiner != app.settings.refiner.as_deref() {
            let there = match &app.settings.refiner {
                Some(name) => format!("this server has {name}"),
                None => "this server has no refiner".into(),
            };
            return Err(ApiError::field("refiner_checkpoint", format!("{there}; leave it out")));
        }
        let overrides = self.override_settings.as_ref();
        if let Some((name, _)) = overrides.and_then(|overrides| overrides.others.first_key_value()) {
            let message = format!(
                "there is no {name}; expected CLIP_stop_at_last_layers, sd_model_checkpoint or randn_source"
            );
            return Err(ApiError::field("override_settings", message));
        }
        openai::check(app, overrides.and_then(|overrides| overrides.sd_model_checkpoint.as_deref()))?;
        let images = self.batch_size.unwrap_or(1).saturating_mul(self.n_iter.unwrap_or(1));
        let request = self.of_defaults(app).map_err(|error| ApiError::of_error(&error, Interface::A1111))?;
        Ok(Request { images, rng: overrides.map_or(Ok(Rng::Cuda), Overrides::rng)?, ..request })
    }

    fn of_defaults(&self, app: &App) -> Result<Request> {
        let name =
            self.sampler_name.as_deref().or(self.sampler_index.as_deref()).filter(|name| !name.is_empty());
        let (sampler, combined) = match name.map(|name| (name, a1111_names::sampler_and_schedule(name))) {
            Some((_, Some((sampler, schedule)))) => (Some(sampler), schedule),
            Some((name, None)) => (Some(name.parse()?), None),
            None => (None, None),
        };
        let model = app.engine.description();
        let sampler = sampler.map_or_else(|| model.scheduler.default_sampler(), Ok)?;
        let scheduler = a1111_names::schedule(self.scheduler.as_deref(), sampler)?;
        let own = RequestPatch {
            prompt_style: Some(PromptStyle::A1111),
            clip_skip: self.override_settings.as_ref().and_then(|overrides| overrides.clip_skip),
            sampler: Some(sampler),
            schedule: Some(combined.unwrap_or(scheduler)),
            seed: self.seed.and_then(|seed| seed.try_into().ok()),
            ..RequestPatch::default()
        };
        // A1111 passes over what a sampler or a model does not have.
        let RequestPatch { eta, refiner_start, image_guidance_scale, .. } = self.parameters;
        let has_image_guidance = model.config.unet_input() == UNetInput::Image;
        let given = RequestPatch {
            eta: eta.filter(|_| sampler.default_eta().is_some()),
            refiner_start: match self.refiner_checkpoint.as_deref() {
                Some("None") => Some(1.0),
                _ => refiner_start.filter(|_| model.refiner.is_some()),
            },
            image_guidance_scale: image_guidance_scale.filter(|_| has_image_guidance),
            ..self.parameters.clone()
        };
        own.or(given).request(model)
    }
}

impl Overrides {
    fn rng(&self) -> Result<Rng, ApiError> {
        match self.randn_source.as_deref() {
            None | Some("GPU" | "NV") => Ok(Rng::Cuda),
            Some("CPU") => Ok(Rng::Cpu),
            Some(other) => {
                let message = format!("randn_source is {other:?}; expected GPU, NV or CPU");
                Err(ApiError::field("override_settings", message))
            }
        }
    }
}

/// Field, whether it asks for what is not there, and what to say of it.
fn refuse<const N: usize>(fields: [(&str, bool, &str); N]) -> Result<(), ApiError> {
    match fields.into_iter().find(|(_, is_wrong, _)| *is_wrong) {
        Some((field, _, message)) => Err(ApiError::field(field, format!("{message}; leave it out"))),
        None => Ok(()),
    }
}

/// A picture's bytes, in Base64 or as a data URL.
pub fn from_base64(field: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    let base64 = match text.split_once(',') {
        Some((head, base64)) if head.starts_with("data:") => base64,
        _ => text,
    };
    BASE64_STANDARD.decode(base64.trim()).map_err(|_| ApiError::field(field, "expected a picture in Base64"))
}
