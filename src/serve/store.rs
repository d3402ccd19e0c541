//! Pictures that were answered as addresses.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::App;
use super::errors::ApiError;

/// How long an address leads to its picture.
const KEPT: Duration = Duration::from_secs(3600);
/// Bytes of all pictures; the oldest make room.
const MOST_BYTES: usize = 256 << 20;

/// Pictures in memory.
#[derive(Default)]
pub struct Store(Mutex<Pictures>);

#[derive(Default)]
struct Pictures {
    /// The oldest first.
    kept: VecDeque<Kept>,
    bytes: usize,
}

struct Kept {
    id: Uuid,
    since: Instant,
    content_type: &'static str,
    picture: Bytes,
}

impl Store {
    /// Keeps a picture under an id that nobody guesses.
    pub fn keep(&self, picture: Vec<u8>, content_type: &'static str) -> Uuid {
        let id = Uuid::new_v4();
        let mut pictures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pictures.bytes += picture.len();
        pictures.kept.push_back(Kept { id, since: Instant::now(), content_type, picture: picture.into() });
        pictures.make_room();
        id
    }

    fn find(&self, id: Uuid) -> Option<(&'static str, Bytes)> {
        let mut pictures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pictures.make_room();
        let kept = pictures.kept.iter().find(|kept| kept.id == id)?;
        Some((kept.content_type, kept.picture.clone()))
    }
}

impl Pictures {
    fn make_room(&mut self) {
        let goes = |pictures: &Pictures, oldest: &Kept| {
            oldest.since.elapsed() > KEPT || (pictures.bytes > MOST_BYTES && pictures.kept.len() > 1)
        };
        while let Some(oldest) = self.kept.front().filter(|oldest| goes(self, oldest)) {
            self.bytes -= oldest.picture.len();
            self.kept.pop_front();
        }
    }
}

/// A picture that was answered as an address, for an hour.
#[utoipa::path(get, path = "/pictures/{id}", tag = "OpenAI", params(
    ("id" = String, Path, description = "As the answer has it")
), responses(
    (status = 200, description = "The picture", body = Vec<u8>, content_type = "image/*"),
    (status = 404, description = "There is none, or no longer", body = super::errors::ErrorBody)
))]
pub async fn picture(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let found = Uuid::try_parse(&id).ok().and_then(|id| app.store.find(id));
    let (content_type, picture) = found.ok_or_else(|| {
        let message = "there is no such picture; pictures are kept for an hour";
        ApiError::refused(StatusCode::NOT_FOUND, "not_found", message)
    })?;
    let private = "private, max-age=3600, immutable";
    Ok(([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, private)], picture).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let store = Store::default();
        let picture = || vec![0; MOST_BYTES / 2];
        let ids = [(); 4].map(|()| store.keep(picture(), "image/png"));
        let there = ids.map(|id| store.find(id).is_some());
        assert_eq!(there, [false, false, true, true]);
        let large = store.keep(vec![0; MOST_BYTES + 1], "image/png");
        assert!(store.find(large).is_some() && store.find(ids[3]).is_none());
        assert!(store.find(Uuid::new_v4()).is_none());
    }
}
