//! Requests to the hub, and what their failures mean.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde::Deserialize;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::WithoutBody;
use ureq::{Body, RequestBuilder};

use super::cache::{self, is_commit, is_hexadecimal};
use super::id::Id;
use super::select::is_relative;
use super::settings::Settings;
use crate::error::{Error, Result};
use crate::location::Location;

/// In a row without a byte in between.
pub const ATTEMPTS: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A listing of many thousand files is longer than the 10 MB that ureq would read.
const LONGEST_LISTING: u64 = 64 << 20;

/// A repository at a revision, as the hub lists it.
pub struct Listing {
    pub commit: String,
    /// By path.
    pub files: BTreeMap<String, Listed>,
}

/// One file of a repository.
pub struct Listed {
    pub size: u64,
    /// The name of its blob.
    pub etag: String,
    /// Of its bytes; the hub knows it of large files, the weights among them.
    pub sha256: Option<String>,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub enum Failure {
    /// No answer, or the end of it is missing.
    Network(String),
    /// An answer that is no file.
    Status { code: u16, reason: String },
    /// Trying again is of no use: this machine's disk, or an answer that cannot be meant.
    Final(Error),
}

impl Failure {
    /// Whether the next attempt may go better.
    pub fn is_passing(&self) -> bool {
        match self {
            Failure::Network(_) => true,
            Failure::Status { code, .. } => matches!(code, 408 | 416 | 429 | 500..),
            Failure::Final(_) => false,
        }
    }
}

pub struct Client<'a> {
    id: &'a Id,
    settings: &'a Settings,
    api: Api,
    repo: ApiRepo,
    /// Mozilla's where there are none.
    roots: Option<RootCerts>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl<'a> Client<'a> {
    pub fn new(settings: &'a Settings, id: &'a Id) -> Result<Self> {
        let mut api = ApiBuilder::from_cache(hf_hub::Cache::new(settings.cache.clone()))
            .with_token(settings.token.clone())
            .with_user_agent("sdrt", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &settings.endpoint {
            api = api.with_endpoint(endpoint.clone());
        }
        let api = api.build().map_err(|error| Error::hub(id, error))?;
        let repo = api.repo(cache::repo(id));
        let roots = settings.certificates.as_deref().map(read_roots).transpose()?;
        Ok(Client { id, settings, api, repo, roots })
    }

    /// What the repository holds. Tries again where the hub is there but busy.
    pub fn list(&self) -> Result<Listing, Failure> {
        let mut attempt = 0;
        loop {
            let answer = self.list_once();
            attempt += 1;
            match answer {
                Err(failure @ Failure::Status { .. }) if failure.is_passing() && attempt < ATTEMPTS => {
                    self.pause(attempt);
                }
                answer => return answer,
            }
        }
    }

    fn list_once(&self) -> Result<Listing, Failure> {
        let request = self.configured(self.repo.info_request().query("blobs", "true"));
        let mut response = answered(request.call())?;
        let body = response.body_mut().with_config().limit(LONGEST_LISTING).read_to_vec();
        let body = body.map_err(|error| Failure::Network(error.to_string()))?;
        self.read_listing(&body).map_err(|message| Failure::Final(Error::hub(self.id, message)))
    }

    fn read_listing(&self, body: &[u8]) -> Result<Listing, String> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|error| format!("{} gave no listing of the model: {error}", self.endpoint()))?;
        if !is_commit(&answer.sha) {
            return Err(format!("{} gave \"{}\" as its commit", self.endpoint(), answer.sha));
        }
        let mut files = BTreeMap::new();
        for Sibling { rfilename: name, size, blob_id, lfs } in answer.siblings {
            if !is_relative(&name) {
                return Err(format!(
                    "lists {name:?}, a path that leads out of the model; nothing was fetched"
                ));
            }
            let listed = match lfs {
                Some(Lfs { sha256, size }) => {
                    Some(Listed { size, etag: sha256.clone(), sha256: Some(sha256) })
                }
                None => size.zip(blob_id).map(|(size, etag)| Listed { size, etag, sha256: None }),
            };
            let Some(listed) = listed.filter(|listed| is_hexadecimal(&listed.etag)) else {
                return Err(format!("{} lists {name} without its size and hash", self.endpoint()));
            };
            files.insert(name, listed);
        }
        Ok(Listing { commit: answer.sha, files })
    }

    /// The bytes of a file at a commit, from `start` on if the server can.
    pub fn open(&self, commit: &str, name: &str, start: u64) -> Result<Response<Body>, Failure> {
        let at_commit = Repo::with_revision(self.id.repository.clone(), RepoType::Model, commit.into());
        let url = self.api.repo(at_commit).url(&percent_encoded(name));
        // The client with the token and the rule where it may go: hf-hub hands it out in no other way.
        let mut request = self.repo.info_request().uri(url);
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        answered(self.configured(request).call())
    }

    fn configured(&self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        let mut config = request
            .config()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            // A range of a compressed file would be another range.
            .accept_encoding("identity")
            .http_status_as_error(false);
        if let Some(roots) = &self.roots {
            config = config.tls_config(TlsConfig::builder().root_certs(roots.clone()).build());
        }
        config.build()
    }

    /// Waits before another attempt.
    pub fn pause(&self, failures: u32) {
        thread::sleep(self.settings.pause * 2u32.pow(failures.saturating_sub(1)));
    }

    fn endpoint(&self) -> String {
        let url = self.repo.url("");
        url.split(&format!("/{}/resolve/", self.id.repository)).next().unwrap_or_default().to_string()
    }

    /// What a failure means for the one who asked for the model. `what` is the file, if it was about one.
    pub fn explain(&self, failure: Failure, what: Option<&str>) -> Error {
        let Settings { cache, token, .. } = self.settings;
        let (code, reason) = match failure {
            Failure::Final(error) => return error,
            Failure::Network(cause) => {
                let endpoint = self.endpoint();
                let message = match what {
                    None => format!(
                        "not in the cache ({}), and {endpoint} cannot be reached: {cause}; check the \
                         network, or give the path of a model's folder",
                        cache.display()
                    ),
                    Some(file) => format!(
                        "{file} broke off {ATTEMPTS} times: {cause}; the same command goes on where it stopped"
                    ),
                };
                return Error::hub(self.id, message);
            }
            Failure::Status { code, reason } => (code, reason),
        };
        let message = match (code, reason.as_str()) {
            (401 | 403, "GatedRepo") if token.is_none() => {
                "gated: accept the licence on the model's page, make \
                 an access token, and set HF_TOKEN to it"
                    .to_string()
            }
            (401 | 403, "GatedRepo") => "gated, and the account of your token has no access: accept the \
                 licence on the model's page"
                .to_string(),
            (401, _) if token.is_none() => {
                "no such model on the hub, or one that is private or gated (401); \
                 check the spelling, or accept the licence on the model's page and set HF_TOKEN to an access \
                 token"
                    .to_string()
            }
            (401, _) => {
                "no such model on the hub, or your token is not valid (401); check the spelling, and \
                 HF_TOKEN or the token file"
                    .to_string()
            }
            (403, _) => "your token gives no access (403); accept the licence on the model's page, or set \
                 HF_TOKEN to a token that may read it"
                .to_string(),
            (404, "RevisionNotFound") => {
                format!("the hub has the model, but no revision {}", self.id.revision)
            }
            (404, _) if what.is_none() => {
                "no such model on the hub, and no such folder; check the spelling of owner/name".to_string()
            }
            _ => {
                let what = what.unwrap_or("the listing of its files");
                let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
                format!(
                    "{} answered {code}{reason} to the request for {what}; try again later",
                    self.endpoint()
                )
            }
        };
        Error::hub(self.id, message)
    }
}

fn answered(result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
    let response = result.map_err(|error| Failure::Network(error.to_string()))?;
    let code = response.status().as_u16();
    if response.status().is_success() {
        return Ok(response);
    }
    let reason = response.headers().get("x-error-code").and_then(|reason| reason.to_str().ok());
    Err(Failure::Status { code, reason: reason.unwrap_or_default().into() })
}

/// The authorities in a PEM file.
fn read_roots(path: &Path) -> Result<RootCerts> {
    let location = Location::from(path);
    let pem = location.read()?;
    let certificate = |item| if let Ok(PemItem::Certificate(found)) = item { Some(found) } else { None };
    let certificates: Vec<_> = parse_pem(&pem).filter_map(certificate).collect();
    if certificates.is_empty() {
        return Err(Error::file(&location, "SSL_CERT_FILE names it, and it has no certificate in PEM"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// A path with everything escaped that an address cannot hold as it is.
fn percent_encoded(path: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(escape).collect()
}
