//! The fields of requests that stand for the flags of `sdrt run`, which the library's sentences name.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Whose fields a request has.
#[derive(Clone, Copy, Debug)]
pub enum Names {
    OpenAi,
    A1111,
}

static FLAG: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("--([a-z][a-z-]*[a-z])").expect("a regular expression"));

impl Names {
    /// The sentence with fields for flags, and the field that it begins with.
    pub fn translate(self, sentence: &str) -> (String, Option<String>) {
        let first = FLAG.captures(sentence).filter(|flag| flag.get(0).is_some_and(|flag| flag.start() == 0));
        let param = first.map(|flag| self.field(&flag[1]));
        let translated = FLAG.replace_all(sentence, |flag: &Captures| match &flag[1] {
            side @ ("width" | "height") => side.to_string(),
            flag => self.field(flag),
        });
        (translated.into_owned(), param)
    }

    fn field(self, flag: &str) -> String {
        let own = match (self, flag) {
            (Names::OpenAi, "steps") => "num_inference_steps",
            (Names::OpenAi, "width" | "height") => "size",
            (Names::OpenAi, "num-images") => "n",
            (Names::OpenAi, "init-image") => "image",
            (Names::A1111, "guidance-scale") => "cfg_scale",
            (Names::A1111, "num-images") => "batch_size",
            (Names::A1111, "init-image") => "init_images",
            (Names::A1111, "strength" | "hires-strength") => "denoising_strength",
            (Names::A1111, "hires-scale") => "hr_scale",
            (Names::A1111, "hires-steps") => "hr_second_pass_steps",
            (Names::A1111, "sampler") => "sampler_name",
            (Names::A1111, "schedule") => "scheduler",
            (Names::A1111, "clip-skip" | "rng") => "override_settings",
            (_, flag) => return flag.replace('-', "_"),
        };
        own.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_name_the_fields_of_the_request() {
        let cases = [
            (
                "--guidance-scale NaN: expected a finite number",
                ("guidance_scale NaN: expected a finite number", Some("guidance_scale")),
                ("cfg_scale NaN: expected a finite number", Some("cfg_scale")),
            ),
            (
                "--width 17: expected a multiple of 8; try 16",
                ("width 17: expected a multiple of 8; try 16", Some("size")),
                ("width 17: expected a multiple of 8; try 16", Some("width")),
            ),
            (
                "too many; lower --num-images, --width or --height",
                ("too many; lower n, width or height", None),
                ("too many; lower batch_size, width or height", None),
            ),
            ("dpm++2m -- no flag --", ("dpm++2m -- no flag --", None), ("dpm++2m -- no flag --", None)),
        ];
        for (sentence, openai, a1111) in cases {
            for (names, (translated, param)) in [(Names::OpenAi, openai), (Names::A1111, a1111)] {
                let wanted = (translated.to_string(), param.map(String::from));
                assert_eq!(names.translate(sentence), wanted);
            }
        }
    }
}
