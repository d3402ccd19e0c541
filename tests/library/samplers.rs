//! Sampler tables against the schedulers of diffusers, and formulas of k-diffusion that it does not have
//! (`tools/fixtures/samplers.py`), over whole trajectories of recorded model outputs.

use std::path::PathBuf;

use safetensors::SafeTensors;
use sdrt::ops::row::{NEXT, REMEMBER, REMEMBERED, ROW_WIDTH, SAVE};
use sdrt::sampler::{
    ALIGNED_SD, ALIGNED_XL, NoiseLevels, Sampler, Sampling, Schedule, SchedulerConfig, Table,
};
use serde_json::{Value, json};

const CHANNELS: usize = 2;

/// Largest difference allowed anywhere in a trajectory, relative to the largest latent of the step
/// (at least 1).
const TOLERANCE: f32 = 1e-5;

/// diffusers computes in f32, so where a trajectory comes down from latents as large as sigma (up to
/// 4096), their last two bits are noise in all later latents: a difference of that size counts as
/// [`TOLERANCE`].
const LAST_BITS: f32 = 1.0 / (1 << 22) as f32;

/// Largest difference of a timestep.
const TIMESTEP: f64 = 1e-4;
/// The same for the midpoints of dpm2, whose noise level diffusers already has from logarithms in f32 when it
/// looks the timestep up by another: near ln 14.6, two of its last bits are this much.
const MIDPOINT: f64 = 1.5e-4;

fn config(adds: &Value) -> SchedulerConfig {
    let mut config = json!({
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "trained_betas": null,
        "skip_prk_steps": true,
        "set_alpha_to_one": false,
        "steps_offset": 1,
        "clip_sample": false,
    });
    for (key, value) in adds.as_object().unwrap() {
        config[key] = value.clone();
    }
    SchedulerConfig::parse(&config.to_string()).unwrap()
}

fn table(sampler: Sampler, adds: Value, schedule: Schedule, steps: usize) -> sdrt::Result<Table> {
    Table::new(&config(&adds), &Sampling::new(sampler, schedule, steps))
}

type Latents = [f32; CHANNELS];

/// `SamplerStep` on packed rows. What was never written is NaN, and must never be read.
struct State {
    x: Latents,
    saved: Latents,
    history: [Latents; 4],
}

impl State {
    fn new(x: Latents) -> Self {
        let unwritten = [f32::NAN; CHANNELS];
        State { x, saved: unwritten, history: [unwritten; 4] }
    }

    fn step(&mut self, row: &[f32; ROW_WIDTH], e: Latents, noise: Latents) {
        let [h0, h1, h2, h3] = self.history;
        let basis = [self.x, e, self.saved, noise, h0, h1, h2, h3];
        let combine = |coefficients: &[f32]| -> Latents {
            let terms = || coefficients.iter().zip(&basis).filter(|(c, _)| **c != 0.0);
            std::array::from_fn(|i| terms().map(|(c, tensor)| c * tensor[i]).sum())
        };
        if row[REMEMBER] == 1.0 {
            self.history = [combine(&row[REMEMBERED]), h0, h1, h2];
        }
        (self.x, self.saved) = (combine(&row[NEXT]), combine(&row[SAVE]));
    }
}

/// Compares latents with recorded ones, step by step.
#[derive(Default)]
struct Comparison {
    largest_latent: f32,
    worst: f32,
}

impl Comparison {
    fn add(&mut self, ours: &Latents, recorded: &Latents) {
        let size = recorded.iter().fold(0f32, |size, v| size.max(v.abs()));
        self.largest_latent = self.largest_latent.max(size);
        let unit = size.max(1.0).max(self.largest_latent * LAST_BITS / TOLERANCE);
        for (a, b) in ours.iter().zip(recorded) {
            assert!(a.is_finite(), "{ours:?}");
            self.worst = self.worst.max((a - b).abs() / unit);
        }
    }
}

fn fixture(sampler: Sampler) -> PathBuf {
    let file = format!("{}.safetensors", sampler.name().replace('+', "p"));
    crate::common::root().join("tests/fixtures/samplers").join(file)
}

/// Replays every case of a sampler; returns how many there are and the largest difference.
fn replay(sampler: Sampler) -> (usize, f32) {
    replay_file(fixture(sampler), Some(sampler))
}

/// Replays every case of a file, whose cases say the sampler unless it is given.
fn replay_file(file: PathBuf, all: Option<Sampler>) -> (usize, f32) {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let about: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["about"]).unwrap();
    let cases = about["cases"].as_array().unwrap();
    let mut worst = 0f32;
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let sampler = all.unwrap_or_else(|| case["sampler"].as_str().unwrap().parse().unwrap());
        let schedule: Schedule = case["schedule"].as_str().unwrap().parse().unwrap();
        let steps = case["steps"].as_u64().unwrap() as usize;
        let levels = |levels: &Value| {
            NoiseLevels::new(levels.as_array().unwrap().iter().map(|level| level.as_f64().unwrap()).collect())
        };
        let sampling = Sampling {
            eta: case["eta"].as_f64(),
            sigmas: case.get("sigmas").map(|sigmas| levels(sigmas).unwrap()),
            aligned: if case["xl"] == true { ALIGNED_XL } else { ALIGNED_SD },
            ..Sampling::new(sampler, schedule, steps)
        };
        let config = match case.get("config") {
            Some(config) => SchedulerConfig::parse(&config.to_string()).unwrap(),
            None => config(&case["adds"]),
        };
        let table = Table::new(&config, &sampling).unwrap();
        let view = file.tensor(name).unwrap();
        let floats: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let mut recorded = floats.chunks_exact(1 + 4 * CHANNELS);
        let part = |row: &[f32], i: usize| -> Latents {
            row[1 + i * CHANNELS..1 + (i + 1) * CHANNELS].try_into().unwrap()
        };

        let start = recorded.next().unwrap();
        let sigma = table.init_noise_sigma as f32;
        let mut state = State::new(part(start, 0).map(|noise| noise * sigma));
        let mut latents = Comparison::default();
        let mut before = part(start, 3);
        latents.add(&state.x, &before);
        assert_eq!(table.evaluations(), recorded.len(), "{sampler} {name}: evaluations");
        for (i, ((row, packed), recorded)) in table.rows.iter().zip(table.packed()).zip(recorded).enumerate()
        {
            let at = format!("{sampler} {name}, evaluation {i}");
            let off = (row.timestep - f64::from(recorded[0])).abs();
            let is_midpoint = matches!(sampler, Sampler::Dpm2 | Sampler::Dpm2Ancestral) && i % 2 == 1;
            let most = if is_midpoint { MIDPOINT } else { TIMESTEP };
            assert!(off <= most, "{at}: {} {}", row.timestep, recorded[0]);
            let mut input = Comparison::default();
            input.add(&before.map(|x| x * packed[0]), &part(recorded, 0));
            before = part(recorded, 3);
            let noise = part(recorded, 2);
            // Noise that diffusers draws and multiplies by zero only ever comes last.
            let last = i + 1 == table.evaluations();
            assert!(last || row.draws_noise() == (noise != [0.0; CHANNELS]), "{at}: noise");
            state.step(&packed, part(recorded, 1), noise);
            latents.add(&state.x, &part(recorded, 3));
            worst = worst.max(input.worst);
        }
        if latents.worst > TOLERANCE {
            println!("{sampler} {name}: {:.1e}", latents.worst);
        }
        worst = worst.max(latents.worst);
    }
    (cases.len(), worst)
}

#[test]
fn trajectories_equal_those_of_diffusers() {
    let mut failed = Vec::new();
    for sampler in Sampler::ALL {
        let (cases, worst) = replay(sampler);
        println!("{sampler:12} {cases:3} trajectories, largest difference {worst:.1e}");
        if worst > TOLERANCE {
            failed.push(sampler);
        }
    }
    assert!(failed.is_empty(), "{failed:?} differ by more than {TOLERANCE:e}");
}

/// Fixtures of `tools/fixtures/noise_models.py`.
#[test]
fn trajectories_over_other_noise_equal_those_of_diffusers() {
    for name in ["edm", "flow"] {
        let file = format!("tests/fixtures/noise_models/{name}.safetensors");
        let (cases, worst) = replay_file(crate::common::root().join(file), None);
        println!("{name:12} {cases:3} trajectories, largest difference {worst:.1e}");
        assert!(worst <= TOLERANCE, "{name}: {worst:e}");
    }
}

/// Model, its scheduler's name, the sampler that it suggests.
fn other_noise() -> [(SchedulerConfig, Sampler); 3] {
    let flow = r#"{ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0 }"#;
    [
        (SchedulerConfig::playground(), Sampler::DpmPp2m),
        (SchedulerConfig::cosxl(0.002, 120.0), Sampler::Euler),
        (SchedulerConfig::parse(flow).unwrap(), Sampler::Euler),
    ]
}

#[test]
fn other_noise_has_its_own_samplers() {
    let [playground, cosxl, flow] = other_noise();
    for (config, suggested) in [&playground, &cosxl, &flow] {
        assert_eq!(config.default_sampler().unwrap(), *suggested);
    }
    for sampler in Sampler::ALL {
        let table = |config| Table::new(config, &Sampling::new(sampler, Schedule::Model, 4));
        let by_timesteps =
            matches!(sampler, Sampler::Ddim | Sampler::Pndm | Sampler::Lcm | Sampler::Tcd | Sampler::Ddpm);
        for (config, is_possible) in
            [(&playground.0, !by_timesteps), (&cosxl.0, !by_timesteps), (&flow.0, sampler == Sampler::Euler)]
        {
            match table(config) {
                Ok(_) => assert!(is_possible, "{sampler}"),
                Err(error) => {
                    let message = error.to_string();
                    assert!(!is_possible, "{message}");
                    assert!(message.contains(&format!("--sampler {sampler}: not defined")), "{message}");
                    assert!(message.contains("try --sampler euler"), "{message}");
                }
            }
        }
    }
    let table = |config, schedule| Table::new(config, &Sampling::new(Sampler::Euler, schedule, 4));
    for schedule in [Schedule::Trailing, Schedule::SgmUniform, Schedule::Ays] {
        let message = table(&playground.0, schedule).unwrap_err().to_string();
        assert!(message.contains("leave --schedule out, or take karras"), "{message}");
    }
    for schedule in [Schedule::Exponential, Schedule::Beta, Schedule::Karras] {
        table(&cosxl.0, schedule).unwrap();
    }
    let message = table(&flow.0, Schedule::Karras).unwrap_err().to_string();
    assert!(message.contains("--schedule karras") && message.contains("rectified flow"), "{message}");
}

/// Without its first steps, a table goes on where the image has as much noise as there.
#[test]
fn other_noise_starts_from_an_image() {
    for (config, signal, noise) in [
        (SchedulerConfig::playground(), 1.0, 80.0),
        (SchedulerConfig::cosxl(0.002, 120.0), 1.0, 120.0),
        (other_noise()[2].0.clone(), 0.0, 1.0),
    ] {
        let sampling = |start| Sampling { start, ..Sampling::new(Sampler::Euler, Schedule::Model, 5) };
        let [all, rest] = [0, 2].map(|start| Table::new(&config, &sampling(start)).unwrap());
        assert_eq!(rest.rows, all.rows[2..]);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-4 * b.max(1.0);
        assert!(near(all.start().signal, signal) && near(all.start().noise, noise), "{:?}", all.start());
        let scale = all.init_noise_sigma;
        assert!(near(scale, if signal == 1.0 { (noise * noise + 1.0).sqrt() } else { 1.0 }), "{scale}");
    }
    // ln(80)/4, and the level two of four steps down from it: ((80^(1/7) + 0.002^(1/7))/2)^7.
    let playground = Sampling::new(Sampler::DpmPp2m, Schedule::Model, 5);
    let table = Table::new(&SchedulerConfig::playground(), &playground).unwrap();
    assert_near(&[table.rows[0].timestep], &[1.0955066]);
    assert_near(
        &[table.rows[2].mix.noise],
        &[((80f64.powf(1.0 / 7.0) + 0.002f64.powf(1.0 / 7.0)) / 2.0).powi(7)],
    );
}

/// The clean sample that a row predicts is what a step to no noise ends at.
#[test]
fn the_last_row_of_other_noise_ends_at_its_prediction() {
    for (config, _) in other_noise() {
        let table = Table::new(&config, &Sampling::new(Sampler::Euler, Schedule::Model, 4)).unwrap();
        let row = table.rows.last().unwrap();
        for (next, predicted) in row.next.0.iter().zip(row.predicted.0) {
            assert!((next - predicted).abs() < 1e-6, "{:?} and {:?}", row.next, row.predicted);
        }
    }
}

/// What every row predicts is EDM's preconditioning, `c_skip·x + c_out·e`, at the noise of its latents; previews show it.
#[test]
fn rows_of_edm_predict_by_its_preconditioning() {
    for (config, data, sign) in
        [(SchedulerConfig::playground(), 0.5, 1.0), (SchedulerConfig::cosxl(0.002, 120.0), 1.0, -1.0)]
    {
        for sampler in [Sampler::Euler, Sampler::DpmPp2m, Sampler::Lms, Sampler::UniPc, Sampler::Deis] {
            let table = Table::new(&config, &Sampling::new(sampler, Schedule::Model, 8)).unwrap();
            for row in &table.rows {
                let sigma = row.mix.noise;
                let variance = sigma * sigma + data * data;
                let [of_x, of_e, ..] = row.predicted.0;
                assert_near(&[row.mix.signal, row.in_scale * variance.sqrt()], &[1.0, 1.0]);
                assert_near(&[of_x, of_e], &[data * data / variance, sign * sigma * data / variance.sqrt()]);
                assert_near(&[row.timestep], &[0.25 * sigma.ln()]);
            }
        }
    }
}

#[test]
fn what_other_noise_cannot_be_is_named() {
    for (json, named) in [
        (json!({ "_class_name": "EDMEulerScheduler", "sigma_min": 3.0, "sigma_max": 2.0 }), "sigma_max"),
        (json!({ "_class_name": "EDMEulerScheduler", "sigma_data": 0.0 }), "sigma_data is 0"),
        (json!({ "_class_name": "EDMEulerScheduler", "rho": -1.0 }), "rho is -1"),
        (json!({ "_class_name": "EDMEulerScheduler", "sigma_schedule": "cosine" }), "sigma_schedule"),
        (json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0.0 }), "shift is 0"),
        (
            json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true }),
            "use_dynamic_shifting",
        ),
        (
            json!({ "_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous",
                    "prediction_type": "v_prediction" }),
            "timestep_type continuous",
        ),
        (
            json!({ "_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous",
                    "prediction_type": "v_prediction", "use_karras_sigmas": true, "sigma_min": 0.1 }),
            "sigma_min and sigma_max",
        ),
        (json!({ "_class_name": "EulerDiscreteScheduler" }), "beta_start"),
    ] {
        let config = SchedulerConfig::parse(&json.to_string()).unwrap();
        let table = Table::new(&config, &Sampling::new(Sampler::Euler, Schedule::Model, 4));
        let message = table.unwrap_err().to_string();
        assert!(message.contains(named), "{json}: {message}");
    }
}

fn timesteps(sampler: Sampler, schedule: Schedule, steps: usize) -> Vec<f32> {
    table(sampler, json!({}), schedule, steps).unwrap().timesteps()
}

/// The noise levels at which the model is evaluated, from the scales of its input.
fn sigmas(table: &Table) -> Vec<f64> {
    table.rows.iter().map(|row| (1.0 / (row.in_scale * row.in_scale) - 1.0).sqrt()).collect()
}

#[track_caller]
fn assert_near(ours: &[f64], expected: &[f64]) {
    assert_eq!(ours.len(), expected.len());
    for (a, b) in ours.iter().zip(expected) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{ours:?} {expected:?}");
    }
}

#[test]
fn timesteps_of_stable_diffusion() {
    use Sampler::*;
    use Schedule::*;
    let every =
        |start: usize, step: usize| -> Vec<f32> { (0..20).map(|i| (start - i * step) as f32).collect() };
    assert_eq!(timesteps(Ddim, Model, 20), every(951, 50));
    assert_eq!(timesteps(Euler, Leading, 20), every(951, 50));
    assert_eq!(timesteps(Euler, Trailing, 20), every(999, 50));
    assert_eq!(timesteps(Euler, Trailing, 4), [999.0, 749.0, 499.0, 249.0]);
    assert_eq!(timesteps(Euler, Linspace, 20)[..3], [999.0, 946.4211, 893.8421]);
    assert_eq!(timesteps(DpmPp2m, Leading, 20), every(941, 47));
    assert_eq!(timesteps(UniPc, Leading, 20), timesteps(DpmPp2m, Leading, 20));
    assert_eq!(timesteps(DpmPp2m, Linspace, 20)[..3], [999.0, 949.0, 899.0]);
    let karras = [
        999.0, 962.0, 921.0, 876.0, 827.0, 772.0, 710.0, 640.0, 561.0, 474.0, 380.0, 285.0, 197.0, 123.0,
        69.0, 35.0, 15.0, 6.0, 2.0, 0.0,
    ];
    assert_eq!(timesteps(DpmPp2m, Karras, 20), karras);
    assert_eq!(timesteps(Heun, Leading, 4), [751.0, 501.0, 501.0, 251.0, 251.0, 1.0, 1.0]);
    assert_eq!(timesteps(Lcm, Model, 1), [999.0]);
    assert_eq!(timesteps(Lcm, Model, 4), [999.0, 759.0, 499.0, 259.0]);
    let pndm = timesteps(Pndm, Model, 50);
    assert_eq!((pndm.len(), &pndm[..4], pndm[50]), (51, &[981.0, 961.0, 961.0, 941.0][..], 1.0));
}

#[test]
fn noise_levels_of_stable_diffusion() {
    let euler = |schedule, steps| table(Sampler::Euler, json!({}), schedule, steps).unwrap();
    let leading = euler(Schedule::Leading, 20);
    assert_near(&sigmas(&leading)[..2], &[11.028335, 8.390687]);
    assert_near(&sigmas(&leading)[18..], &[0.228147, 0.041314]);
    assert_near(&[leading.init_noise_sigma], &[11.073580]);
    let linspace = euler(Schedule::Linspace, 20);
    assert_near(&sigmas(&linspace)[..3], &[14.614645, 10.746849, 8.081535]);
    assert_near(&[linspace.init_noise_sigma], &[14.614645]);
    assert_near(&sigmas(&euler(Schedule::Trailing, 4)), &[14.614645, 4.081731, 1.612887, 0.693205]);
    assert_near(&sigmas(&euler(Schedule::Trailing, 1)), &[14.614645]);
    assert_eq!(table(Sampler::DpmPp2m, json!({}), Schedule::Karras, 20).unwrap().init_noise_sigma, 1.0);
}

#[test]
fn evaluations_by_steps() {
    for (sampler, steps, evaluations) in [
        (Sampler::Pndm, 1, 1),
        (Sampler::Pndm, 2, 3),
        (Sampler::Pndm, 50, 51),
        (Sampler::Heun, 1, 1),
        (Sampler::Heun, 20, 39),
        (Sampler::Dpm2, 1, 1),
        (Sampler::Dpm2Ancestral, 20, 39),
        (Sampler::DpmPp2sAncestral, 20, 39),
        (Sampler::Euler, 20, 20),
        (Sampler::UniPc, 20, 20),
        // numpy's arange has 62 values here, the last of them a timestep of -1.
        (Sampler::Ddim, 61, 61),
    ] {
        let table = table(sampler, json!({}), Schedule::Trailing, steps).unwrap();
        assert_eq!(table.evaluations(), evaluations, "{sampler} {steps}");
        assert_eq!(table.pack().len(), evaluations * ROW_WIDTH);
    }
}

#[test]
fn noise_is_drawn_where_it_counts() {
    let rows = |sampler, steps| -> Vec<usize> {
        table(sampler, json!({}), Schedule::Model, steps).unwrap().noise_rows().collect()
    };
    assert_eq!(rows(Sampler::EulerAncestral, 4), [0, 1, 2]);
    assert_eq!(rows(Sampler::DpmPp2mSde, 4), [0, 1, 2]);
    assert_eq!(rows(Sampler::Lcm, 4), [0, 1, 2]);
    assert_eq!(rows(Sampler::Tcd, 4), [0, 1, 2]);
    assert_eq!(rows(Sampler::DpmPp3mSde, 4), [0, 1, 2]);
    assert_eq!(rows(Sampler::Dpm2Ancestral, 4), [1, 3, 5]);
    assert_eq!(rows(Sampler::DpmPp2sAncestral, 4), [1, 3, 5]);
    // The last timestep is 1, not 0, so DDPM draws once more, with a standard deviation of 1e-10.
    assert_eq!(rows(Sampler::Ddpm, 4), [0, 1, 2, 3]);
    for sampler in [Sampler::Ddim, Sampler::Pndm, Sampler::Euler, Sampler::Heun, Sampler::UniPc] {
        assert!(rows(sampler, 4).is_empty(), "{sampler}");
    }
}

#[test]
fn without_eta_no_noise_is_drawn() {
    for sampler in Sampler::ALL {
        let sampling = |eta| Sampling { eta: Some(eta), ..Sampling::new(sampler, Schedule::Model, 4) };
        let Some(default) = sampler.default_eta() else { continue };
        let table = |sampling| Table::new(&config(&json!({})), &sampling).unwrap();
        assert_eq!(table(sampling(0.0)).noise_rows().count(), 0, "{sampler}");
        assert_ne!(table(sampling(0.5)).noise_rows().count(), 0, "{sampler}");
        assert_eq!(table(sampling(default)), table(Sampling::new(sampler, Schedule::Model, 4)), "{sampler}");
    }
    let without = Sampling { eta: Some(0.0), ..Sampling::new(Sampler::DpmPp2mSde, Schedule::Model, 4) };
    let ode = table(Sampler::DpmPp2m, json!({}), Schedule::Model, 4).unwrap();
    assert_eq!(Table::new(&config(&json!({})), &without).unwrap(), ode);
}

/// Of a trailing schedule, whose levels lie at whole timesteps.
const TRAILING: &str = "14.614645,4.0817313,1.6128869,0.6932054,0";

fn by_hand(sampler: Sampler, steps: usize, sigmas: &str) -> sdrt::Result<Table> {
    let sigmas = Some(sigmas.parse()?);
    Table::new(&config(&json!({})), &Sampling { sigmas, ..Sampling::new(sampler, Schedule::Model, steps) })
}

#[test]
fn noise_levels_by_hand_are_a_schedule() {
    let by_timesteps = [Sampler::Ddim, Sampler::Pndm, Sampler::Lcm, Sampler::Tcd, Sampler::Ddpm];
    for sampler in Sampler::ALL {
        let ours = by_hand(sampler, 4, TRAILING);
        if by_timesteps.contains(&sampler) {
            let message = ours.unwrap_err().to_string();
            assert!(message.contains(&format!("--sigmas: {sampler}")), "{message}");
            continue;
        }
        let (ours, theirs) = (ours.unwrap(), table(sampler, json!({}), Schedule::Trailing, 4).unwrap());
        // DEIS ends above zero by itself, and then its last steps are other ones.
        let same = if sampler == Sampler::Deis { 3 } else { theirs.evaluations() };
        assert_eq!(ours.evaluations(), theirs.evaluations(), "{sampler}");
        for ((a, a_packed), (b, b_packed)) in
            ours.rows.iter().zip(ours.packed()).zip(theirs.rows.iter().zip(theirs.packed())).take(same)
        {
            assert!((a.timestep - b.timestep).abs() < 1e-3, "{sampler}: {a:?} {b:?}");
            let (a, b) = (a_packed.map(f64::from), b_packed.map(f64::from));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0)), "{sampler}");
        }
    }
    let end = by_hand(Sampler::Euler, 2, "5, 1, 0.5").unwrap();
    assert_near(&sigmas(&end), &[5.0, 1.0]);
}

#[test]
fn aligned_steps_are_the_published_ones() {
    let aligned_steps = |aligned, steps| {
        let sampling = Sampling { aligned, ..Sampling::new(Sampler::Euler, Schedule::Ays, steps) };
        sigmas(&Table::new(&config(&json!({})), &sampling).unwrap())
    };
    let published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152];
    assert_near(&aligned_steps(ALIGNED_SD, 10), &published);
    assert_near(&aligned_steps(ALIGNED_XL, 10)[1..4], &[6.315, 3.771, 2.181]);
    // Twice the steps: every other level is a published one, the others are means in the logarithm.
    let twenty = aligned_steps(ALIGNED_SD, 20);
    assert_near(&twenty.iter().copied().step_by(2).collect::<Vec<f64>>(), &published);
    assert_near(&[twenty[1]], &[(14.615f64 * 6.475).sqrt()]);
}

#[test]
fn names() {
    for sampler in Sampler::ALL {
        for name in
            [sampler.name().to_string(), sampler.label().to_string(), sampler.name().replace('-', "_")]
        {
            assert_eq!(name.parse::<Sampler>().unwrap(), sampler, "{name}");
        }
    }
    for (alias, sampler) in [
        ("euler_a", Sampler::EulerAncestral),
        ("euler ancestral", Sampler::EulerAncestral),
        ("dpmpp_2m", Sampler::DpmPp2m),
        ("dpmpp2m_sde", Sampler::DpmPp2mSde),
        ("dpm_2", Sampler::Dpm2),
        ("dpm_2_ancestral", Sampler::Dpm2Ancestral),
        ("k_dpm_2_a", Sampler::Dpm2Ancestral),
        ("dpmpp_2s_ancestral", Sampler::DpmPp2sAncestral),
        ("dpmpp_3m_sde", Sampler::DpmPp3mSde),
        ("plms", Sampler::Pndm),
    ] {
        assert_eq!(alias.parse::<Sampler>().unwrap(), sampler, "{alias}");
    }
    for schedule in Schedule::ALL {
        assert_eq!(schedule.name().parse::<Schedule>().unwrap(), schedule);
        assert_eq!(schedule.label().parse::<Schedule>().unwrap(), schedule);
    }
    assert_eq!("SGM Uniform".parse::<Schedule>().unwrap(), Schedule::SgmUniform);
    assert_eq!("align_your_steps".parse::<Schedule>().unwrap(), Schedule::Ays);
    let message = "eular".parse::<Sampler>().unwrap_err().to_string();
    assert!(
        message.contains("eular") && message.contains("euler-a") && message.contains("unipc"),
        "{message}"
    );
    let message = "carras".parse::<Schedule>().unwrap_err().to_string();
    assert!(message.contains("carras") && message.contains("karras"), "{message}");
}

#[test]
fn sampler_of_the_model() {
    let class = |name: &str| config(&json!({ "_class_name": name }));
    for (name, sampler) in [
        ("PNDMScheduler", Sampler::Pndm),
        ("DDIMScheduler", Sampler::Ddim),
        ("DDPMScheduler", Sampler::Ddpm),
        ("EulerDiscreteScheduler", Sampler::Euler),
        ("EulerAncestralDiscreteScheduler", Sampler::EulerAncestral),
        ("HeunDiscreteScheduler", Sampler::Heun),
        ("LMSDiscreteScheduler", Sampler::Lms),
        ("DPMSolverMultistepScheduler", Sampler::DpmPp2m),
        ("UniPCMultistepScheduler", Sampler::UniPc),
        ("LCMScheduler", Sampler::Lcm),
        ("TCDScheduler", Sampler::Tcd),
        ("DEISMultistepScheduler", Sampler::Deis),
        ("KDPM2DiscreteScheduler", Sampler::Dpm2),
        ("KDPM2AncestralDiscreteScheduler", Sampler::Dpm2Ancestral),
    ] {
        assert_eq!(class(name).default_sampler().unwrap(), sampler);
    }
    for name in ["VQDiffusionScheduler", "DPMSolverSinglestepScheduler", "IPNDMScheduler"] {
        let message = class(name).default_sampler().unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("--sampler"), "{message}");
    }
    let solver = |algorithm: &str| {
        config(&json!({ "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": algorithm }))
            .default_sampler()
    };
    assert_eq!(solver("sde-dpmsolver++").unwrap(), Sampler::DpmPp2mSde);
    assert!(solver("dpmsolver").unwrap_err().to_string().contains("algorithm_type"));
}

#[test]
fn what_is_not_supported_is_named() {
    for (adds, sampler, schedule, steps, named) in [
        (json!({ "clip_sample": true }), Sampler::Ddim, Schedule::Model, 4, "clip_sample"),
        (json!({ "thresholding": true }), Sampler::Ddim, Schedule::Model, 4, "thresholding"),
        (json!({ "skip_prk_steps": false }), Sampler::Pndm, Schedule::Model, 4, "skip_prk_steps"),
        (json!({ "solver_order": 3 }), Sampler::UniPc, Schedule::Model, 4, "solver_order"),
        (json!({ "solver_type": "bh1" }), Sampler::UniPc, Schedule::Model, 4, "solver_type"),
        (json!({ "beta_schedule": "sigmoid" }), Sampler::Euler, Schedule::Model, 4, "beta_schedule"),
        (json!({ "trained_betas": [0.1] }), Sampler::Euler, Schedule::Model, 4, "trained_betas"),
        (json!({ "beta_end": -1.0 }), Sampler::Euler, Schedule::Model, 4, "beta_end"),
        (json!({ "prediction_type": "flow" }), Sampler::Euler, Schedule::Model, 4, "prediction_type"),
        (json!({ "prediction_type": "sample" }), Sampler::Pndm, Schedule::Model, 4, "prediction_type"),
        (json!({ "timestep_spacing": "even" }), Sampler::Euler, Schedule::Model, 4, "timestep_spacing"),
        (json!({ "final_sigmas_type": "one" }), Sampler::Euler, Schedule::Model, 4, "final_sigmas_type"),
        (json!({}), Sampler::Ddim, Schedule::Karras, 4, "--schedule karras"),
        (json!({}), Sampler::Pndm, Schedule::Beta, 4, "--schedule beta"),
        (json!({}), Sampler::Ddim, Schedule::SgmUniform, 4, "--schedule sgm_uniform"),
        (json!({}), Sampler::Ddpm, Schedule::Ays, 4, "--schedule ays"),
        (json!({}), Sampler::Lcm, Schedule::Trailing, 4, "--schedule trailing: lcm"),
        (json!({}), Sampler::Tcd, Schedule::Karras, 4, "--schedule karras: tcd"),
        (json!({}), Sampler::Tcd, Schedule::Model, 51, "tcd takes at most 50"),
        (json!({ "prediction_type": "sample" }), Sampler::Dpm2, Schedule::Model, 4, "prediction_type"),
        (json!({ "solver_order": 4 }), Sampler::Deis, Schedule::Model, 4, "solver_order"),
        (json!({}), Sampler::Lcm, Schedule::Model, 51, "at most 50"),
        (
            json!({ "original_inference_steps": 0 }),
            Sampler::Lcm,
            Schedule::Model,
            4,
            "original_inference_steps is 0",
        ),
        (json!({ "sigma_max": 10.0 }), Sampler::Euler, Schedule::Model, 4, "sigma_max"),
        (json!({}), Sampler::Euler, Schedule::Model, 0, "--steps 0"),
        (json!({}), Sampler::Euler, Schedule::Model, 1001, "--steps 1001"),
        (json!({}), Sampler::Ddim, Schedule::Leading, 1000, "steps_offset"),
        (json!({}), Sampler::DpmPp2m, Schedule::Leading, 1000, "share a noise level"),
        (
            json!({ "rescale_betas_zero_snr": true }),
            Sampler::Ddim,
            Schedule::Trailing,
            4,
            "rescale_betas_zero_snr",
        ),
    ] {
        let message = table(sampler, adds.clone(), schedule, steps).unwrap_err().to_string();
        assert!(message.contains(named), "{adds}: {message}");
    }
}

#[test]
fn what_a_sampler_cannot_do_is_said() {
    let eta = |sampler, eta| Sampling { eta: Some(eta), ..Sampling::new(sampler, Schedule::Model, 4) };
    let sigmas = Some(TRAILING.parse().unwrap());
    for (sampling, sentence) in [
        (eta(Sampler::Heun, 0.5), "--eta 0.5: heun has no eta; leave --eta out, or choose one of ddim,"),
        (eta(Sampler::Ddim, 1.5), "--eta 1.5: expected a number from 0 to 1"),
        (eta(Sampler::Ddim, f64::NAN), "--eta NaN: expected a number from 0 to 1"),
        (
            Sampling { sigmas: sigmas.clone(), ..Sampling::new(Sampler::Euler, Schedule::Model, 5) },
            "--steps 5: the 5 noise levels of --sigmas are 4 steps",
        ),
        (
            Sampling { sigmas, ..Sampling::new(Sampler::Euler, Schedule::Karras, 4) },
            "--schedule karras: the noise levels are given by --sigmas",
        ),
    ] {
        let message = Table::new(&config(&json!({})), &sampling).unwrap_err().to_string();
        assert!(message.contains(sentence), "{message}");
    }
    for (levels, sentence) in [
        ("3", "expected at least two noise levels"),
        ("", "\"\" is not a number"),
        ("3,x,1", "\"x\" is not a number"),
        ("3,-1", "-1 is not a noise level"),
        ("inf,1", "inf is not a noise level"),
        ("nan,1", "NaN is not a noise level"),
        ("1,2,0", "2 does not come below 1"),
        ("1,0,0", "0 does not come below 0"),
    ] {
        let message = levels.parse::<NoiseLevels>().unwrap_err().to_string();
        assert!(message.contains("--sigmas") && message.contains(sentence), "{levels}: {message}");
    }
    assert_eq!(TRAILING.parse::<NoiseLevels>().unwrap().to_string(), TRAILING);
}

#[test]
fn reads_what_diffusers_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler_config.json");
    let required =
        r#""num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear""#;
    std::fs::write(
        &path,
        format!(r#"{{ "lambda_min_clipped": -Infinity, "clip_sample": true, {required} }}"#),
    )
    .unwrap();
    let config = SchedulerConfig::load(&path.as_path().into()).unwrap().corrected();
    assert_eq!(
        (config.steps_offset, config.clip_sample, config.lambda_min_clipped),
        (Some(1), Some(false), None)
    );

    for timesteps in [1, 1 << 50] {
        let config = SchedulerConfig { num_train_timesteps: timesteps, ..config.clone() };
        let sampling = Sampling::new(Sampler::Ddim, Schedule::Model, 1);
        let message = Table::new(&config, &sampling).unwrap_err().to_string();
        assert!(
            message.contains(&format!("num_train_timesteps is {timesteps}; expected 2 to ")),
            "{message}"
        );
    }

    std::fs::write(&path, r#"{ "num_train_timesteps": 1000, "beta_end": 0.012 }"#).unwrap();
    let message = SchedulerConfig::load(&path.as_path().into()).unwrap_err().to_string();
    assert!(message.contains("scheduler_config.json") && message.contains("beta_start"), "{message}");
}
