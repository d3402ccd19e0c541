//! A weight of the model with the changes of a set of LoRAs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::change::Change;
use super::{Lora, MatchedChange};
use crate::error::Result;
use crate::ops::{Backend, DType, FillRows, Tensor};
use crate::weights::plan::{Packing, Request};
use crate::weights::{Source, fill_requests, pack};

/// What a set of LoRAs changes: by request, in the order in which the changes are made.
#[derive(Default)]
pub struct Changes {
    of_requests: BTreeMap<usize, Vec<(Arc<Lora>, MatchedChange)>>,
}

impl Changes {
    /// Adds what a LoRA changes. `weight` says how strong it is in a component.
    pub fn add(
        &mut self,
        lora: &Arc<Lora>,
        changes: &[MatchedChange],
        requests: &[Request],
        weight: impl Fn(&str) -> f32,
    ) {
        for change in changes {
            let request = change.place.request;
            let scale = change.scale * weight(requests[request].component);
            if scale != 0.0 {
                let change = MatchedChange { scale, ..change.clone() };
                self.of_requests.entry(request).or_default().push((lora.clone(), change));
            }
        }
    }

    /// The requests whose weights are changed, in order.
    pub fn requests(&self) -> impl Iterator<Item = usize> {
        self.of_requests.keys().copied()
    }
}

/// Fills the weights of `requests` at `indices` from `source` with the changes made to them.
pub fn fill_merged(
    backend: &mut dyn Backend,
    source: &dyn Source,
    requests: &[Request],
    indices: &[usize],
    changes: &Changes,
) -> Result<()> {
    /// What is merged before it is filled in: enough for all cores, which one weight of a coarse level is not.
    const ELEMENTS_AT_ONCE: usize = 16 << 20;
    let is_changed = |index: &usize| changes.of_requests.contains_key(index);
    let (changed, restored): (Vec<usize>, Vec<usize>) = indices.iter().partition(|index| is_changed(index));
    fill_requests(backend, source, restored.iter().map(|&index| &requests[index]))?;
    let elements =
        |index: usize| requests[index].keys.len() * requests[index].shape.iter().product::<usize>();
    let mut merged = Vec::new();
    let mut rest = &changed[..];
    while !rest.is_empty() {
        let mut total = 0;
        let fits = |&&index: &&usize| {
            total += elements(index);
            total <= ELEMENTS_AT_ONCE
        };
        let (group, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = later;
        merged.resize(merged.len().max(group.iter().map(|&index| elements(index)).sum()), 0.0);

        let mut keys = Vec::new();
        let mut free = &mut merged[..];
        for &index in group {
            for key in 0..requests[index].keys.len() {
                let (weight, after) = free.split_at_mut(elements(index) / requests[index].keys.len());
                keys.push((index, key, weight));
                free = after;
            }
        }
        keys.into_par_iter().for_each(|(index, key, weight)| {
            let of_key = changes.of_requests[&index].iter().filter(|(_, change)| change.place.key == key);
            let changes: Vec<Change> = of_key
                .map(|(lora, MatchedChange { form, scale, magnitude, .. })| {
                    Change::read(&lora.file, form, *scale, magnitude.as_ref())
                })
                .collect();
            merge(source, &requests[index], key, &changes, weight);
        });

        let mut rest = &merged[..];
        let fills: Vec<_> = group
            .iter()
            .map(|&index| {
                let (weights, after) = rest.split_at(elements(index));
                rest = after;
                let request = &requests[index];
                let len = weights.len() / request.keys.len();
                move |rows: Range<usize>, out: &mut [u8]| {
                    pack::pack(request, rows, out, &|key, elements, dtype, out| {
                        let stored = bytemuck::cast_slice(&weights[key * len..][elements]);
                        pack::convert(DType::F32, stored, request.factor, dtype, out);
                    });
                }
            })
            .collect();
        let fills: Vec<(Tensor, FillRows)> = group
            .iter()
            .zip(&fills)
            .map(|(&index, fill)| (requests[index].tensor, fill as FillRows))
            .collect();
        backend.fill(&fills)?;
    }
    Ok(())
}

/// Writes the changed tensor of one key, as the source has it, to `weight`.
fn merge(source: &dyn Source, request: &Request, key: usize, changes: &[Change], weight: &mut [f32]) {
    /// Elements of one task: a share of the caches. It depends on nothing else, so that gemm adds up in the same
    /// order on every machine.
    const TASK: usize = 1 << 16;
    let columns: usize = request.shape[1..].iter().product();
    let as_stored = Request {
        keys: vec![request.keys[key].clone()],
        packing: Packing::Rows,
        factor: 1.0,
        tensor: Tensor::new(0, [1, 1, weight.len() / columns, columns], DType::F32),
        ..request.clone()
    };
    let rows = (TASK / columns).max(1);
    let mut pass = |is_first: bool, changes: &[Change]| {
        weight.par_chunks_mut(rows * columns).enumerate().for_each(|(task, out)| {
            let first = task * rows;
            if is_first {
                let rows = first..first + out.len() / columns;
                source.fill(&as_stored, rows, bytemuck::cast_slice_mut(out));
            }
            changes.iter().for_each(|change| change.change_rows(first, columns, out));
        });
        if let Some(last) = changes.last() {
            last.scale_columns(weight, columns);
        }
    };
    // A change that scales columns ends a pass over the rows.
    let mut passes = changes.split_inclusive(Change::scales_columns);
    pass(true, passes.next().unwrap_or_default());
    passes.for_each(|changes| pass(false, changes));
}
