//! Pictures that ControlNets steer on the CPU against diffusers' (tools/fixtures/controlnets.py), and what the
//! pipeline promises about them.

use crate::common::pictures::{equals_diffusers, paint, request_of};
use crate::common::{fixture, root};
use sdrt::location::Location;
use sdrt::ops::cpu::Cpu;
use sdrt::pipeline::{Control, ModelFiles, Pipeline, Request};

/// The model of a family with ControlNets for it.
fn files(model: &str, controlnets: &[&str]) -> ModelFiles {
    let fixtures = root().join("tests/fixtures");
    let folder = |name: &&str| Location::from(fixtures.join("controlnets").join(name));
    ModelFiles {
        controlnets: controlnets.iter().map(folder).collect(),
        ..Location::from(fixtures.join("families").join(model)).into()
    }
}

fn pipeline(model: &str, controlnets: &[&str]) -> Pipeline {
    Pipeline::load(&files(model, controlnets), Box::new(Cpu::new()), &mut |_, _| {}).expect(model)
}

fn request(model: &str, case: &str) -> Request {
    let cases = fixture("controlnets", model);
    let name = format!("{model}.{case}");
    request_of(cases.iter().find(|case| case.name == name).expect("a case"))
}

#[test]
fn pictures_equal_those_of_diffusers() {
    equals_diffusers(&mut pipeline("sd2", &["sd2"]), "controlnets", "sd2");
}

#[test]
fn pictures_of_xl_with_one_and_two_controlnets_equal_those_of_diffusers() {
    equals_diffusers(&mut pipeline("sdxl", &["sdxl", "sdxl_small"]), "controlnets", "sdxl");
}

#[test]
fn another_strength_or_picture_records_nothing() {
    let mut pipeline = pipeline("sd2", &["sd2"]);
    let first = request("sd2", "plain");
    let painted = paint(&mut pipeline, &first).pictures;
    let recorded = pipeline.backend().recorded();
    let mut other = first.controls[0].clone();
    other.image.rgb.reverse();
    for control in [
        Control { strength: 0.3, ..first.controls[0].clone() },
        Control { start: 0.5, ..first.controls[0].clone() },
        other,
    ] {
        let request = Request { controls: vec![control], ..first.clone() };
        assert!(paint(&mut pipeline, &request).pictures != painted, "{:?}", request.controls);
    }
    assert!(paint(&mut pipeline, &first).pictures == painted);
    assert_eq!(pipeline.backend().recorded(), recorded);
}

#[test]
fn without_strength_or_without_a_picture_the_model_paints_as_ever() {
    let steered = request("sd2", "plain");
    let plain = Request { controls: vec![], ..steered.clone() };
    let painted = paint(&mut pipeline("sd2", &[]), &plain).pictures;
    let mut pipeline = pipeline("sd2", &["sd2"]);
    assert!(paint(&mut pipeline, &plain).pictures == painted);
    let weak = Control { strength: 0.0, ..steered.controls[0].clone() };
    assert!(paint(&mut pipeline, &Request { controls: vec![weak], ..steered.clone() }).pictures == painted);
    assert!(paint(&mut pipeline, &steered).pictures != painted);
}

#[test]
fn what_a_controlnet_reads_is_brought_to_the_size_of_the_picture() {
    let steered = request("sd2", "plain");
    let mut pipeline = pipeline("sd2", &["sd2"]);
    let control = &steered.controls[0];
    let large = Control { image: control.image.resized(96, 64), ..control.clone() };
    let there = Control { image: large.image.resized(steered.width, steered.height), ..control.clone() };
    let [large, there] = [large, there].map(|control| Request { controls: vec![control], ..steered.clone() });
    assert!(paint(&mut pipeline, &large).pictures == paint(&mut pipeline, &there).pictures);
}

#[test]
fn requests_that_cannot_be_steered_are_refused_in_a_sentence() {
    let description = files("sd2", &["sd2"]).describe().unwrap();
    let steered = request("sd2", "plain");
    let control = &steered.controls[0];
    let refused = |controls: Vec<Control>| {
        let request = Request { controls, ..steered.clone() };
        request.check(&description).expect_err("refused").to_string()
    };
    assert_eq!(
        refused(vec![control.clone(); 2]),
        "--control-image: 2 images; expected at most 1, one for each --controlnet"
    );
    let strong = Control { strength: f32::INFINITY, ..control.clone() };
    assert!(refused(vec![strong]).starts_with("--control-strength inf: expected"));
    let backwards = Control { start: 0.5, end: 0.5, ..control.clone() };
    assert!(refused(vec![backwards]).starts_with("--control-start 0.5 and --control-end 0.5: expected"));
}

#[test]
fn a_controlnet_for_another_family_is_refused_with_both_numbers() {
    let refused = |model, net| files(model, &[net]).describe().expect_err("refused").to_string();
    let message = refused("sd2", "sdxl");
    assert!(message.contains("cross_attention_dim is 40, and 32 in the model"), "{message}");
    let message = refused("sdxl", "sd2");
    assert!(message.contains("cross_attention_dim is 32, and 40 in the model"), "{message}");
    let message = files("sd2", &["sd2"; 9]).describe().expect_err("refused").to_string();
    assert_eq!(message, "9 ControlNets: expected at most 8 --controlnet");
}
