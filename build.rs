//! Compiles `cuda/*.cu` with nvcc and embeds the result.
//!
//! Each file gives two images in `OUT_DIR`: `<stem>.fatbin`, machine code for every target chip, and
//! `<stem>.ptx.fatbin`, PTX for the chips that come later. A file `*_sm90.cu` uses what Hopper alone has: machine
//! code for sm_90a, no PTX. `kernel_images.rs` lists them as `IMAGES: &[(name, machine code, PTX)]`, empty
//! where there is none, and the targets as `TARGETS`. Without nvcc or targets there is no `cfg(sdrt_cuda)` and no list.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `NVCC` | path of the compiler; empty: build without CUDA |
//! | `SDRT_CUDA_ARCHS` | targets of the kernels, e.g. `90a` or `80,86,ptx`; `all`, also when unset; empty: build without CUDA |
//! | `SDRT_DENY_SPILLS` | `1`: a register spill fails the build |

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::{env, fs, thread};

/// Chips that get machine code.
const CHIPS: [&str; 4] = ["80", "86", "89", "90a"];
/// The target of PTX, which the driver translates for chips without machine code.
const PTX: &str = "ptx";
const FLAGS: [&str; 7] = [
    "-fatbin",
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "-Xptxas=--warn-on-spills",
    // Line tables make machine code several times larger; the driver unpacks it again.
    "--compress-mode=size",
    "--threads=0",
];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(sdrt_cuda)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    for variable in ["NVCC", "CUDA_HOME", "SDRT_CUDA_ARCHS", "SDRT_DENY_SPILLS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let targets = targets();
    if targets.is_empty() {
        return;
    }
    let Some((nvcc, version)) = find_nvcc() else {
        println!("cargo::rerun-if-env-changed=PATH");
        println!("cargo::warning=no nvcc: building without CUDA. To change that: tools/install_nvcc.sh");
        return;
    };

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let machine_code: Vec<String> =
        targets.iter().filter(|target| **target != PTX).map(|chip| machine_code(chip)).collect();
    let ptx_only = vec!["-gencode=arch=compute_80,code=compute_80".to_string()];
    let deny_spills = env::var("SDRT_DENY_SPILLS").is_ok_and(|value| value == "1");
    if let Err(complaint) = compile_nothing(&out, &ptx_only, &nvcc, &version) {
        let why = complaint.lines().next().unwrap_or_default();
        let advice = "It takes nvcc 12.8 or later and a C++ compiler (Debian and Ubuntu: apt install g++)";
        // Where spills are denied, the kernels are what is to be checked.
        let level = if deny_spills { "error" } else { "warning" };
        // A file that is not there: cargo asks again at the next build, when the compiler may have come.
        println!("cargo::rerun-if-changed={}", out.join("nothing.fatbin").display());
        println!("cargo::{level}=nvcc does not work here: {why}; building without CUDA. {advice}");
        return;
    }
    let mut jobs = Vec::new();
    let mut list = format!("pub static TARGETS: &str = {:?};\n", targets.join(", "));
    list += "pub static IMAGES: &[(&str, &[u8], &[u8])] = &[\n";
    for source in kernel_files() {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The Rust expression for an image, which becomes a job if it has targets.
        let mut image = |extension: &str, targets: Vec<String>| {
            if targets.is_empty() {
                return "&[]".to_string();
            }
            let image = out.join(&stem).with_extension(extension);
            let bytes = format!("include_bytes!({image:?})");
            jobs.push(Job { source: source.clone(), targets, image });
            bytes
        };
        let (machine_code, ptx) = if stem.ends_with("_sm90") {
            let hopper = machine_code.iter().filter(|target| target.ends_with("sm_90a")).cloned().collect();
            (image("fatbin", hopper), "&[]".to_string())
        } else {
            let ptx = if targets.contains(&PTX) { ptx_only.clone() } else { Vec::new() };
            (image("fatbin", machine_code.clone()), image("ptx.fatbin", ptx))
        };
        if machine_code != "&[]" || ptx != "&[]" {
            list += &format!("    ({stem:?}, {machine_code}, {ptx}),\n");
        }
    }
    list += "];\n";
    fs::write(out.join("kernel_images.rs"), list).expect("OUT_DIR is writable");

    let outcomes = run_all(&jobs, &nvcc, &version);
    for (job, outcome) in jobs.iter().zip(&outcomes) {
        for remark in outcome.iter().flat_map(|remarks| remarks.lines()) {
            let level = if deny_spills && remark.contains("spilled") { "error" } else { "warning" };
            println!("cargo::{level}={}: {remark}", job.source.display());
        }
    }
    // Both images of a file fail alike: nvcc's complaints, each once.
    let failures: BTreeSet<&String> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    for line in failures.iter().flat_map(|failure| failure.lines()) {
        println!("cargo::error={line}");
    }
    println!("cargo::rustc-cfg=sdrt_cuda");
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}

/// The compiler and what it says of its version.
fn find_nvcc() -> Option<(PathBuf, String)> {
    let version = |nvcc: &Path| {
        let output = Command::new(nvcc).arg("--version").output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if let Some(nvcc) = env::var_os("NVCC").map(PathBuf::from) {
        if nvcc.as_os_str().is_empty() {
            return None;
        }
        let Some(version) = version(&nvcc) else {
            fail(&format!("NVCC={}: not a compiler that runs here; correct or unset NVCC", nvcc.display()));
        };
        return Some((nvcc, version));
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let cuda_home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = cuda_home.into_iter().chain(env::split_paths(&path));
    folders
        .chain([root.join(".cuda/bin"), PathBuf::from("/usr/local/cuda/bin")])
        .map(|folder| folder.join("nvcc"))
        .find_map(|nvcc| version(&nvcc).map(|version| (nvcc, version)))
}

/// Compiles an empty file: fails where nvcc lacks something, whatever the kernels are.
fn compile_nothing(out: &Path, targets: &[String], nvcc: &Path, version: &str) -> Result<String, String> {
    let source = out.join("nothing.cu");
    fs::write(&source, "").expect("OUT_DIR is writable");
    let image = out.join("nothing.fatbin");
    Job { source, targets: targets.to_vec(), image }.run(nvcc, version)
}

fn kernel_files() -> Vec<PathBuf> {
    let Ok(folder) = fs::read_dir("cuda") else { return Vec::new() };
    let files = folder.filter_map(|entry| Some(entry.ok()?.path()));
    let files: BTreeSet<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    files.into_iter().collect()
}

/// The targets of `SDRT_CUDA_ARCHS`.
fn targets() -> Vec<&'static str> {
    let all = CHIPS.into_iter().chain([PTX]);
    let wanted = env::var("SDRT_CUDA_ARCHS").unwrap_or("all".into());
    match wanted.trim() {
        "" => return Vec::new(),
        "all" => return all.collect(),
        _ => {}
    }
    let target = |name: &str| {
        all.clone().find(|target| *target == name.trim()).unwrap_or_else(|| {
            let targets = all.clone().collect::<Vec<_>>().join(",");
            fail(&format!("SDRT_CUDA_ARCHS={wanted}: {name:?} is no target; choose from {targets}, or all"))
        })
    };
    wanted.split(',').map(target).collect::<BTreeSet<_>>().into_iter().collect()
}

/// nvcc's flag for a chip. sm_80, sm_86 and sm_89 share one pass of the front end over compute_80; `__CUDA_ARCH__`
/// is 800 there.
fn machine_code(chip: &str) -> String {
    let front = if chip == "90a" { "90a" } else { "80" };
    format!("-gencode=arch=compute_{front},code=sm_{chip}")
}

struct Job {
    source: PathBuf,
    targets: Vec<String>,
    image: PathBuf,
}

/// What nvcc remarks on each image, or why there is none.
fn run_all(jobs: &[Job], nvcc: &Path, version: &str) -> Vec<Result<String, String>> {
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get()).min(jobs.len());
    let queue = Mutex::new(jobs.iter().enumerate());
    let outcomes = Mutex::new(vec![Err(String::new()); jobs.len()]);
    let next = || queue.lock().expect("no worker panics").next();
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((index, job)) = next() {
                    let outcome = job.run(nvcc, version);
                    outcomes.lock().expect("no worker panics")[index] = outcome;
                }
            });
        }
    });
    outcomes.into_inner().expect("no worker panics")
}

impl Job {
    /// Compiles, unless the image is there and was made from the same text by the same command. Its log
    /// stands beside it: this command's hash, then the remarks, so that they are repeated each time.
    fn run(&self, nvcc: &Path, version: &str) -> Result<String, String> {
        let mut hasher = DefaultHasher::new();
        (nvcc, version, FLAGS, &self.targets).hash(&mut hasher);
        hash_source(&self.source, &mut hasher, &mut BTreeSet::new());
        let hash = format!("{:016x}", hasher.finish());
        let log = self.image.with_extension("log");
        let earlier = fs::read_to_string(&log).unwrap_or_default();
        match earlier.split_once('\n') {
            Some((made_from, remarks)) if made_from == hash && self.image.exists() => {
                return Ok(remarks.to_string());
            }
            _ => {}
        }
        // An image that is cut short by an interruption must not pass for what the earlier log tells of.
        let _ = fs::remove_file(&log);

        let mut command = Command::new(nvcc);
        command.args(FLAGS).args(&self.targets).arg(&self.source).arg("-o").arg(&self.image);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => return Err(format!("{} does not start: {error}", nvcc.display())),
        };
        let remarks = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(remarks.into_owned());
        }
        fs::write(log, format!("{hash}\n{remarks}")).expect("OUT_DIR is writable");
        Ok(remarks.into_owned())
    }
}

/// Hashes a file and all that it includes with `#include "..."`.
fn hash_source(path: &Path, hasher: &mut DefaultHasher, seen: &mut BTreeSet<PathBuf>) {
    // nvcc is the one to complain of a header that is not there.
    let Ok(text) = fs::read_to_string(path) else { return };
    if !seen.insert(path.to_path_buf()) {
        return;
    }
    text.hash(hasher);
    for line in text.lines() {
        let included = line.trim_start().strip_prefix("#include").and_then(|rest| rest.split('"').nth(1));
        if let Some(included) = included {
            hash_source(&path.with_file_name(included), hasher, seen);
        }
    }
}
