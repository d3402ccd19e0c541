//! Verbs that compute each number from a few others.

use super::math::{self, gelu, vectorized};
use super::memory::Memory;
use crate::ops::{
    Accumulate, Activate, Embed, Emphasize, Geglu, Scale, Statistics, TimestepEmbedding, ToRgb8,
};

/// Of a projection that has been computed.
pub fn geglu(memory: &Memory, v: &Geglu) {
    let x = memory.rows::<f32>(v.hidden);
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| geglu_row(out, x.row(row)));
}

vectorized! {
    fn geglu_row(out: &mut [f32], x: &[f32]) {
        let (values, gates) = x.split_at(out.len());
        for ((out, &value), &gate) in out.iter_mut().zip(values).zip(gates) {
            *out = value * gelu(gate);
        }
    }
}

pub fn activate(memory: &Memory, v: &Activate) {
    if v.out != v.x {
        let x = memory.rows::<f32>(v.x);
        memory.rows_mut::<f32>(v.out).par_rows(|row, out| out.copy_from_slice(x.row(row)));
    }
    memory.rows_mut::<f32>(v.out).par_rows(|_, out| math::activate(v.activation, out));
}

pub fn accumulate(memory: &Memory, v: &Accumulate) {
    let gains = memory.rows::<f32>(v.gain.table);
    let index = memory.slice::<i32>(v.gain.index);
    let y = memory.rows::<f32>(v.y);
    memory.rows_mut::<f32>(v.x).par_rows(|row, x| {
        let gain = gains.row(index[row / v.x.tokens()] as usize)[0];
        if gain != 0.0 {
            x.iter_mut().zip(y.row(row)).for_each(|(x, y)| *x += gain * y);
        }
    });
}

pub fn embed(memory: &Memory, v: &Embed) {
    let ids = memory.slice::<i32>(v.ids);
    let tokens = memory.rows::<f32>(v.tokens);
    let positions = v.positions.map(|positions| memory.rows::<f32>(positions));
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        let id = usize::try_from(ids[row]).unwrap_or(usize::MAX).min(tokens.count - 1);
        out.copy_from_slice(tokens.row(id));
        if let Some(positions) = &positions {
            let position = positions.row(row % v.out.tokens());
            out.iter_mut().zip(position).for_each(|(out, position)| *out += position);
        }
    });
}

/// Means in f64.
pub fn emphasize(memory: &Memory, v: &Emphasize) {
    let weights = memory.slice::<f32>(v.weight);
    let t = v.x.tokens();
    let sum = |weight: &dyn Fn(usize) -> f32, image: usize| -> f64 {
        let x = memory.rows::<f32>(v.x);
        let rows = image * t..(image + 1) * t;
        rows.flat_map(|row| x.row(row).iter().map(move |&x| f64::from(x * weight(row)))).sum()
    };
    let restored: Vec<f32> = (0..v.x.b())
        .map(|image| match sum(&|row| weights[row], image) {
            after if v.restore_mean && after != 0.0 => (sum(&|_| 1.0, image) / after) as f32,
            _ => 1.0,
        })
        .collect();
    memory.rows_mut::<f32>(v.x).par_rows(|row, x| {
        let factor = weights[row] * restored[row / t];
        x.iter_mut().for_each(|x| *x *= factor);
    });
}

/// The order of operations is that of diffusers: an angle of 999 keeps the last bit of its frequency.
pub fn timestep_embedding(memory: &Memory, v: &TimestepEmbedding) {
    let timesteps = memory.slice::<f32>(v.timesteps);
    let half = v.out.c() / 2;
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        let (first, second) = out.split_at_mut(half);
        let (sines, cosines) = if v.flip_sin_to_cos { (second, first) } else { (first, second) };
        for (i, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
            let exponent = -(1e4_f64.ln() as f32) * i as f32 / (half as f32 - v.freq_shift);
            let angle = timesteps[row] * exponent.exp();
            (*sine, *cosine) = angle.sin_cos();
        }
    });
}

pub fn scale(memory: &Memory, v: &Scale) {
    let [factor, summand] = v.factors();
    let x = memory.rows::<f32>(v.x);
    memory.rows_mut::<f32>(v.out).par_rows(|row, out| {
        for (j, (out, x)) in out.iter_mut().zip(x.row(row)).enumerate() {
            let channel = j % Statistics::CHANNELS;
            *out = x * factor[channel] + summand[channel];
        }
    });
}

pub fn to_rgb8(memory: &Memory, v: &ToRgb8) {
    let x = memory.rows::<f32>(v.x);
    memory.rows_mut::<u8>(v.out).par_rows(|row, out| {
        out.iter_mut().zip(x.row(row)).for_each(|(out, &x)| *out = ToRgb8::level(x));
    });
}
