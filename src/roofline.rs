//! The least time that a program can take on a machine: each verb at the machine's own speed.

use crate::ops::count::Counted;
use crate::ops::{Call, DType};

/// Speeds that were measured on a machine and that nothing exceeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// Half-precision matrix product, FLOP/s.
    pub flops: f64,
    /// Device memory, bytes/s read and written.
    pub bytes: f64,
}

impl Ceiling {
    /// The ceiling of a machine that [`Backend::describe`](crate::ops::Backend::describe) names, where
    /// one was measured: on an H100 SXM, an 8192^3 product of random f16 numbers and a device copy.
    pub fn of(machine: &str, dtype: DType) -> Option<Self> {
        let measured = machine.contains("H100 80GB HBM3") && dtype != DType::F32;
        measured.then_some(Ceiling { flops: 710e12, bytes: 2.95e12 })
    }

    /// Milliseconds that one verb takes at least.
    pub fn floor_ms(&self, call: &Call) -> f64 {
        1e3 * (call.flops() as f64 / self.flops).max(call.bytes() as f64 / self.bytes)
    }
}

/// What a sequence of verbs asks of a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
    /// Sum of [`Ceiling::floor_ms`], where the ceiling is known.
    pub floor_ms: Option<f64>,
}

impl Work {
    pub fn of<'a>(calls: impl IntoIterator<Item = &'a Call>, ceiling: Option<Ceiling>) -> Self {
        let mut work = Work { floor_ms: ceiling.map(|_| 0.0), ..Work::default() };
        for call in calls {
            work.flops += call.flops() as f64;
            work.bytes += call.bytes() as f64;
            work.floor_ms = work.floor_ms.zip(ceiling).map(|(sum, ceiling)| sum + ceiling.floor_ms(call));
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
