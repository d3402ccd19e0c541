//! What huggingface_hub's environment variables say, read as Python's client reads them.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Where models come from, and where they are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Scheme and host of a server with the hub's API; `None` is the hub.
    pub endpoint: Option<String>,
    /// The folder of `models--owner--name`.
    pub cache: PathBuf,
    pub token: Option<String>,
    /// A PEM file of the authorities to trust in TLS; `None` are Mozilla's.
    pub certificates: Option<PathBuf>,
    /// No network, whatever is missing.
    pub offline: bool,
    /// Before the first new attempt; doubled before each further one.
    pub pause: Duration,
}

impl Settings {
    /// `HF_ENDPOINT`; `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `huggingface` of `XDG_CACHE_HOME`
    /// or `~/.cache`; `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `token` in that home;
    /// `HF_HUB_OFFLINE`; `SSL_CERT_FILE`.
    pub fn from_env() -> Result<Self> {
        let home = home()?;
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        // Most people have no token, and most models ask for none.
        let token = token.or_else(|| fs::read_to_string(token_file).ok());
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        let offline = text("HF_HUB_OFFLINE").map(|value| value.to_uppercase());
        Ok(Settings {
            endpoint: text("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_string()),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token,
            certificates: path("SSL_CERT_FILE"),
            offline: offline.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.as_str())),
            pause: Duration::from_millis(500),
        })
    }
}

fn home() -> Result<PathBuf> {
    let in_cache = || {
        Some(path("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")))?.join("huggingface"))
    };
    let home = path("HF_HOME").or_else(in_cache);
    home.ok_or_else(|| {
        Error::invalid("no home directory to keep downloaded models in; set HF_HOME to a folder")
    })
}

/// An empty variable counts as one that is not set.
fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn text(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|value| !value.is_empty())
}
