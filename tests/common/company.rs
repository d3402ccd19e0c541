//! Images of a call alone, and in the company of others: their bytes must be the same.

use sdrt::ops::*;

use super::decode;
use super::placed::{Placed, label};

/// Which of `b` images are tried without the others: the first of them, and how many.
fn groups(b: usize) -> Vec<[usize; 2]> {
    let mut groups =
        vec![[0, 1], [b - 1, 1], [0, 2], [b.saturating_sub(3), 2], [1, 3], [0, b / 2], [1, b - 1]];
    groups.retain(|&[start, count]| (1..b).contains(&count) && start + count <= b);
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Runs the call with all images, then some of them at a time, from the same memory. Says where they differ
/// first.
pub fn compare(backend: &mut dyn Backend, template: &Call, seed: u64) -> Result<(), String> {
    let b = template.out().b();
    assert!(b > 1, "{} has one image", label(template));
    let mark = backend.arena().mark();
    let placed = Placed::new(backend, template, seed);
    placed.run(backend);
    let all = placed.output(backend);
    let image = all.len() / b;
    let mut differences = Vec::new();
    let is_possible = |&[start, _]: &[usize; 2]| start == 0 || placed.images_are_aligned();
    for [start, count] in groups(b).into_iter().filter(is_possible) {
        let got = placed.run_images(backend, start, count);
        let want = &all[start * image..][..got.len()];
        if got != want {
            let (got, want) = (decode(&got, template.out().dtype), decode(want, template.out().dtype));
            let place = describe(template.out(), &got, &want);
            differences.push(format!("images {start}..{} of {b}: {place}", start + count));
        }
    }
    backend.arena().release(mark);
    match differences.is_empty() {
        true => Ok(()),
        false => Err(format!("{}\n    {}", label(template), differences.join("\n    "))),
    }
}

/// The first element that differs, and how many do.
fn describe(out: Tensor, got: &[f32], want: &[f32]) -> String {
    let differs = |&i: &usize| got[i].to_bits() != want[i].to_bits();
    let different: Vec<usize> = (0..got.len()).filter(differs).collect();
    let Some(&first) = different.first() else { return "NaNs of other bits".to_string() };
    let (row, column) = (first / out.c(), first % out.c());
    let largest = different.iter().map(|&i| (got[i] - want[i]).abs()).fold(0.0, f32::max);
    format!(
        "{} of {} numbers differ, by {largest:e} at most; first image {} of these, row {}, column {column}: \
         {:?}, in company {:?}",
        different.len(),
        got.len(),
        row / out.tokens(),
        row % out.tokens(),
        got[first],
        want[first],
    )
}

/// Fails with all calls whose images depend on their company.
pub fn compare_all(backend: &mut dyn Backend, calls: &[Call]) {
    assert!(!calls.is_empty());
    let differ: Vec<String> =
        (0..).zip(calls).filter_map(|(number, call)| compare(backend, call, 10_000 * number).err()).collect();
    assert!(
        differ.is_empty(),
        "in company, {} of {} calls give other bytes:\n{}",
        differ.len(),
        calls.len(),
        differ.join("\n")
    );
}
