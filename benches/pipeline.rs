//! The stages of painting, as `sdrt bench` measures them: Stable Diffusion 1.5 with random weights on a
//! GPU, `models/tiny` without one. `cargo bench --bench pipeline -- FILE` also writes lines of JSON.

use std::path::{Path, PathBuf};

use sdrt::bench::{Settings, measure, table, write};
use sdrt::device::Device;
use sdrt::location::Location;
use sdrt::pipeline::{KnownShapes, Model};
use sdrt::roofline;
use sdrt::workload::Workload;

fn main() -> sdrt::Result<()> {
    let has_gpu = Device::Auto.open(None)?.notice.is_none();
    let root = std::env::var_os("SDRT_ROOT").map_or(PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let settings = Settings {
        workload: Workload {
            model: if has_gpu {
                Model::Random { shapes: KnownShapes::Sd15, controlnets: 0 }
            } else {
                Model::Files(Location::from(root.join("models/tiny")).into())
            },
            steps: if has_gpu { 50 } else { 4 },
            guidance_scale: None,
            width: None,
            height: None,
            batch_invariant: false,
        },
        device: Device::Auto,
        dtype: None,
        remeasure: false,
        images: vec![1, 4],
    };
    let rows = measure(&settings, &mut |stage| eprintln!("{stage}"))?;
    print!("{}\n{}", roofline::heading(&rows[0].machine, rows[0].ceiling), table(&rows, &[]));
    // Cargo puts its own `--bench` first.
    match std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        Some(file) => write(Path::new(&file), &rows),
        None => Ok(()),
    }
}
