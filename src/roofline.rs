//! The least time that a program can take on a machine: each verb at the machine's own speed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ceiling::Ceiling;
use crate::error::{Error, Result};
use crate::image;
use crate::ops::count::Counted;
use crate::ops::{Backend, Call};

/// The ceiling of the machine: remembered for its card, driver and dtype, or measured now, in about a second.
/// `None` on the CPU, and on a GPU without a gigabyte of free memory.
///
/// With `remeasure` it is measured in any case. The file is `sdrt/ceilings/CARD.json` in the user's cache folder; if it
/// cannot be written, the next program measures again.
///
/// # Errors
/// A device that fails.
pub fn ceiling(backend: &mut dyn Backend, remeasure: bool) -> Result<Option<Ceiling>> {
    let file = backend.card().and_then(|card| file(&card));
    remembered(file.as_deref(), remeasure, || backend.measure_ceiling())
}

fn remembered(
    file: Option<&Path>,
    remeasure: bool,
    measure: impl FnOnce() -> Result<Option<Ceiling>>,
) -> Result<Option<Ceiling>> {
    let earlier = file.filter(|_| !remeasure).and_then(|file| fs::read(file).ok());
    // A damaged file is measured again.
    if let Some(ceiling) = earlier.and_then(|text| serde_json::from_slice(&text).ok()) {
        return Ok(Some(ceiling));
    }
    let measured = match measure() {
        Err(error @ Error::OutOfMemory { .. }) => {
            tracing::warn!("the roofline is not measured: {error}");
            None
        }
        measured => measured?,
    };
    if let (Some(file), Some(ceiling)) = (file, measured)
        && let Err(error) = remember(file, ceiling)
    {
        tracing::warn!("the measured roofline is not remembered: {error}");
    }
    Ok(measured)
}

fn remember(file: &Path, ceiling: Ceiling) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
    image::write(file, serde_json::to_string(&ceiling).expect("two numbers").as_bytes())
}

/// The file that remembers the ceiling of a card. `None` for a user without a cache folder.
fn file(card: &str) -> Option<PathBuf> {
    let name: String = card.chars().map(|c| if c.is_alphanumeric() || c == '.' { c } else { '-' }).collect();
    Some(dirs::cache_dir()?.join("sdrt/ceilings").join(name + ".json"))
}

/// The heading of a table: the machine, and a second line for its ceiling.
pub fn heading(machine: &str, ceiling: Option<Ceiling>) -> String {
    let Some(Ceiling { flops, bytes }) = ceiling else { return machine.to_string() };
    let (flops, bytes) = (flops / 1e12, bytes / 1e9);
    format!(
        "{machine}\nroofline, measured on this card: matrix product {flops:.0} TFLOP/s, copy {bytes:.0} GB/s"
    )
}

/// Milliseconds that one verb takes at least.
pub fn floor_ms(ceiling: &Ceiling, call: &Call) -> f64 {
    ceiling.floor_ms(call.flops() as f64, call.bytes() as f64)
}

/// What a sequence of verbs asks of a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
    /// Sum of [`floor_ms`], where the ceiling is known.
    pub floor_ms: Option<f64>,
}

impl Work {
    pub fn of<'a>(calls: impl IntoIterator<Item = &'a Call>, ceiling: Option<Ceiling>) -> Self {
        let mut work = Work { floor_ms: ceiling.map(|_| 0.0), ..Work::default() };
        for call in calls {
            work.flops += call.flops() as f64;
            work.bytes += call.bytes() as f64;
            work.floor_ms = work.floor_ms.zip(ceiling).map(|(sum, ceiling)| sum + floor_ms(&ceiling, call));
        }
        work
    }

    pub fn counted(calls: &[Counted], ceiling: Option<Ceiling>) -> Self {
        Work::of(calls.iter().map(|counted| &counted.call), ceiling)
    }

    pub fn times(self, n: f64) -> Self {
        Work { flops: n * self.flops, bytes: n * self.bytes, floor_ms: self.floor_ms.map(|ms| n * ms) }
    }

    pub fn plus(self, other: Work) -> Self {
        Work {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
            floor_ms: self.floor_ms.zip(other.floor_ms).map(|(a, b)| a + b),
        }
    }

    /// Cells of a table for work that took `ms`: TFLOP/s, GB/s and the percentage of the roofline.
    pub fn cells(&self, ms: f64) -> [String; 3] {
        let percent = self.floor_ms.map_or("-".to_string(), |floor| format!("{:.0}%", 100.0 * floor / ms));
        [format!("{:.3}", self.flops / ms / 1e9), format!("{:.1}", self.bytes / ms / 1e6), percent]
    }
}

/// Headings of [`Work::cells`].
pub const CELLS: [&str; 3] = ["TFLOP/s", "GB/s", "% of roofline"];

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Ceiling = Ceiling { flops: 1e12, bytes: 1e9 };
    const FAST: Ceiling = Ceiling { flops: 7.5e14, bytes: 4.25e12 };

    fn measure(ceiling: Ceiling) -> impl FnOnce() -> Result<Option<Ceiling>> {
        move || Ok(Some(ceiling))
    }

    #[test]
    fn a_ceiling_is_measured_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sdrt/ceilings/card.json");
        let ceiling = |remeasure, measured| remembered(Some(&file), remeasure, measure(measured)).unwrap();
        assert_eq!(ceiling(false, FAST), Some(FAST));
        assert_eq!(ceiling(false, SLOW), Some(FAST), "remembered to the last bit");
        assert_eq!(ceiling(true, SLOW), Some(SLOW));
        assert_eq!(ceiling(false, FAST), Some(SLOW));
        fs::write(&file, "{\"flops\": 1e12").unwrap();
        assert_eq!(ceiling(false, FAST), Some(FAST), "half a file is measured again");
    }

    #[test]
    fn a_ceiling_that_cannot_be_kept_is_a_ceiling() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("a file");
        fs::write(&taken, "").unwrap();
        for file in [None, Some(taken.join("card.json"))] {
            assert_eq!(remembered(file.as_deref(), false, measure(FAST)).unwrap(), Some(FAST));
        }
        assert_eq!(remembered(None, false, || Ok(None)).unwrap(), None);
        let full = || Err(Error::OutOfMemory { purpose: "matrices".into(), needed: 1 << 30, free: Some(0) });
        assert_eq!(remembered(None, false, full).unwrap(), None);
    }

    #[test]
    fn the_slower_of_product_and_copy_is_the_floor() {
        assert_eq!(FAST.floor_ms(7.5e14, 0.0), 1e3);
        assert_eq!(FAST.floor_ms(1.0, 4.25e9), 1.0);
    }
}
