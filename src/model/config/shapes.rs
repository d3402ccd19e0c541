//! Shapes of the tensors of a checkpoint.

use std::collections::BTreeMap;

/// Shapes by canonical key.
pub type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// Most modules in a row; OpenCLIP's bigG has 32.
const MAX_MODULES: usize = 64;

pub(super) fn conv<'a>(shapes: &Shapes<'a>, key: &str) -> Option<&'a [usize; 4]> {
    (*shapes.get(key)?).try_into().ok()
}

pub(super) fn matrix<'a>(shapes: &Shapes<'a>, key: &str) -> Option<&'a [usize; 2]> {
    (*shapes.get(key)?).try_into().ok()
}

/// How many modules there are whose keys are `prefix` and a number, by the largest number. Numbers that no
/// model has count for nothing, and their tensors will be found to be left over.
pub(super) fn count(shapes: &Shapes, prefix: &str) -> usize {
    let keys = shapes.range(prefix..).map(|(key, _)| *key).take_while(|key| key.starts_with(prefix));
    let numbers = keys.filter_map(|key| key[prefix.len()..].split('.').next()?.parse::<usize>().ok());
    numbers.filter(|&number| number < MAX_MODULES).max().map_or(0, |largest| largest + 1)
}
