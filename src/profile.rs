//! How long each verb of a model takes.
//!
//! A verb is recorded many times over into one graph, and the graph's replay is timed: so launches and
//! the host's clock cost next to nothing, and operands that fit the cache are in the cache.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::bench::{median, write_lines};
use crate::ceiling::Ceiling;
use crate::columns::columns;
use crate::error::Result;
use crate::ops::{Accumulate, Backend, Call, SamplerStep};
use crate::pipeline::{Pipeline, Request, Stage};
use crate::roofline::{CELLS, Work};

/// All calls of one verb with one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    pub stage: &'static str,
    pub verb: &'static str,
    pub shape: String,
    /// The scope of the first of them.
    pub first: String,
    pub calls: usize,
    /// One call.
    pub median_ms: f64,
    pub total_ms: f64,
    #[serde(skip)]
    pub work: Work,
}

/// Times one call of each verb and shape of a stage; those that take most time in all come first. `ceiling`: the
/// machine's, where it is known.
pub fn profile(
    pipeline: &mut Pipeline,
    request: &Request,
    stage: Stage,
    repeats: usize,
    ceiling: Option<Ceiling>,
) -> Result<Vec<Entry>> {
    // Speed depends on the numbers too (power, and with it the clock), so they should be a picture's.
    pipeline.paint(request, &mut |_, _| ControlFlow::Continue(()))?;
    let calls = pipeline.trace(request, stage)?.calls;

    let mut groups: Vec<(String, Vec<(String, Call)>)> = Vec::new();
    for counted in calls {
        let shape = counted.call.shape() + &epilogue(&counted.call);
        let found = groups
            .iter_mut()
            .find(|(other, calls)| *other == shape && calls[0].1.name() == counted.call.name());
        match found {
            Some((_, calls)) => calls.push((counted.path, counted.call)),
            None => groups.push((shape, vec![(counted.path, counted.call)])),
        }
    }
    let mut entries = Vec::new();
    for (call_shape, calls) in groups {
        let (first, call) = calls[0].clone();
        let median_ms = time(pipeline.backend(), call, repeats)?;
        if adds_to_itself(&call) {
            // After a thousand times its numbers are no longer a picture's, perhaps not finite.
            pipeline.trace(request, stage)?;
        }
        entries.push(Entry {
            stage: stage.name(),
            verb: call.name(),
            shape: call_shape,
            first,
            calls: calls.len(),
            median_ms,
            total_ms: median_ms * calls.len() as f64,
            work: Work::of(calls.iter().map(|(_, call)| call), ceiling),
        });
    }
    entries.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
    Ok(entries)
}

/// Whether the output is an input as well.
fn adds_to_itself(call: &Call) -> bool {
    let residual = match call {
        Call::Conv2d(v) => v.residual,
        Call::Linear(v) => v.residual,
        Call::Accumulate(Accumulate { x, .. }) | Call::SamplerStep(SamplerStep { x, .. }) => Some(*x),
        _ => None,
    };
    residual.is_some_and(|residual| residual.address == call.out().address)
}

/// What a call does besides its verb, where that is a matter of choice.
fn epilogue(call: &Call) -> String {
    let (residual, row, function) = match call {
        Call::Conv2d(v) => (v.residual.is_some(), v.row.is_some(), None),
        Call::Linear(v) => {
            (v.residual.is_some(), false, v.activation.map(|a| format!("{a:?}").to_lowercase()))
        }
        Call::GroupNorm(v) => (false, false, v.silu.then(|| "silu".to_string())),
        _ => (false, false, None),
    };
    let mut text = String::new();
    for (is_there, name) in [(residual, " +residual"), (row, " +row")] {
        if is_there {
            text += name;
        }
    }
    text + &function.map(|name| format!(" {name}")).unwrap_or_default()
}

/// Milliseconds of one call: the median of `repeats` replays.
fn time(backend: &mut dyn Backend, call: Call, repeats: usize) -> Result<f64> {
    /// Long enough that the host's part of a replay, some 20 us, does not show.
    const REPLAY_MS: f64 = 4.0;
    const MOST_CALLS: f64 = 500.0;
    let mut replayed = |calls: usize, repeats: usize| -> Result<f64> {
        let graph = backend.record(&mut |ops| (0..calls).for_each(|_| ops.issue(call)))?;
        let mut ms = Vec::new();
        for _ in 0..repeats {
            let start = Instant::now();
            backend.replay(&graph)?;
            ms.push(1e3 * start.elapsed().as_secs_f64() / calls as f64);
        }
        ms.sort_by(f64::total_cmp);
        Ok(median(&ms))
    };
    let rough = replayed(1, 2)?;
    replayed((REPLAY_MS / rough).clamp(1.0, MOST_CALLS) as usize, repeats)
}

/// The entries for a terminal, with their sum.
pub fn table(entries: &[Entry]) -> String {
    let heading = ["verb", "shape", "calls", "us each", "ms", "%"].into_iter().chain(CELLS);
    let mut lines: Vec<Vec<String>> = vec![heading.map(String::from).collect()];
    let total: f64 = entries.iter().map(|entry| entry.total_ms).sum();
    let share = |ms: f64| format!("{:.1}", 100.0 * ms / total);
    for entry in entries {
        let mut line = vec![entry.verb.to_string(), entry.shape.clone(), entry.calls.to_string()];
        line.push(format!("{:.1}", 1e3 * entry.median_ms));
        line.push(format!("{:.3}", entry.total_ms));
        line.push(share(entry.total_ms));
        line.extend(entry.work.cells(entry.total_ms));
        lines.push(line);
    }
    let calls: usize = entries.iter().map(|entry| entry.calls).sum();
    let work = entries.iter().map(|entry| entry.work).reduce(Work::plus).unwrap_or_default();
    let mut sum =
        ["all", "", &calls.to_string(), "", &format!("{total:.3}"), &share(total)].map(String::from).to_vec();
    sum.extend(work.cells(total));
    lines.push(sum);
    columns(&lines, 2)
}

/// Writes entries as lines of JSON.
pub fn write(path: &Path, entries: &[Entry]) -> Result<()> {
    write_lines(path, entries)
}
