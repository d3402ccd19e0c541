//! The command line as a user meets it: what it prints, what it writes, how it fails.

mod control;
mod emoji;
mod failures;
mod from_picture;
mod lora;
mod measure;
mod parameters;
mod previews;
mod prompts;
mod record;
mod run;

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn root() -> PathBuf {
    std::env::var_os("SDRT_ROOT").map_or(PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

fn tiny() -> String {
    root().join("models/tiny").display().to_string()
}

/// An empty folder to run in.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let binary = std::env::var_os("SDRT_BIN").unwrap_or(env!("CARGO_BIN_EXE_sdrt").into());
        let mut command = Command::new(binary);
        command.args(args).current_dir(self.0.path());
        command
    }

    fn sdrt(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Paints small and fast on the CPU; later flags come on top.
    fn run_flags<'a>(&self, model: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
        let base = ["run", "--model", model, "--device", "cpu", "--prompt", "a lighthouse at dawn"];
        let small = ["--steps", "2", "--width", "64", "--height", "128"];
        [&base[..], &small[..], flags].concat()
    }

    fn paint(&self, flags: &[&str]) -> Output {
        let output = self.sdrt(&self.run_flags(&tiny(), flags));
        assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
        output
    }

    fn rgb(&self, name: &str) -> Vec<u8> {
        Png::read(&self.path(name)).rgb
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}
fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}
fn json_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

struct Png {
    size: (u32, u32),
    rgb: Vec<u8>,
    parameters: String,
}

impl Png {
    fn read(path: &Path) -> Self {
        let file = BufReader::new(fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut rgb).unwrap();
        reader.finish().unwrap();
        assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        let info = reader.info();
        let latin1 = info.uncompressed_latin1_text.iter().map(|chunk| (&chunk.keyword, chunk.text.clone()));
        let utf8 = info.utf8_text.iter().map(|chunk| (&chunk.keyword, chunk.get_text().unwrap()));
        let text: Vec<_> = latin1.chain(utf8).collect();
        assert_eq!((text.len(), text[0].0.as_str()), (1, "parameters"));
        Png { size: (frame.width, frame.height), parameters: text[0].1.clone(), rgb }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
