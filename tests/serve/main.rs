//! `sdrt serve` as its clients meet it: a server of the binary on a free port, with the small model of random weights.

mod a1111;
mod access;
mod device;
mod edits;
mod faults;
#[path = "../common/faulty.rs"]
mod faulty;
mod generations;
mod operation;
mod shutdown;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Response;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    std::env::var_os("SDRT_ROOT").map_or(PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

fn sdrt() -> Command {
    Command::new(std::env::var_os("SDRT_BIN").unwrap_or(env!("CARGO_BIN_EXE_sdrt").into()))
}

fn tiny() -> String {
    root().join("models/tiny").display().to_string()
}

fn fixture(model: &str) -> String {
    root().join("tests/fixtures").join(model).display().to_string()
}

struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        Self::start_with(&tiny(), flags)
    }

    fn start_with(model: &str, flags: &[&str]) -> Self {
        let mut command = sdrt();
        command.args(["serve", "--model", model, "--device", "cpu", "--port", "0"]).args(flags);
        let mut child = command.stderr(Stdio::piped()).env_remove("SDRT_API_KEY").spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "the server did not start");
            if let Some((_, rest)) = line.split_once("ready at http://") {
                break rest.split('/').next().unwrap().to_string();
            }
        };
        let log = Arc::new(Mutex::new(String::new()));
        let of_thread = log.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                of_thread.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Server { child, address, log }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn get(&self, path: &str) -> Answer {
        Answer::of(agent().get(self.url(path)).call().unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        let request = agent().post(self.url(path)).header("content-type", "application/json");
        Answer::of(request.send(body.to_string()).unwrap())
    }

    /// Small and fast; `fields` come on top.
    fn generate(&self, fields: Value) -> Answer {
        self.post("/v1/images/generations", &small(fields))
    }

    /// Texts and files, by their names.
    fn edit(&self, texts: &[(&str, &str)], files: &[(&str, &[u8])]) -> Answer {
        let mut body = Vec::new();
        for (name, text) in texts {
            let head = format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend([head.as_bytes(), text.as_bytes(), b"\r\n"].concat());
        }
        for (name, file) in files {
            let head = format!(
                "--edge\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\n\r\n"
            );
            body.extend([head.as_bytes(), file, b"\r\n"].concat());
        }
        body.extend(b"--edge--\r\n");
        let request = agent().post(self.url("/v1/images/edits"));
        let request = request.header("content-type", "multipart/form-data; boundary=edge");
        Answer::of(request.send(&body[..]).unwrap())
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, is_so: impl Fn(&Server) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", self.log.lock().unwrap());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn terminate(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    fn exit_code(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().expect("an exit code");
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> Agent {
    let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(2 * PATIENCE));
    config.build().new_agent()
}

fn small(fields: Value) -> Value {
    let mut body = json!({ "prompt": "a lighthouse at dawn", "num_inference_steps": 2, "size": "64x64" });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn of(mut response: Response<ureq::Body>) -> Self {
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_string()));
        let (status, headers) = (response.status().as_u16(), headers.collect());
        let mut body = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut body).unwrap();
        Answer { status, headers, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    #[track_caller]
    fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// Events by their names.
    #[track_caller]
    fn events(self) -> Vec<(String, Value)> {
        assert_eq!(
            (self.status, self.header("content-type")),
            (200, Some("text/event-stream")),
            "{}",
            self.text()
        );
        let text = self.text();
        let blocks = text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
        let event = |block: &str| {
            let (name, data) = block.split_once('\n').unwrap();
            let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            (name.strip_prefix("event: ").unwrap().to_string(), data)
        };
        blocks.map(event).collect()
    }

    /// Asserts that this is an error about `param` whose sentence has these words.
    #[track_caller]
    fn refused(&self, status: u16, param: Option<&str>, words: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let error = &self.json()["error"];
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        assert!(error["type"].is_string() && error.get("code").is_some(), "{error}");
    }
}

/// The file in a field of Base64.
#[track_caller]
fn file(base64: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(base64.as_str().unwrap_or_else(|| panic!("{base64}"))).unwrap()
}

struct Png {
    size: (u32, u32),
    rgb: Vec<u8>,
}

impl Png {
    fn read(bytes: &[u8]) -> Self {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut rgb).unwrap();
        Png { size: (frame.width, frame.height), rgb }
    }
}

/// A picture of these colours from left to right, transparent where `alpha` is 0.
fn png_of(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let pixels: Vec<u8> = (0..width * height).flat_map(|i| pixel(i % width, i / width)).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    bytes
}
