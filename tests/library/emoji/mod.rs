//! The model that ships with sdrt, on the CPU: its pictures show what their prompts say.
//!
//! What is seen, and how, is told in `look`. That a picture is diffusers' is tested in `tests/library/pictures.rs`,
//! that half precision on a GPU paints it too in `tests/kernels/model.rs`.

mod look;

use std::ops::ControlFlow;
use std::sync::LazyLock;

use look::{COLOURS, Object, Recognizer, corner_colours, mean_difference};
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Picture, Pipeline, Request};

/// An emoji and its background. Training shows neither the fox on brown, nor the rocket on yellow, nor the
/// mushroom on white. Not chosen are emoji that look like others, as most faces do.
const SCENES: [(&str, &str); 12] = [
    ("sunflower", "red"),
    ("penguin", "orange"),
    ("rocket", "yellow"),
    ("pizza", "green"),
    ("watermelon", "blue"),
    ("frog", "purple"),
    ("castle", "pink"),
    ("fox", "brown"),
    ("butterfly", "gray"),
    ("lion", "black"),
    ("mushroom", "white"),
    ("owl", "blue"),
];
/// Emoji side by side, and tinted ones. Training shows neither of the pairs, and no blue apple.
const PAIRS: [(&str, &str); 2] = [("penguin", "sunflower"), ("lion", "watermelon")];
const TINTED: [(&str, &str); 2] = [("blue", "apple"), ("green", "rocket")];

/// Pictures of other prompts or seeds differ by at least this, of 255, in the mean.
const DIFFERENT: f64 = 8.0;
/// What acts changes a picture by at least this, of 255, in the mean; rounding changes it by less than
/// [`ROUNDING`].
const ACTS: f64 = 1.0;
const ROUNDING: f64 = 0.1;

/// One picture of each of [`SCENES`].
static PAINTED: LazyLock<Vec<Picture>> = LazyLock::new(|| {
    let mut painter = Painter::new();
    SCENES.iter().map(|(emoji, colour)| painter.paint(&on(emoji, colour))).collect()
});

struct Painter(Pipeline);

impl Painter {
    fn new() -> Self {
        Painter(crate::common::pipeline("emoji", Cpu::new()))
    }

    fn paint(&mut self, prompt: &str) -> Picture {
        self.paint_with(prompt, |_| {}).remove(0)
    }

    /// Paints with the model's own steps, guidance and size, but for what `change` changes.
    fn paint_with(&mut self, prompt: &str, change: impl FnOnce(&mut Request)) -> Vec<Picture> {
        let mut request = self.0.defaults().expect("defaults");
        request.prompt = prompt.to_string();
        change(&mut request);
        self.0.paint(&request, &mut |_, _| ControlFlow::Continue(())).expect("a picture").pictures
    }
}

fn on(emoji: &str, colour: &str) -> String {
    let article = if colour == "orange" { "an" } else { "a" };
    format!("{emoji} on {article} {colour} background")
}

/// Fails with all that was seen and not asked for.
fn assert_seen(seen: impl IntoIterator<Item = (String, String, String)>) {
    let mut failed = Vec::new();
    for (prompt, want, seen) in seen {
        println!("{prompt}: {seen}");
        if want != seen {
            failed.push(format!("{prompt}: {seen}, not {want}"));
        }
    }
    assert!(failed.is_empty(), "seen instead:\n{}", failed.join("\n"));
}

#[test]
fn corners_have_the_colour_of_the_background() {
    for (colour, _) in COLOURS {
        assert!(SCENES.iter().any(|scene| scene.1 == colour), "no scene is {colour}");
    }
    assert_seen(SCENES.iter().zip(&*PAINTED).map(|(&(emoji, colour), picture)| {
        (on(emoji, colour), [colour; 4].join(" "), corner_colours(picture).join(" "))
    }));
}

#[test]
fn the_object_is_the_one_of_the_prompt() {
    let mut recognizer = Recognizer::new();
    assert_seen(SCENES.iter().zip(&*PAINTED).map(|(&(emoji, colour), picture)| {
        (on(emoji, colour), emoji.to_string(), recognizer.name(&Object::of(picture)))
    }));
}

#[test]
fn the_prompt_changes_the_picture() {
    for (i, (picture, scene)) in PAINTED.iter().zip(SCENES).enumerate() {
        for (other, other_scene) in PAINTED.iter().zip(SCENES).take(i) {
            let difference = mean_difference(picture, other);
            assert!(
                difference >= DIFFERENT,
                "{scene:?} and {other_scene:?} differ by {difference:.1} of 255"
            );
        }
    }
}

#[test]
fn another_seed_is_another_picture() {
    let pictures = Painter::new().paint_with("fox", |request| request.images = 3);
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let differences = pairs.map(|(i, j)| mean_difference(&pictures[i], &pictures[j]));
    let mean = differences.iter().sum::<f64>() / pairs.len() as f64;
    println!("three seeds differ by {differences:.1?} of 255");
    assert!(mean >= DIFFERENT, "three seeds differ by {differences:.1?} of 255");
}

/// Guidance leads away from the negative prompt: where that is the prompt itself, it leads nowhere, and the
/// picture is the one without guidance.
#[test]
fn guidance_and_the_negative_prompt_act() {
    let (mut painter, prompt) = (Painter::new(), on("fox", "purple"));
    let guided = painter.paint(&prompt);
    let unguided = painter.paint_with(&prompt, |request| request.guidance_scale = 1.0).remove(0);
    let away_from = |negative: &str, painter: &mut Painter| {
        painter.paint_with(&prompt, |request| request.negative_prompt = negative.to_string()).remove(0)
    };
    let nowhere = away_from(&prompt, &mut painter);
    let elsewhere = away_from("purple background", &mut painter);
    let differences = [(&guided, &unguided), (&guided, &elsewhere), (&nowhere, &unguided)]
        .map(|(a, b)| mean_difference(a, b));
    println!("without guidance, away from purple, nowhere: {differences:.2?} of 255");
    let [by_guidance, by_negative_prompt, by_rounding] = differences;
    assert!(by_guidance >= ACTS, "guidance changes {by_guidance:.2} of 255");
    assert!(by_negative_prompt >= ACTS, "a negative prompt changes {by_negative_prompt:.2} of 255");
    assert!(by_rounding < ROUNDING, "away from the prompt itself: {by_rounding:.2} of 255");
}

#[test]
fn two_objects_stand_where_the_prompt_says() {
    let (mut painter, mut recognizer) = (Painter::new(), Recognizer::new());
    assert_seen(PAIRS.map(|(left, right)| {
        let prompt = format!("{left} left of {right}");
        let picture = painter.paint(&prompt);
        let names = Object::of(&picture).halves().map(|half| recognizer.name(&half));
        (prompt, [left, right].join(" | "), names.join(" | "))
    }));
}

#[test]
fn a_tinted_object_has_the_colour_of_the_prompt() {
    let mut painter = Painter::new();
    assert_seen(TINTED.map(|(colour, emoji)| {
        let prompt = format!("a {colour} {emoji}");
        let picture = painter.paint(&prompt);
        (prompt, colour.to_string(), Object::of(&picture).colour().to_string())
    }));
}
