//! Half blocks: two pixels in a cell.

use std::fmt::Write;

use crate::pipeline::Picture;

/// The upper half of a cell; its lower half is the background.
const UPPER_HALF: char = '▀';
const RESET: &str = "\x1b[0m";
/// The levels of a channel in xterm's cube of 216 colours, which begins at 16.
const CUBE: [u8; 6] = [0, 95, 135, 175, 215, 255];
/// xterm's 24 greys: 8, 18, ... 238, from 232 on.
const GREYS: u8 = 24;

/// A line for two rows of pixels.
pub fn draw(picture: &Picture, true_colour: bool) -> Vec<u8> {
    let mut text = String::new();
    for y in (0..picture.height).step_by(2) {
        for x in 0..picture.width {
            text += &colour(38, pixel(picture, x, y), true_colour);
            // Below an odd last row is nothing.
            if y + 1 < picture.height {
                text += &colour(48, pixel(picture, x, y + 1), true_colour);
            }
            text.push(UPPER_HALF);
        }
        text += RESET;
        text.push('\n');
    }
    text.into_bytes()
}

fn pixel(picture: &Picture, x: usize, y: usize) -> [u8; 3] {
    picture.rgb.as_chunks().0[y * picture.width + x]
}

/// `ground` is 38 for the foreground, 48 for the background.
fn colour(ground: u8, rgb: [u8; 3], true_colour: bool) -> String {
    let mut text = String::new();
    let [r, g, b] = rgb;
    let written = match true_colour {
        true => write!(text, "\x1b[{ground};2;{r};{g};{b}m"),
        false => write!(text, "\x1b[{ground};5;{}m", nearest(rgb)),
    };
    written.expect("memory for a few bytes");
    text
}

/// The nearest of xterm's 256 colours; not of the first 16, which users choose.
fn nearest(rgb: [u8; 3]) -> u8 {
    let level = |x: u8| (0..6).min_by_key(|&i| CUBE[usize::from(i)].abs_diff(x)).unwrap_or(0);
    let [r, g, b] = rgb.map(level);
    let mean = rgb.iter().map(|&x| u32::from(x)).sum::<u32>() / 3;
    let grey = (mean.saturating_sub(3) / 10).min(u32::from(GREYS) - 1) as u8;
    let away = |other: [u8; 3]| -> u32 {
        rgb.iter().zip(other).map(|(&x, y)| u32::from(x.abs_diff(y)).pow(2)).sum()
    };
    let in_cube = away([r, g, b].map(|i| CUBE[usize::from(i)]));
    if away([8 + 10 * grey; 3]) < in_cube { 232 + grey } else { 16 + 36 * r + 6 * g + b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_two_pixels() {
        let picture = Picture { width: 1, height: 3, rgb: vec![1, 2, 3, 4, 5, 6, 255, 0, 0], seed: 0 };
        let drawn = draw(&picture, true);
        let expected = "\x1b[38;2;1;2;3m\x1b[48;2;4;5;6m▀\x1b[0m\n\x1b[38;2;255;0;0m▀\x1b[0m\n";
        assert_eq!(String::from_utf8(drawn).unwrap(), expected);
        let drawn = String::from_utf8(draw(&picture, false)).unwrap();
        assert!(drawn.ends_with("\x1b[38;5;196m▀\x1b[0m\n"), "{drawn}");
    }

    #[test]
    fn colours_are_the_nearest() {
        for (rgb, index) in [
            ([0, 0, 0], 16),
            ([255, 255, 255], 231),
            ([95, 135, 175], 67),
            ([8, 8, 8], 232),
            ([238, 238, 238], 255),
            ([120, 121, 119], 243),
            ([250, 10, 10], 196),
        ] {
            assert_eq!(nearest(rgb), index, "{rgb:?}");
        }
    }
}
