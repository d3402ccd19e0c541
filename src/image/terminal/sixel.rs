//! Sixels: bands of six rows, a pass over a band for each of its colours.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::pipeline::Picture;

/// Levels of a channel: 216 colours, as many as every terminal with sixels has.
const LEVELS: usize = 6;
const STEP: i32 = 255 / (LEVELS as i32 - 1);
const BAND: usize = 6;

/// The picture in 216 colours.
pub fn draw(picture: &Picture) -> Vec<u8> {
    let colours = dither(picture);
    let Picture { width, height, .. } = *picture;
    // Pixels are square, and those that are not drawn keep their colour.
    let mut text = format!("\x1bP0;1;0q\"1;1;{width};{height}");
    let mut defined = [false; LEVELS * LEVELS * LEVELS];
    for band in colours.chunks(BAND * width) {
        let mut masks: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for (i, &colour) in band.iter().enumerate() {
            masks.entry(colour).or_insert_with(|| vec![0; width])[i % width] |= 1 << (i / width);
        }
        for (colour, mask) in &masks {
            if !std::mem::replace(&mut defined[*colour], true) {
                let percent =
                    [colour / (LEVELS * LEVELS), colour / LEVELS % LEVELS, colour % LEVELS].map(|x| 20 * x);
                let [r, g, b] = percent;
                write!(text, "#{colour};2;{r};{g};{b}").expect("memory for a few bytes");
            }
            write!(text, "#{colour}").expect("memory for a few bytes");
            for run in mask.chunk_by(|a, b| a == b) {
                push_run(&mut text, char::from(63 + run[0]), run.len());
            }
            text.push('$');
        }
        text.push('-');
    }
    text += "\x1b\\\n";
    text.into_bytes()
}

fn push_run(text: &mut String, sixel: char, count: usize) {
    if count > 3 {
        write!(text, "!{count}{sixel}").expect("memory for a few bytes");
    } else {
        text.extend(std::iter::repeat_n(sixel, count));
    }
}

/// The colour of every pixel, `36 r + 6 g + b`, with its error handed on to its neighbours (Floyd and
/// Steinberg).
fn dither(picture: &Picture) -> Vec<usize> {
    let Picture { width, height, rgb, .. } = picture;
    let mut colours = vec![0; width * height];
    for channel in 0..3 {
        let mut errors = vec![0i32; width + 2];
        for y in 0..*height {
            let mut below = vec![0i32; width + 2];
            for x in 0..*width {
                let wanted = i32::from(rgb[3 * (y * width + x) + channel]) + errors[x + 1] / 16;
                let level = ((wanted + STEP / 2) / STEP).clamp(0, LEVELS as i32 - 1);
                let error = wanted - STEP * level;
                errors[x + 2] += 7 * error;
                below[x] += 3 * error;
                below[x + 1] += 5 * error;
                below[x + 2] += error;
                let colour = &mut colours[y * width + x];
                *colour = *colour * LEVELS + level as usize;
            }
            errors = below;
        }
    }
    colours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_passes_over_their_colours() {
        let (red, blue) = ([255, 0, 0], [0, 0, 255]);
        let column = |first: [u8; 3], second: [u8; 3]| [first, second].concat();
        let rows: Vec<u8> =
            (0..7).flat_map(|y| if y < 3 { column(red, blue) } else { column(red, red) }).collect();
        let picture = Picture { width: 2, height: 7, rgb: rows, seed: 0 };
        let expected = "\x1bP0;1;0q\"1;1;2;7#5;2;0;0;100#5?F$#180;2;100;0;0#180~w$-#180@@$-\x1b\\\n";
        assert_eq!(String::from_utf8(draw(&picture)).unwrap(), expected);
    }

    #[test]
    fn runs_are_counted() {
        let picture = Picture { width: 500, height: 1, rgb: vec![0; 1500], seed: 0 };
        assert!(String::from_utf8(draw(&picture)).unwrap().ends_with("#0!500@$-\x1b\\\n"));
    }

    #[test]
    fn the_mean_colour_stays() {
        let picture = Picture { width: 64, height: 64, rgb: vec![100; 3 * 64 * 64], seed: 0 };
        let greens: i32 = dither(&picture).iter().map(|colour| STEP * (colour / 6 % 6) as i32).sum();
        let mean = f64::from(greens) / 4096.0;
        assert!((mean - 100.0).abs() < 1.0, "{mean}");
    }
}
