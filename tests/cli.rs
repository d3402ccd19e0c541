//! The command line as a user meets it: what it prints, what it writes, how it fails.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

#[test]
fn a_prompt_becomes_a_png_that_says_how_it_was_painted() {
    let place = Place::new();
    let output = place.paint(&["--seed", "0", "--negative-prompt", "fog, rain", "--sampler", "euler_a"]);
    assert_eq!(place.files(), ["sdrt.png"]);
    assert!(stdout(&output).starts_with("sdrt.png (64x128, seed 0)\n"), "{}", stdout(&output));
    for stage in ["load", "text", "denoise", "decode", "save", "image"] {
        assert!(stdout(&output).contains(&format!("\n{stage}  ")), "{stage}: {}", stdout(&output));
    }
    let png = Png::read(&place.path("sdrt.png"));
    assert_eq!(png.size, (64, 128));
    assert!(png.rgb.iter().any(|&x| x != png.rgb[0]), "one colour only");
    let expected = format!(
        "a lighthouse at dawn\nNegative prompt: fog, rain\nSteps: 2, Sampler: Euler a, Schedule type: \
         Automatic, CFG scale: 7.5, Seed: 0, Size: 64x128, Model: tiny, RNG: CPU, Version: sdrt {}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(png.parameters, expected);
}

#[test]
fn text_that_is_not_latin_1_arrives() {
    let place = Place::new();
    place.paint(&["--negative-prompt", "猫 🦀"]);
    let parameters = Png::read(&place.path("sdrt.png")).parameters;
    assert!(parameters.contains("\nNegative prompt: 猫 🦀\n"), "{parameters}");
}

#[test]
fn a_seed_decides_the_bytes() {
    let place = Place::new();
    for (name, seed) in [("a.png", "7"), ("b.png", "7"), ("c.png", "8")] {
        place.paint(&["--seed", seed, "-o", name]);
    }
    let [a, b, c] = ["a.png", "b.png", "c.png"].map(|name| fs::read(place.path(name)).unwrap());
    assert!(a == b, "the same seed painted another picture");
    assert!(a != c, "another seed painted the same picture");
    place.paint(&["--seed", "7", "--rng", "cuda", "-o", "d.png"]);
    assert!(place.rgb("d.png") != place.rgb("a.png"));
}

#[test]
fn without_a_seed_a_random_one_is_told() {
    let place = Place::new();
    let seeds = [(); 2].map(|()| json(&place.paint(&["--json"]))["seeds"][0].as_u64().unwrap());
    assert_ne!(seeds[0], seeds[1]);
    let last = place.rgb("sdrt.png");
    place.paint(&["--seed", &seeds[1].to_string(), "-o", "again.png"]);
    assert!(place.rgb("again.png") == last);
}

#[test]
fn flags_act_on_the_picture() {
    let place = Place::new();
    let flags: &[&[&str]] = &[
        &[],
        &["--negative-prompt", "fog"],
        &["--cfg-scale", "3"],
        &["--guidance-scale", "1"],
        &["--steps", "3"],
        &["--sampler", "dpm++2m-sde"],
        &["--sampler", "dpm++2m", "--schedule", "karras"],
        &["--prompt", "a fox"],
    ];
    let mut pictures = Vec::new();
    for flags in flags {
        // Of a flag that is given twice, clap takes none: the last prompt replaces the first by hand.
        let model = tiny();
        let mut args = place.run_flags(&model, &["--seed", "1"]);
        for pair in flags.chunks(2) {
            match args.iter().position(|arg| *arg == pair[0]) {
                Some(i) => args[i + 1] = pair[1],
                None => args.extend(pair),
            }
        }
        let output = place.sdrt(&args);
        assert_eq!(code(&output), 0, "{flags:?}: {}", stderr(&output));
        pictures.push(place.rgb("sdrt.png"));
    }
    for i in 0..flags.len() {
        for j in 0..i {
            assert!(pictures[i] != pictures[j], "{:?} and {:?} painted the same", flags[i], flags[j]);
        }
    }
}

#[test]
fn several_pictures_are_numbered_and_equal_single_ones() {
    let place = Place::new();
    let output = place.paint(&["--seed", "5", "-b", "3", "-o", "many.png", "--sampler", "euler-a", "--json"]);
    assert_eq!(place.files(), ["many-0.png", "many-1.png", "many-2.png"]);
    let object = json(&output);
    assert_eq!(object["files"], serde_json::json!(["many-0.png", "many-1.png", "many-2.png"]));
    assert_eq!(object["seeds"], serde_json::json!([5, 6, 7]));
    for i in 0..3 {
        place.paint(&["--seed", &(5 + i).to_string(), "-o", "one.png", "--sampler", "euler-a"]);
        let (many, one) =
            (Png::read(&place.path(&format!("many-{i}.png"))), Png::read(&place.path("one.png")));
        assert_eq!(many.parameters, one.parameters);
        // Products of other sizes are summed in another order.
        let difference = many.rgb.iter().zip(&one.rgb).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(difference <= Some(1), "picture {i} differs by {difference:?}");
    }
}

#[test]
fn json_is_one_object_with_everything() {
    let place = Place::new();
    let long = "word ".repeat(100);
    let output = place.paint(&["--json", "-s", "3", "--negative-prompt", &long, "--sampler", "heun"]);
    let object = json(&output);
    assert_eq!(object["steps"], 2);
    assert_eq!(object["evaluations"], 3);
    assert_eq!((&object["width"], &object["height"]), (&64.into(), &128.into()));
    assert_eq!((&object["sampler"], &object["schedule"]), (&"heun".into(), &"model".into()));
    assert_eq!((&object["dtype"], &object["guidance_scale"]), (&"f32".into(), &7.5.into()));
    for stage in ["load", "record", "text", "denoise", "decode", "save", "image"] {
        assert!(object["times_ms"][stage].as_f64().unwrap() >= 0.0, "{stage}");
    }
    let warning = object["warnings"][0].as_str().unwrap();
    assert!(warning.contains("negative prompt") && warning.contains("word"), "{warning}");
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
}

#[test]
fn quiet_says_warnings_only() {
    let place = Place::new();
    let output = place.paint(&["--quiet"]);
    assert_eq!((stdout(&output), stderr(&output)), (String::new(), String::new()));
    let output = place.paint(&["--quiet", "--guidance-scale", "0.5", "--negative-prompt", "fog"]);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("the negative prompt has no effect"), "{}", stderr(&output));
}

#[test]
fn auto_finds_a_device_or_says_why_not() {
    let place = Place::new();
    let args = ["run", "-m", &tiny(), "-p", "", "--steps", "1", "-W", "64", "-H", "64", "--json"];
    let output = place.sdrt(&args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let object = json(&output);
    if object["device"].as_str().unwrap().starts_with("CPU") {
        let notice = object["warnings"][0].as_str().unwrap();
        assert!(notice.starts_with("running on the CPU: "), "{notice}");
    } else {
        assert_eq!(object["warnings"], serde_json::json!([]));
    }
}

#[test]
fn wrong_flags_are_sentences_and_leave_nothing_behind() {
    let place = Place::new();
    let model = tiny();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--width", "100"], 2, "--width 100: expected a multiple of 8; try 104"),
        (&["--height", "0"], 2, "--height 0: expected a multiple of 8; try 8"),
        (&["--width", "8000000"], 2, "too many pixels"),
        (&["--width", "18446744073709551608"], 2, "too many pixels"),
        (&["--width", "-8"], 2, "--width"),
        (&["--num-images", "0"], 2, "--num-images 0: expected at least 1"),
        (&["--num-images", "9999999999"], 2, "too many pixels"),
        (&["--steps", "0"], 2, "--steps 0: must be between 1 and"),
        (&["--steps", "1000000000000"], 2, "must be between 1 and"),
        (&["--steps", "many"], 2, "--steps"),
        (&["--guidance-scale", "nan"], 2, "--guidance-scale NaN: expected a finite number"),
        (&["--guidance-scale", "strong"], 2, "--guidance-scale"),
        (&["--sampler", "magic"], 2, "--sampler magic: no such sampler; there are ddim,"),
        (&["--schedule", "bus"], 2, "--schedule bus: no such schedule; there are model,"),
        (&["--rng", "dice"], 2, "--rng dice: no such generator; there are cpu and cuda"),
        (&["--seed", "-1"], 2, "--seed -1: expected a whole number from 0"),
        (&["--seed", "18446744073709551616"], 2, "expected a whole number from 0"),
        (&["--dtype", "f8"], 2, "--dtype f8: expected f16, bf16 or f32"),
        (&["--dtype", "f16"], 2, "the CPU computes in f32 only"),
        (&["--device", "tpu"], 2, "--device tpu: expected auto, cpu, cuda or cuda:N"),
        (&["--output", "a.jpg"], 2, "--output a.jpg: pictures are written as PNG; try a.png"),
        (&["--output", "there/"], 2, "pictures are written as PNG; try there.png"),
        (&["--output", ""], 2, "a value is required for '--output <FILE>'"),
        (&["--output", "no/such/a.png"], 1, "no/such: no such folder to write to"),
        (&["--output", "/proc/a.png"], 1, "/proc/a.png: cannot be written"),
        (&["--model", "nowhere"], 1, "nowhere: no such model"),
        (&["--model", "/etc/passwd"], 1, "/etc/passwd: not a model"),
        (&["--wings", "2"], 2, "unexpected argument '--wings'"),
    ];
    for (flags, expected, sentence) in cases {
        let mut args = place.run_flags(&model, &[]);
        match args.iter().position(|arg| *arg == flags[0]) {
            Some(i) => args[i + 1] = flags[1],
            None => args.extend(*flags),
        }
        let output = place.sdrt(&args);
        let message = stderr(&output);
        assert_eq!(code(&output), *expected, "{flags:?}: {message}");
        assert!(message.starts_with("error: ") && message.contains(sentence), "{flags:?}: {message}");
        assert!(!message.contains("panicked"), "{flags:?}: {message}");
        assert_eq!(stdout(&output), "", "{flags:?}");
        assert_eq!(place.files(), [""; 0], "{flags:?}");
    }
}

#[test]
fn what_is_missing_is_asked_for() {
    let place = Place::new();
    for (args, sentence) in [
        (
            &["run", "--prompt", "a fox"][..],
            "which model? Pass --model DIR; models/tiny ships with the project",
        ),
        (&["run", "--model", &tiny()], "--prompt <TEXT>"),
        (&["info"], "which model? Pass MODEL"),
        (&["bench"], "which model? Pass --model DIR, or --random-weights sd15"),
        (&[], "Usage: sdrt"),
    ] {
        let output = place.sdrt(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).contains(sentence), "{args:?}: {}", stderr(&output));
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

#[test]
fn a_good_picture_survives_a_run_that_fails() {
    let place = Place::new();
    place.paint(&["-o", "good.png"]);
    let good = fs::read(place.path("good.png")).unwrap();
    copy_folder(&root().join("models/tiny"), &place.path("broken"));
    let weights = place.path("broken/unet/diffusion_pytorch_model.safetensors");
    let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
    file.set_len(fs::metadata(&weights).unwrap().len() - 1).unwrap();

    let output = place.sdrt(&place.run_flags("broken", &["-o", "good.png"]));
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("diffusion_pytorch_model.safetensors: "), "{}", stderr(&output));
    assert!(stderr(&output).contains("cut short"), "{}", stderr(&output));
    assert!(fs::read(place.path("good.png")).unwrap() == good);
    assert_eq!(place.files(), ["broken", "good.png"]);
}

#[test]
fn ctrl_c_cancels_and_writes_nothing() {
    let place = Place::new();
    let model = tiny();
    let mut args = place.run_flags(&model, &["-v"]);
    let steps = args.iter().position(|arg| *arg == "--steps").unwrap();
    args[steps + 1] = "900";
    let mut child = place.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("recorded graphs") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended before it painted");
    }
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("error: cancelled after ") && rest.contains(" of 900 steps"), "{rest}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let place = Place::new();
    let mut child = place
        .command(&["info", &tiny(), "--tensors"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}

#[test]
fn info_counts_without_running() {
    let place = Place::new();
    let output = place.sdrt(&["info", &tiny(), "-W", "64", "-H", "64", "-b", "2"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for words in ["U-Net", "scheduler", "2 pictures of 64x64, U-Net batch 4", "step", "weights, f16"] {
        assert!(stdout(&output).contains(words), "{words}: {}", stdout(&output));
    }
    let one = json(&place.sdrt(&["info", &tiny(), "--json", "--tensors"]));
    let two = json(&place.sdrt(&["info", &tiny(), "--json", "-b", "2", "--dtype", "f32"]));
    let [half, full] = [&one, &two].map(|info| info["weight_bytes"].as_f64().unwrap());
    // Every tensor starts on a boundary of its own.
    assert!((1.9..=2.0).contains(&(full / half)), "{half} and {full}");
    assert_eq!(2 * one["stages"][1]["flops"].as_u64().unwrap(), two["stages"][1]["flops"].as_u64().unwrap());
    let tensors = one["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|t| t["key"] == "conv_in.weight" && t["component"] == "unet"));

    let sd15 = json(&place.sdrt(&["info", "--random-weights", "sd15", "--json"]));
    let parameters = sd15["components"][1]["bytes"].as_u64().unwrap() / 2;
    assert_eq!(parameters, 859_520_964, "parameters of the U-Net of Stable Diffusion 1.5");
}

#[test]
fn bench_measures_every_stage() {
    let place = Place::new();
    let model = tiny();
    let base = ["bench", "--model", &model, "--device", "cpu", "--steps", "2", "-W", "64", "-H", "64"];
    let output = place.sdrt(&[&base[..], &["--images", "1,2", "--json", "rows.jsonl"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let rows = json_lines(&place.path("rows.jsonl"));
    let found: Vec<_> =
        rows.iter().map(|row| (row["stage"].as_str().unwrap(), row["images"].as_u64().unwrap())).collect();
    let stages = ["text_encode", "unet_step", "denoise", "vae_decode", "image"];
    let mut expected = vec![("load", 0)];
    expected.extend([1, 2].into_iter().flat_map(|images| stages.map(|stage| (stage, images))));
    assert_eq!(found, expected);
    for row in &rows {
        let [min, median, max] = ["min_ms", "median_ms", "max_ms"].map(|key| row[key].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{row}");
        assert_eq!(row["unet_batch"].as_u64().unwrap(), 2 * row["images"].as_u64().unwrap());
        assert!(stdout(&output).contains(row["stage"].as_str().unwrap()), "{}", stdout(&output));
    }

    let output = place.sdrt(&[&base[..], &["--against", "rows.jsonl"]].concat());
    assert!(stdout(&output).contains("before ms"), "{}", stdout(&output));
    fs::write(place.path("other.jsonl"), "{}\n").unwrap();
    let output = place.sdrt(&[&base[..], &["--against", "other.jsonl"]].concat());
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("other.jsonl: line 1: "), "{}", stderr(&output));
}

#[test]
fn profile_measures_every_verb() {
    let place = Place::new();
    let model = tiny();
    let base = ["profile", "--model", &model, "--device", "cpu", "-W", "64", "-H", "64"];
    for (stage, verb) in [("encode", "embed"), ("denoise", "sampler_step"), ("decode", "to_rgb8")] {
        let flags = ["--stage", stage, "--repeat", "1", "--json", "entries.jsonl"];
        let output = place.sdrt(&[&base[..], &flags].concat());
        assert_eq!(code(&output), 0, "{stage}: {}", stderr(&output));
        assert!(stdout(&output).contains(verb), "{stage}: {}", stdout(&output));
        let entries = json_lines(&place.path("entries.jsonl"));
        assert!(entries.iter().any(|entry| entry["verb"] == verb && entry["stage"] == stage));
        let totals: Vec<f64> = entries.iter().map(|entry| entry["total_ms"].as_f64().unwrap()).collect();
        assert!(totals.is_sorted_by(|a, b| a >= b) && totals.iter().all(|&ms| ms > 0.0), "{totals:?}");
    }
    let output = place.sdrt(&[&base[..], &["--trace", "2"]].concat());
    assert_eq!((code(&output), stdout(&output)), (0, String::new()), "{}", stderr(&output));
}
