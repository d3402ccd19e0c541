//! Files that are whole or not there at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file of picture `index` of `count`: `path` itself, or `name-0.png`, `name-1.png`, ...
pub fn numbered(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_path_buf();
    }
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(format!("-{index}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Checks that a file can be written to `path`, and leaves everything as it was.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; name a file in it"));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        return Err(Error::file(
            folder,
            format!("no such folder to write to; try mkdir -p {0:?} first", folder),
        ));
    }
    if is_device(path) {
        return Ok(());
    }
    write_beside(&followed(path), &[])
        .and_then(|beside| remove(&beside))
        .map_err(|error| cannot_write(path, error))
}

/// Writes a file as a whole: a reader, or a crash, never meets half of it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_device(path) {
        return fs::write(path, bytes).map_err(|error| cannot_write(path, error));
    }
    let file = followed(path);
    write_beside(&file, bytes)
        .and_then(|beside| fs::rename(&beside, &file).inspect_err(|_| drop(remove(&beside))))
        .map_err(|error| cannot_write(path, error))
}

/// Whether bytes only pass through, as with `/dev/stdout`: renaming would put a file in its place.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// The file that a link stands for.
fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

fn write_beside(path: &Path, bytes: &[u8]) -> std::io::Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    fs::write(&beside, bytes).inspect_err(|_| drop(remove(&beside)))?;
    Ok(beside)
}

fn remove(path: &Path) -> std::io::Result<()> {
    fs::remove_file(path)
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::file(path, format!("cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pictures_keep_their_extension() {
        let names = |path: &str, count| numbered(Path::new(path), 1, count).display().to_string();
        assert_eq!(names("a/b.png", 1), "a/b.png");
        assert_eq!(names("a/b.png", 2), "a/b-1.png");
        assert_eq!(names("b.c.JPG", 2), "b.c-1.JPG");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["a.png", "b.png"].map(|name| folder.path().join(name));
        write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        check_writable(&link).unwrap();
        write(&link, b"new").unwrap();
        assert!(link.is_symlink() && fs::read(&file).unwrap() == b"new");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        write(&path, b"old").unwrap();
        assert!(write(&path.join("b.png"), b"new").is_err());
        let onto_folder = folder.path().join("c.png");
        fs::create_dir(&onto_folder).unwrap();
        assert!(write(&onto_folder, b"new").is_err());
        let message = check_writable(&onto_folder).unwrap_err().to_string();
        assert!(message.contains("c.png: is a folder"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
