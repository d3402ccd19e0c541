//! What is made of stored tensors: order, sums, dtypes.

use half::f16;
use sdrt::ops::DType;
use sdrt::weights::Source;

use super::{Entry, Model, UNET, bytes_of, f32s, fill, requests, safetensors, value};

#[test]
fn packings_and_dtypes_are_exact() {
    // Per request: keys of `count` elements, and for each packed element which stored one it is.
    let ohwi = |o: usize, i: usize, k: usize| -> Vec<Option<usize>> {
        let c = i.next_multiple_of(4);
        (0..o * k * k * c)
            .map(|at| (at % c, at / c % (k * k), at / c / (k * k)))
            .map(|(column, tap, o)| (column < i).then(|| (o * i + column) * k * k + tap))
            .collect()
    };
    let order = |count: usize| -> Vec<Option<usize>> { (0..count).map(Some).collect() };
    let cases: [(&[usize], Vec<Option<usize>>); 7] = [
        (&[24], order(24)),
        (&[10, 8], order(80)),
        (&[8, 12, 1, 1], order(96)),
        (&[7, 9, 3, 3], ohwi(7, 9, 3)),
        (&[5, 3, 1, 1], ohwi(5, 3, 1)),
        (&[3, 1500, 3, 3], ohwi(3, 1500, 3)),
        (&[1], order(1)),
    ];
    for from in [DType::F32, DType::F16, DType::BF16] {
        let model = Model::new();
        let name = from.to_string().to_uppercase();
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let data: Vec<_> = cases.iter().map(|case| bytes_of(from, (0..count(case.0)).map(value))).collect();
        let keys: Vec<_> = (0..cases.len()).map(|i| format!("k{i}")).collect();
        let mut entries: Vec<Entry> = keys
            .iter()
            .zip(&cases)
            .zip(&data)
            .map(|((key, case), data)| (&key[..], &name[..], case.0, &data[..]))
            .collect();
        // Either what comes before this or what comes after it lies at odd addresses.
        entries.insert(4, ("odd", "U8", &[1], &[0]));
        model.write(UNET, &safetensors(&entries));
        let checkpoint = model.open().unwrap();
        for to in [DType::F32, DType::F16, DType::BF16] {
            let requests = requests(to, |plan| {
                plan.component("unet", |plan| {
                    plan.vector("k0", 24);
                    plan.matrix("k1", 10, 8);
                    plan.conv("k2", 8, 12, 1);
                    plan.conv("k3", 7, 9, 3);
                    plan.conv("k4", 5, 3, 1);
                    plan.conv("k5", 3, 1500, 3);
                    plan.vector("k6", 1);
                })
            });
            for (request, (_, order)) in requests.iter().zip(&cases) {
                let expected = bytes_of(to, order.iter().map(|at| at.map_or(0.0, value)));
                for chunk in [1, 2, 5, 9, 13, 1000] {
                    assert_eq!(fill(&checkpoint, request, chunk), expected, "{from} {request:?} by {chunk}");
                }
            }
        }
    }
}

#[test]
fn stacked_keys_follow_one_another() {
    let model = Model::new();
    let (a, b, c) =
        (f32s(6), bytes_of(DType::F32, (6..12).map(value)), bytes_of(DType::F32, (12..18).map(value)));
    let shape: &[usize] = &[2, 3];
    model.write(
        UNET,
        &safetensors(&[("q", "F32", shape, &a), ("v", "F32", shape, &c), ("k", "F32", shape, &b)]),
    );
    let matrices = requests(DType::F32, |plan| {
        plan.component("unet", |plan| plan.stacked_matrices(&["q", "k", "v"], 2, 3));
    });
    let checkpoint = model.open().unwrap();
    checkpoint.check(&matrices).unwrap();
    for chunk in [1, 2, 3, 4, 6] {
        assert_eq!(fill(&checkpoint, &matrices[0], chunk), f32s(18), "by {chunk}");
    }
    for file in ["q", "k", "v"] {
        assert!(
            checkpoint.tensors().iter().any(|(component, stored)| *component == "unet" && stored.key == file)
        );
    }
    model.write(UNET, &safetensors(&[("q", "F32", &[6], &a), ("k", "F32", &[6], &b)]));
    let vectors = requests(DType::F32, |plan| {
        plan.component("unet", |plan| plan.stacked_vectors(&["q", "k"], 6));
    });
    assert_eq!(fill(&model.open().unwrap(), &vectors[0], 1), f32s(12));
}

#[test]
fn rounding_is_to_nearest_even_and_keeps_infinity() {
    let model = Model::new();
    let values = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65519.0, 65520.0, 6e-8, f32::NEG_INFINITY];
    model.write(UNET, &safetensors(&[("w", "F32", &[6], &bytes_of(DType::F32, values.into_iter()))]));
    let requests = requests(DType::F16, |plan| {
        plan.component("unet", |plan| plan.vector("w", 6));
    });
    let filled = fill(&model.open().unwrap(), &requests[0], 1);
    let filled: Vec<f32> = filled.chunks(2).map(|x| f16::from_le_bytes([x[0], x[1]]).to_f32()).collect();
    let tiny = 2f32.powi(-24);
    assert_eq!(filled, [1.0, 1.0 + 2.0 / 1024.0, 65504.0, f32::INFINITY, tiny, f32::NEG_INFINITY]);
}

#[test]
fn taps_are_summed_before_they_are_rounded() {
    let sets: [&[usize]; 5] = [&[0], &[1, 2], &[0, 1], &[2], &[1]];
    let (o, i, c) = (3, 6, 8);
    // Sums of rounded values would differ.
    let stored = |at: usize| value(at) / 64.0 + 2f32.powi(-13) * (at % 7) as f32;
    let model = Model::new();
    let data = bytes_of(DType::F32, (0..o * i * 9).map(stored));
    model.write(UNET, &safetensors(&[("w", "F32", &[o, i, 3, 3], &data)]));
    let checkpoint = model.open().unwrap();
    for to in [DType::F32, DType::F16, DType::BF16] {
        let requests = requests(to, |plan| {
            plan.component("unet", |plan| plan.upsampling_conv("w", o, i));
        });
        checkpoint.check(&requests).unwrap();
        let sum = |at: usize| {
            let (column, place, o) = (at % c, at / c % 25, at / c / 25);
            if column >= i {
                return 0.0;
            }
            let taps = sets[place / 5].iter().flat_map(|y| sets[place % 5].iter().map(move |x| 3 * y + x));
            taps.map(|tap| stored((o * i + column) * 9 + tap)).sum()
        };
        let expected = bytes_of(to, (0..o * 25 * c).map(sum));
        for chunk in [1, 2, 7, 25, 26, 1000] {
            assert_eq!(fill(&checkpoint, &requests[0], chunk), expected, "{to} by {chunk}");
        }
    }
}
