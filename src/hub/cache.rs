//! The cache that Python's huggingface_hub keeps, of one repository:
//!
//! ```text
//! models--owner--name/refs/main                     the commit that a branch or tag stood for
//! models--owner--name/blobs/<etag>                  bytes; <etag>.incomplete while they arrive
//! models--owner--name/snapshots/<commit>/<path>     links to blobs
//! .locks/models--owner--name/<etag>.lock            held while a blob is written
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{CacheRepo, Repo, RepoType};

use super::id::Id;
use super::select;
use crate::error::{Error, Result};
use crate::json::Object;
use crate::location::Location;

/// Hexadecimal digits of a commit.
const COMMIT_DIGITS: usize = 40;

pub struct Cache {
    root: PathBuf,
    folder_name: String,
    layout: CacheRepo,
    revision: String,
}

/// What the cache has of a model.
pub enum Cached {
    /// All of it.
    Model(Location),
    /// The only checkpoint that was fetched from the repository, which may have others.
    Checkpoint(Location),
}

pub fn repo(id: &Id) -> Repo {
    Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision.clone())
}

/// Whether a name that came from elsewhere is one of a commit, and so of a folder.
pub fn is_commit(name: &str) -> bool {
    name.len() == COMMIT_DIGITS && is_hexadecimal(name)
}

pub fn is_hexadecimal(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Cache {
    pub fn new(root: &Path, id: &Id) -> Self {
        let repo = repo(id);
        Cache {
            root: root.into(),
            folder_name: repo.folder_name(),
            layout: hf_hub::Cache::new(root.into()).repo(repo),
            revision: id.revision.clone(),
        }
    }

    /// The model, as far as it is there.
    pub fn find(&self, id: &Id) -> Option<Cached> {
        let snapshot = self.layout.pointer_path(&self.commit()?);
        if let Some(file) = &id.file {
            let file = snapshot.join(file);
            return file.is_file().then(|| Cached::Model(file.into()));
        }
        let names = names(&snapshot).ok()?;
        let read = |name: &str| Object::read(&snapshot.join(name).into());
        // Configurations and vocabularies are fetched before weights: if these are there, so are those.
        let selection = match select::component(&names) {
            Some(component) => component,
            None if names.contains(select::MODEL_INDEX) => {
                select::select(&read(select::MODEL_INDEX).ok()?, &names).ok()?
            }
            None => {
                let file = select::checkpoint(&id.repository, &names).ok()?;
                return Some(Cached::Checkpoint(snapshot.join(file).into()));
            }
        };
        for index in &selection.indices {
            let shards = select::shards(&read(index).ok()?, index).ok()?;
            if !shards.iter().all(|shard| names.contains(shard)) {
                return None;
            }
        }
        Some(Cached::Model(snapshot.into()))
    }

    fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let commit = fs::read_to_string(self.root.join(&self.folder_name).join("refs").join(&self.revision));
        commit.ok().map(|commit| commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Where the bytes of a blob gather.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Waits while another process, in whatever language, writes the blob. The lock ends with the value.
    pub fn lock(&self, etag: &str, name: &str) -> Result<File> {
        let path = self.root.join(".locks").join(&self.folder_name).join(format!("{etag}.lock"));
        let open = || {
            create_parent(&path)?;
            File::options().create(true).truncate(false).write(true).open(&path)
        };
        let file = open().map_err(|error| cannot_write(&path, error))?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                tracing::warn!("{name}: another process is downloading it; waiting for that");
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match locked {
            // A file system without locks; Python's client goes on there too.
            Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(cannot_write(&path, error)),
            _ => Ok(file),
        }
    }

    /// Makes a blob a file of a commit.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let snapshot = self.snapshot(commit).join(name);
        if snapshot.exists() {
            return Ok(());
        }
        let up = "../".repeat(2 + name.matches('/').count());
        let link = || {
            create_parent(&snapshot)?;
            match symlink(&self.blob(etag), &Path::new(&up).join("blobs").join(etag), &snapshot) {
                // By another process; or a link that dangled until the blob came.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        };
        link().map_err(|error| cannot_write(&snapshot, error))
    }

    /// Notes which commit the revision stands for, once all of it is there.
    pub fn note(&self, commit: &str) -> Result<()> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        let refs = self.root.join(&self.folder_name).join("refs");
        self.layout.create_ref(commit).map_err(|error| cannot_write(&refs, error))
    }
}

#[cfg(unix)]
fn symlink(_: &Path, relative: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

/// Links need a privilege on Windows; without it the blob itself moves, as with Python's client.
#[cfg(windows)]
fn symlink(blob: &Path, relative: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(relative, link).or_else(|_| fs::rename(blob, link))
}

pub fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

pub fn cannot_write(path: &Path, error: io::Error) -> Error {
    Error::file(
        path,
        format!("cannot be written: {error}; HF_HOME or HF_HUB_CACHE names another place for models"),
    )
}

/// The files of a snapshot and of its folders, `/` between the names.
fn names(snapshot: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(snapshot)? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name())
        };
        let name = name.to_string_lossy();
        if path.is_file() {
            names.insert(name.into_owned());
        } else if path.is_dir() {
            for below in fs::read_dir(&path)? {
                let below = below?;
                if below.path().is_file() {
                    names.insert(format!("{name}/{}", below.file_name().to_string_lossy()));
                }
            }
        }
    }
    Ok(names)
}
