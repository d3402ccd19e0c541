//! A hub on loopback: the listing of a model, its files, and what can go wrong with them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::json;
use sha2::{Digest, Sha256};

pub const ID: &str = "someone/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server answers.
#[derive(Clone, Default)]
pub struct Behaviour {
    /// By path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Status and `X-Error-Code` of every answer.
    pub refuses: Option<(u16, &'static str)>,
    /// Answers with a status of 500 before the first other one.
    pub busy: usize,
    /// Closes the connection after so many bytes of this file, each time.
    pub cuts: Option<(String, usize)>,
    /// Has nothing of this file after so many bytes.
    pub stops: Option<(String, usize)>,
    /// Gives the whole file, whatever range is asked for.
    pub no_ranges: bool,
    /// Lists weights with the hash of other bytes.
    pub lies: bool,
    /// Lists weights with this size.
    pub claims: Option<usize>,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    asked: Mutex<Vec<Asked>>,
    stop: AtomicBool,
}

impl Behaviour {
    /// Has the files of a folder.
    pub fn folder(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        add_files(folder, "", &mut files);
        Behaviour { files, ..Behaviour::default() }
    }

    pub fn file(mut self, path: &str, bytes: &[u8]) -> Self {
        self.files.insert(path.into(), bytes.into());
        self
    }
}

fn add_files(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            add_files(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What names a file's blob: the hub has the SHA-256 of large files, and a git hash of others.
pub fn etag(path: &str, bytes: &[u8]) -> String {
    let hash = sha256(bytes);
    if path.ends_with(".safetensors") { hash } else { hash[..40].into() }
}

impl Server {
    pub fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            asked: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if theirs.stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that leaves early is part of the tests.
                let _ = theirs.answer(&stream);
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Server { address, shared, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().unwrap());
    }

    /// The requests since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }

    /// The files that were asked for since the last call, in order, each once.
    pub fn asked_files(&self) -> Vec<String> {
        let prefix = format!("/{ID}/resolve/{COMMIT}/");
        let files =
            self.asked().into_iter().filter_map(|asked| Some(asked.path.strip_prefix(&prefix)?.to_string()));
        let mut files: Vec<String> = files.collect();
        files.dedup();
        files
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread up; the port is closed with it.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let request = lines.next().unwrap_or(Ok(String::new()))?;
        let path = request.split(' ').nth(1).unwrap_or_default().to_string();
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_string());
        }
        let range = headers.remove("range");
        let authorization = headers.remove("authorization");
        self.asked.lock().unwrap().push(Asked { path: path.clone(), range: range.clone(), authorization });

        let mut behaviour = self.behaviour.lock().unwrap();
        if let Some((status, reason)) = behaviour.refuses {
            return send(stream, status, &[("X-Error-Code", reason)], b"");
        }
        if behaviour.busy > 0 {
            behaviour.busy -= 1;
            return send(stream, 500, &[], b"");
        }
        let behaviour = behaviour.clone();
        let revision = path.strip_prefix(&format!("/api/models/{ID}/revision/"));
        if matches!(revision, Some("main?blobs=true" | "refs%2Fpr%2F7?blobs=true")) {
            return send(stream, 200, &[], behaviour.listing().as_bytes());
        }
        // Large files are on another host, as the hub's are in its store.
        if let Some(file) = path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) {
            let Some(bytes) = behaviour.files.get(file) else { return send(stream, 404, &[], b"") };
            let etag = format!("\"{}\"", etag(file, bytes));
            if file.ends_with(".safetensors") {
                let store = format!("http://localhost:{}/store/{file}", stream.local_addr()?.port());
                let headers = [("X-Linked-ETag", &*etag), ("X-Repo-Commit", COMMIT), ("Location", &store)];
                return send(stream, 302, &headers, b"");
            }
            return behaviour.send_file(stream, file, bytes, range.as_deref());
        }
        match path.strip_prefix("/store/").and_then(|file| Some((file, behaviour.files.get(file)?))) {
            Some((file, bytes)) => behaviour.send_file(stream, file, bytes, range.as_deref()),
            None => send(stream, 404, &[("X-Error-Code", "RepoNotFound")], b""),
        }
    }
}

impl Behaviour {
    fn listing(&self) -> String {
        let sibling = |(path, bytes): (&String, &Vec<u8>)| {
            let mut sibling = json!({"rfilename": path, "size": bytes.len(), "blobId": &sha256(bytes)[..40]});
            if path.ends_with(".safetensors") {
                let hash = if self.lies { sha256(b"other") } else { sha256(bytes) };
                sibling["lfs"] =
                    json!({"sha256": hash, "size": self.claims.unwrap_or(bytes.len()), "pointerSize": 134});
            }
            sibling
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        json!({"id": ID, "sha": COMMIT, "siblings": siblings}).to_string()
    }

    fn send_file(
        &self,
        stream: &TcpStream,
        file: &str,
        bytes: &[u8],
        range: Option<&str>,
    ) -> std::io::Result<()> {
        let start = range.filter(|_| !self.no_ranges).map(|range| {
            let start = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
            start.expect("a range to the end").parse::<usize>().unwrap()
        });
        let etag = format!("\"{}\"", etag(file, bytes));
        let range = format!("bytes {}-{}/{}", start.unwrap_or(0), bytes.len().max(1) - 1, bytes.len());
        let body = &bytes[start.unwrap_or(0)..];
        let cut = self.cuts.as_ref().filter(|(cut, _)| cut == file).map(|(_, count)| *count);
        let stop = self.stops.as_ref().filter(|(stop, _)| stop == file);
        let stop = stop.map(|(_, end)| end.saturating_sub(start.unwrap_or(0)));
        let count = cut.or(stop).map_or(body.len(), |count| count.min(body.len()));
        let headers = [("ETag", &*etag), ("X-Repo-Commit", COMMIT), ("Content-Range", &range)];
        let headers = if start.is_some() { &headers[..] } else { &headers[..2] };
        let status = if start.is_some() { 206 } else { 200 };
        send_part(stream, status, headers, body.len(), &body[..count])
    }
}

fn send(stream: &TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
    send_part(stream, status, headers, body.len(), body)
}

fn send_part(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    length: usize,
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)
}
