//! Pictures as bytes: what comes in, and what goes out.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::App;
use super::errors::ApiError;
use crate::image::Format;
use crate::pipeline::{Picture, Request};
use crate::raster::Raster;

/// What a picture that is sent is for.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// What is transparent shows white, as in A1111.
    Start,
    /// Light is painted; what is transparent is dark.
    Mask,
    /// What is transparent is painted, as OpenAI has it.
    Holes,
}

/// A picture that is sent may be this many times as large as those that may be painted: it is brought to size.
const LARGER: u64 = 16;

/// The format of pictures in answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    #[default]
    Png,
    Jpeg,
    /// Lossless.
    Webp,
}

impl OutputFormat {
    /// `quality` is that of a JPEG.
    pub fn format(self, quality: u8) -> Format {
        match self {
            OutputFormat::Png => Format::Png,
            OutputFormat::Jpeg => Format::Jpeg { quality },
            OutputFormat::Webp => Format::WebP,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            OutputFormat::Png => "image/png",
            OutputFormat::Jpeg => "image/jpeg",
            OutputFormat::Webp => "image/webp",
        }
    }
}

impl App {
    /// The file of a picture that was painted for `request`, and says so.
    pub async fn encode(self: &Arc<Self>, picture: Picture, request: &Request, format: Format) -> Vec<u8> {
        let parameters = self.origin.parameters(request, 0).to_string();
        let encoded = spawn_blocking(move || format.encode(&picture, &parameters));
        encoded.await.expect("encoding does not panic")
    }

    /// A picture that was sent as the field `name`.
    ///
    /// # Errors
    /// What is no picture, or too large.
    pub async fn decode(
        &self,
        name: &'static str,
        bytes: impl AsRef<[u8]> + Send + 'static,
        role: Role,
    ) -> Result<Raster, ApiError> {
        let most_pixels = LARGER * self.settings.limits.pixels as u64;
        let decoded = spawn_blocking(move || match role {
            Role::Start => Raster::decode(bytes.as_ref(), [255; 3], most_pixels),
            Role::Mask => Raster::decode(bytes.as_ref(), [0; 3], most_pixels),
            Role::Holes => Raster::decode_holes(bytes.as_ref(), most_pixels),
        });
        let decoded = decoded.await.map_err(|_| ApiError::internal())?;
        decoded.map_err(|message| ApiError::field(name, message))
    }
}

/// A preview's file, which says nothing.
pub async fn encode_preview(picture: Picture, format: Format) -> Vec<u8> {
    spawn_blocking(move || format.encode(&picture, "")).await.expect("encoding does not panic")
}
