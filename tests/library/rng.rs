//! Noise against torch's.

use safetensors::SafeTensors;
use sdrt::rng::{NoiseSource, Philox, Rng, TorchCpu};

fn draw(source: &mut dyn NoiseSource, count: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; count];
    source.fill_normal(&mut out);
    out
}

#[track_caller]
fn assert_near(ours: &[f32], expected: &[f32], tolerance: f32) {
    for (a, b) in ours.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance, "{ours:?} {expected:?}");
    }
}

/// The first numbers of `torch.randn`, as users know them.
#[test]
fn first_numbers_of_torch() {
    for (seed, count, first) in [
        (0, 16384, [-1.1258398, -1.1523602, -0.2505786, -0.4338788]),
        (42, 16384, [1.9269153, 1.4872841, 0.9007172, -2.105521]),
        (0, 17, [-1.1258398, -1.6959312, 0.5666506, 0.7935084]),
        (0, 15, [1.5409961, -0.2934289, -2.1787894, 0.5684313]),
    ] {
        assert_near(&draw(&mut TorchCpu::new(seed), count)[..4], &first, 1e-7);
    }
}

/// Successive tensors of all kinds of sizes from one generator, bit by bit.
#[test]
fn streams_equal_those_of_torch() {
    let path = crate::common::root().join("tests/fixtures/rng/torch_cpu.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut calls: Vec<[u64; 3]> = file
        .names()
        .into_iter()
        .filter(|name| !name.ends_with(".sum"))
        .map(|name| {
            let mut parts = name.split('.').map(|part| part.parse().unwrap());
            std::array::from_fn(|_| parts.next().unwrap())
        })
        .collect();
    calls.sort();
    let mut generator = TorchCpu::new(0);
    for [seed, call, size] in calls {
        if call == 0 {
            generator = TorchCpu::new(seed);
        }
        let ours = draw(&mut generator, size as usize);
        let name = format!("{seed}.{call}.{size}");
        let first = file.tensor(&name).unwrap();
        let first = first.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        for (ours, expected) in ours.iter().zip(first) {
            assert_eq!(ours.to_bits(), expected.to_bits(), "{name}: {ours} {expected}");
        }
        let sum = file.tensor(&format!("{name}.sum")).unwrap();
        let sum = i64::from_le_bytes(sum.data().try_into().unwrap());
        assert_eq!(ours.iter().map(|v| i64::from(v.to_bits() as i32)).sum::<i64>(), sum, "{name}");
    }
}

/// Component 0 of cuRAND's Philox: A1111's `NV`, sd.cpp's `--rng cuda`.
#[test]
fn first_numbers_of_cuda() {
    let mut philox = Philox::new(0);
    assert_near(&draw(&mut philox, 4), &[-0.924662, -0.425344, -2.643846, 0.145184], 1e-6);
    assert_near(&draw(&mut philox, 3), &[0.180826, -0.552263, 0.923813], 1e-6);
    assert_near(&draw(&mut Philox::new(42), 4), &[0.194019, 2.161374, -0.172051, 0.84906], 1e-6);
}

#[test]
fn noise_is_standard_normal() {
    for rng in [Rng::Cpu, Rng::Cuda] {
        let noise = draw(&mut *rng.source(7), 1 << 16);
        let mean = noise.iter().sum::<f32>() / noise.len() as f32;
        let variance = noise.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / noise.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{rng}: {mean} {variance}");
    }
}

#[test]
fn names() {
    for rng in [Rng::Cpu, Rng::Cuda] {
        assert_eq!(rng.to_string().parse::<Rng>().unwrap(), rng);
    }
    assert!("gpu".parse::<Rng>().unwrap_err().to_string().contains("--rng gpu"));
}
