//! JSON files of a model folder, read with errors that name the file, the key and its value.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::location::Location;

/// A JSON object and the file that it came from.
///
/// A key with the value `null` counts as absent, as in diffusers' configurations.
pub struct Object {
    pub file: Location,
    pub map: Map<String, Value>,
    /// What stands before a key in errors: `_sdrt.` for an object under that key.
    parent: String,
}

impl Object {
    pub fn read(file: &Location) -> Result<Self> {
        let text = file.read_text()?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(Object { file: file.clone(), map, parent: String::new() }),
            Ok(_) => Err(Error::file(file, "expected a JSON object, {\"key\": value, ...}")),
            Err(error) => Err(Error::file(file, format!("not valid JSON: {error}"))),
        }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The error for a value that cannot be used; `expected` completes the sentence "key is value; ...".
    pub fn refuse(&self, key: &str, expected: impl std::fmt::Display) -> Error {
        let value = self.map.get(key).unwrap_or(&Value::Null);
        let mut value = value.to_string();
        if value.chars().count() > 160 {
            value = value.chars().take(160).chain("...".chars()).collect();
        }
        Error::file(&self.file, format!("{}{key} is {value}; {expected}", self.parent))
    }

    /// The object under a key.
    pub fn object(&self, key: &str) -> Result<Option<Object>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(map) = value.as_object() else { return Err(self.refuse(key, "expected an object")) };
        let parent = format!("{}{key}.", self.parent);
        Ok(Some(Object { file: self.file.clone(), map: map.clone(), parent }))
    }

    /// A whole number within `range`.
    pub fn count(&self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        as_count(value, &range).ok_or_else(|| {
            self.refuse(key, format!("expected a whole number from {} to {}", range.start(), range.end()))
        })
    }

    /// Whole numbers, one for each of `levels`; a single one is meant for all.
    pub fn counts(
        &self,
        key: &str,
        default: usize,
        levels: usize,
        range: RangeInclusive<usize>,
    ) -> Result<Vec<usize>> {
        let values = match self.get(key) {
            None => return Ok(vec![default; levels]),
            Some(Value::Array(list)) => list.iter().map(|value| as_count(value, &range)).collect(),
            Some(value) => as_count(value, &range).map(|count| vec![count; levels]),
        };
        values.filter(|values: &Vec<usize>| values.len() == levels).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.refuse(
                key,
                format!(
                    "expected a whole number from {low} to {high}, or {levels} of them, one for each level"
                ),
            )
        })
    }

    pub fn float(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.refuse(key, "expected a number"))
    }

    /// A number above zero.
    pub fn positive(&self, key: &str, default: f64) -> Result<f32> {
        let value = self.float(key, default)? as f32;
        if value > 0.0 && value.is_finite() {
            Ok(value)
        } else {
            Err(self.refuse(key, "expected a number above 0"))
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.refuse(key, "expected true or false"))
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.refuse(key, "expected a string"))
    }

    /// A list of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.map(Some).ok_or_else(|| self.refuse(key, "expected a list of strings"))
    }
}

fn as_count(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    let count = usize::try_from(value.as_u64()?).ok()?;
    range.contains(&count).then_some(count)
}
