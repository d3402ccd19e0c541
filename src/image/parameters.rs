//! The text that A1111 and its relatives keep in pictures.
//!
//! Written as `create_infotext` of A1111's `processing.py`, read as `parse_generation_parameters` of its
//! `infotext_utils.py`:
//!
//! ```text
//! a cat, asleep
//! Negative prompt: dogs
//! Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 5, Size: 512x512, Model: "v1.5, pruned"
//! ```

use std::fmt::{self, Write};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// A prompt and settings by their keys, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    pub prompt: String,
    pub negative_prompt: String,
    pub settings: Vec<(String, String)>,
}

const PROMPT: &str = "Prompt";
const NEGATIVE_PROMPT: &str = "Negative prompt";
/// A last line with fewer settings is a part of the prompt.
const FEWEST_SETTINGS: usize = 3;

/// A setting: key, then a value that is quoted as JSON or ends at a comma.
static SETTING: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)"#).expect("a regular expression")
});

impl Parameters {
    /// Reads any text, as A1111 does, but for values of JSON that is not quoted, which Civitai
    /// (`Civitai resources`) and sd.cpp (`SDCPP`) write, and which A1111 cuts at the first comma.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let (lines, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let mut settings = settings(last);
        let is_prompt = settings.len() < FEWEST_SETTINGS;
        settings.retain(|(_, value)| !is_prompt && !value.is_empty());
        let settings = settings.into_iter().map(|(key, value)| (key.to_string(), unquoted(value))).collect();
        let mut parameters = Parameters { settings, ..Parameters::default() };
        let (mut prompt, mut negative_prompt) = (Vec::new(), None::<Vec<&str>>);
        for line in if is_prompt { text } else { lines }.split('\n').map(str::trim) {
            let negative = line.strip_prefix(NEGATIVE_PROMPT).and_then(|line| line.strip_prefix(':'));
            match (negative, &mut negative_prompt) {
                (Some(line), negative_prompt) => {
                    negative_prompt.get_or_insert_default().push(line.trim());
                }
                (None, Some(negative_prompt)) => negative_prompt.push(line),
                (None, None) => prompt.push(line),
            }
        }
        parameters.prompt = joined(&prompt);
        parameters.negative_prompt = joined(&negative_prompt.unwrap_or_default());
        parameters.take_prompts();
        parameters
    }

    /// The value of a key, the last one if there are several.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.iter().rfind(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Prompts among the settings stand for those in front.
    fn take_prompts(&mut self) {
        for (key, prompt) in [(PROMPT, &mut self.prompt), (NEGATIVE_PROMPT, &mut self.negative_prompt)] {
            if let Some((_, value)) = self.settings.iter().rfind(|(name, _)| name == key) {
                prompt.clone_from(value);
            }
        }
        self.settings.retain(|(name, _)| name != PROMPT && name != NEGATIVE_PROMPT);
    }

    /// The lines in front of the settings.
    fn prompts(&self) -> String {
        let mut text = format!("{}\n", self.prompt);
        if !self.negative_prompt.is_empty() {
            text += &format!("{NEGATIVE_PROMPT}: {}\n", self.negative_prompt);
        }
        text
    }
}

/// The text, from which [`Parameters::parse`] reads the same again where there are three settings or more,
/// with keys of two letters or more and values that are not empty.
impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut line = String::new();
        for (key, value) in &self.settings {
            write!(line, "{key}: {}, ", quoted(value))?;
        }
        let prompts = self.prompts();
        let read = Parameters::parse(&format!("{prompts}{line}"));
        // A prompt that is not what its lines are read as: spaces around it, or a line that looks like the
        // next part. A1111 reads these keys, too.
        for (key, prompt, read) in [
            (PROMPT, &self.prompt, &read.prompt),
            (NEGATIVE_PROMPT, &self.negative_prompt, &read.negative_prompt),
        ] {
            if prompt != read {
                write!(line, "{key}: {}, ", Value::from(prompt.as_str()))?;
            }
        }
        f.write_str(&prompts)?;
        f.write_str(line.trim_end_matches(", "))
    }
}

/// The number of a key such as `ControlNet 0`.
pub(super) fn number_of(key: &str, name: &str) -> Option<usize> {
    key.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()
}

/// A name without what separates lists in values.
pub(super) fn plain(name: &str) -> String {
    name.replace([':', ','], "")
}

/// A1111 puts a line break behind every line but empty ones in front.
fn joined(lines: &[&str]) -> String {
    lines.join("\n").trim_start_matches('\n').to_string()
}

fn quoted(value: &str) -> String {
    let is_json = value.starts_with(['"', '[', '{']) || value != value.trim();
    if is_json || value.contains([',', ':', '\n']) {
        Value::from(value).to_string()
    } else {
        value.to_string()
    }
}

fn unquoted(value: &str) -> String {
    match serde_json::from_str(value) {
        Ok(Value::String(text)) => text,
        _ => value.to_string(),
    }
}

/// Keys and values as they stand there.
fn settings(line: &str) -> Vec<(&str, &str)> {
    let mut settings = Vec::new();
    let mut from = 0;
    while let Some(found) = SETTING.captures_at(line, from) {
        let [whole, key, value] = [0, 1, 2].map(|i| found.get(i).expect("a group that is no option"));
        let json = json_at(&line[value.start()..]);
        from = json.map_or(whole.end(), |json| value.start() + json.len());
        settings.push((key.as_str(), json.unwrap_or(value.as_str())));
    }
    settings
}

/// A list or an object at the beginning of a text, if it is all that stands before a comma or the end.
fn json_at(text: &str) -> Option<&str> {
    if !text.starts_with(['[', '{']) {
        return None;
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    values.next()?.ok()?;
    let (json, rest) = text.split_at(values.byte_offset());
    let rest = rest.trim_start();
    (rest.is_empty() || rest.starts_with(',')).then_some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(prompt: &str, negative_prompt: &str, settings: &[(&str, &str)]) -> Parameters {
        let settings = settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Parameters { prompt: prompt.into(), negative_prompt: negative_prompt.into(), settings }
    }

    const SETTINGS: [(&str, &str); 3] = [("Steps", "20"), ("Sampler", "Euler a"), ("Seed", "5")];
    const LINE: &str = "Steps: 20, Sampler: Euler a, Seed: 5";

    #[test]
    fn texts_are_what_a1111_writes() {
        assert_eq!(parameters("a cat, asleep", "", &SETTINGS).to_string(), format!("a cat, asleep\n{LINE}"));
        assert_eq!(
            parameters("a cat", "dogs", &SETTINGS).to_string(),
            format!("a cat\nNegative prompt: dogs\n{LINE}")
        );
        let odd = parameters("", "", &[("Model", "a, \"b\": c"), ("Two", "x\ny"), ("Plain", "猫 (1)")]);
        assert_eq!(odd.to_string(), "\nModel: \"a, \\\"b\\\": c\", Two: \"x\\ny\", Plain: 猫 (1)");
    }

    #[test]
    fn every_prompt_comes_back() {
        let prompts = [
            "",
            "a cat",
            "two\nlines\n\nand four",
            " spaces around ",
            "\nbreaks around\n",
            "Negative prompt: not yet",
            "a\nNegative prompt: b\nNegative prompt: c",
            "Steps: 1, Sampler: x, Seed: 2",
            "a\nSteps: 1, Sampler: x, Seed: 2",
            "\"quoted\"",
            "back\\slash \"and, quotes\": \\\"",
            "carriage\r\nreturn",
            "\u{0}\u{1f}\u{85}\u{2028}\u{feff}",
        ];
        for prompt in prompts {
            for negative_prompt in prompts {
                let wanted = parameters(prompt, negative_prompt, &SETTINGS);
                let text = wanted.to_string();
                assert_eq!(Parameters::parse(&text), wanted, "{text}");
            }
        }
    }

    #[test]
    fn every_value_comes_back() {
        let values =
            ["a", "a b", "a, b", "a: b", "\"", "\"a\"", "\\", "{", "[1]", "{\"a\": 1}", " a ", "1x1", "\n"];
        for value in values {
            let wanted = parameters("p", "", &[("A1", value), ("Steps", "3"), ("B-c/d e", value)]);
            assert_eq!(Parameters::parse(&wanted.to_string()), wanted, "{wanted}");
        }
    }

    #[test]
    fn a_line_of_few_settings_is_a_part_of_the_prompt() {
        for text in ["a cat", "a cat\nSteps: 20, Seed: 5", "ratio: 1, size: 2"] {
            assert_eq!(Parameters::parse(text), parameters(text, "", &[]));
        }
        let wanted = parameters("a", "b\nSteps: 20, Seed: 5", &[]);
        assert_eq!(Parameters::parse("a\nNegative prompt: b\nSteps: 20, Seed: 5"), wanted);
    }

    #[test]
    fn json_without_quotes_is_one_value() {
        let resources = r#"[{"type":"checkpoint","name":"a, b: c"},{"weight":1}]"#;
        let text =
            format!("p\n{LINE}, Civitai resources: {resources}, Civitai metadata: {{}}, SDCPP: {{\"a\"");
        let read = Parameters::parse(&text);
        assert_eq!(read.get("Civitai resources"), Some(resources));
        assert_eq!(read.get("Civitai metadata"), Some("{}"));
        assert_eq!(read.get("SDCPP"), Some("{\"a\""));
        assert_eq!(read.settings.len(), 6);
    }

    #[test]
    fn of_one_key_the_last_counts_and_none_has_no_value() {
        let read = Parameters::parse(&format!("{LINE}, Seed: 7, Empty: , Other: 1"));
        assert_eq!((read.get("Seed"), read.get("Empty"), read.get("Other")), (Some("7"), None, Some("1")));
        assert_eq!(read.prompt, "");
    }
}
