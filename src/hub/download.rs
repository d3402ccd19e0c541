//! Files of a repository into the cache: what is there already counts, and what arrives is checked.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::{self, Cache, cannot_write};
use super::client::{ATTEMPTS, Client, Failure, Listed};
use super::id::Id;
use crate::columns::bytes;
use crate::error::{Error, Result};
use crate::sha256;

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;
const PARTIAL_CONTENT: u16 = 206;

pub struct Downloads<'a> {
    pub id: &'a Id,
    pub cache: &'a Cache,
    pub client: &'a Client<'a>,
    pub commit: &'a str,
}

impl Downloads<'_> {
    /// Bytes of a file that are on disk.
    pub fn present(&self, file: &Listed) -> u64 {
        let length = |path: PathBuf| fs::metadata(path).map(|metadata| metadata.len()).ok();
        let whole = length(self.cache.blob(&file.etag)).map(|_| file.size);
        let part = || length(self.cache.incomplete(&file.etag)).filter(|&length| length <= file.size);
        whole.or_else(part).unwrap_or(0)
    }

    /// Whether the disk has room for so many bytes more.
    pub fn check_room(&self, needed: u64) -> Result<()> {
        let blobs = self.cache.blob("");
        fs::create_dir_all(&blobs).map_err(|error| cannot_write(&blobs, error))?;
        match fs4::available_space(&blobs) {
            Ok(free) if free < needed => Err(self.no_room(needed, &blobs)),
            // A file system that does not say how much it has.
            _ => Ok(()),
        }
    }

    /// Makes a file part of the commit's snapshot. `on_length` is told how much of it there is.
    pub fn fetch(&self, name: &str, file: &Listed, on_length: &mut dyn FnMut(u64)) -> Result<()> {
        let blob = self.cache.blob(&file.etag);
        if !blob.is_file() {
            let _lock = self.cache.lock(&file.etag, name)?;
            // Another process may have been here in the meantime.
            if !blob.is_file() {
                self.receive_all(name, file, &blob, on_length)?;
            }
        }
        self.cache.link(self.commit, name, &file.etag)
    }

    fn receive_all(
        &self,
        name: &str,
        file: &Listed,
        blob: &Path,
        on_length: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let path = self.cache.incomplete(&file.etag);
        let mut partial = Partial::open(&path, file).map_err(|error| cannot_write(&path, error))?;
        let mut failures = 0;
        while partial.length < file.size {
            let before = partial.length;
            let received = self.receive(name, file, &mut partial, on_length);
            failures = if partial.length > before { 0 } else { failures + 1 };
            match received {
                Err(failure) if !failure.is_passing() || failures == ATTEMPTS => {
                    return Err(self.client.explain(failure, Some(name)));
                }
                Err(failure) => {
                    tracing::debug!(
                        "{name}: stopped at {} of {} bytes: {failure:?}",
                        partial.length,
                        file.size
                    );
                    self.client.pause(failures);
                }
                Ok(()) => {}
            }
        }
        let found = partial.sha256();
        if file.sha256.as_ref().is_some_and(|expected| !expected.eq_ignore_ascii_case(&found)) {
            // Nobody could go on from it.
            let _ = fs::remove_file(&path);
            let message = format!("{name} has other bytes than the hub lists (sha256 {found}); try again");
            return Err(Error::hub(self.id, message));
        }
        fs::rename(&path, blob).map_err(|error| cannot_write(blob, error))
    }

    /// What one request brings, appended.
    fn receive(
        &self,
        name: &str,
        file: &Listed,
        partial: &mut Partial,
        on_length: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let write_failed = |error: io::Error, length| {
            Failure::Final(match error.kind() {
                io::ErrorKind::StorageFull => self.no_room(file.size - length, &self.cache.blob("")),
                _ => cannot_write(&self.cache.incomplete(&file.etag), error),
            })
        };
        let asked = self.client.open(self.commit, name, partial.length);
        if matches!(asked, Err(Failure::Status { code: 416, .. })) {
            partial.clear().map_err(|error| write_failed(error, 0))?;
        }
        let mut response = asked?;
        if response.status() == PARTIAL_CONTENT {
            let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
            if range.is_none_or(|range| !range.starts_with(&format!("bytes {}-", partial.length))) {
                let message = format!("{name} came from another byte than {}: {range:?}", partial.length);
                return Err(Failure::Final(Error::hub(self.id, message)));
            }
        } else if partial.length > 0 {
            // A server without ranges begins again.
            partial.clear().map_err(|error| write_failed(error, 0))?;
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            on_length(partial.length);
            let count = body.read(&mut buffer).map_err(|error| Failure::Network(error.to_string()))?;
            if count == 0 && partial.length < file.size {
                return Err(Failure::Network("the connection was closed".into()));
            }
            if count == 0 {
                return Ok(());
            }
            if partial.length + count as u64 > file.size {
                partial.clear().map_err(|error| write_failed(error, 0))?;
                let message =
                    format!("{name} is longer than the {} bytes that the hub lists; try again", file.size);
                return Err(Failure::Final(Error::hub(self.id, message)));
            }
            partial.append(&buffer[..count]).map_err(|error| write_failed(error, partial.length))?;
        }
    }

    fn no_room(&self, needed: u64, folder: &Path) -> Error {
        let free = fs4::available_space(folder).map_or("too little".into(), |free| bytes(free as usize));
        let message = format!(
            "needs {} more on the disk of {}, which has {free} free; make room, or set HF_HOME to a folder on \
             another disk",
            bytes(needed as usize),
            folder.display()
        );
        Error::hub(self.id, message)
    }
}

/// The beginning of a file.
struct Partial {
    file: File,
    length: u64,
    hash: Sha256,
}

impl Partial {
    /// What an earlier download left, if it can be the beginning of `expected`.
    fn open(path: &Path, expected: &Listed) -> io::Result<Self> {
        cache::create_parent(path)?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut partial = Partial { file, length: 0, hash: Sha256::new() };
        if partial.file.metadata()?.len() > expected.size {
            partial.clear()?;
        }
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = partial.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(partial);
            }
            partial.hash.update(&buffer[..count]);
            partial.length += count as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    fn sha256(&self) -> String {
        sha256::digits(self.hash.clone())
    }
}
