//! Smaller pictures.

use crate::pipeline::Picture;

/// The largest size of the same shape that is neither larger than the picture nor than the box; at least one
/// pixel.
pub fn fit((width, height): (usize, usize), most_wide: usize, most_high: usize) -> (usize, usize) {
    let by_width = most_wide.min(width);
    let by_height = most_high.min(height);
    // Whichever side is cut by more decides.
    if by_width * height <= by_height * width {
        (by_width, (height * by_width / width).max(1))
    } else {
        ((width * by_height / height).max(1), by_height)
    }
}

/// Every pixel is the mean of those that it stands for.
pub fn shrink(picture: &Picture, most_wide: usize, most_high: usize) -> Picture {
    let (width, height) = fit((picture.width, picture.height), most_wide, most_high);
    let mut rgb = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        let rows = y * picture.height / height..(y + 1) * picture.height / height;
        for x in 0..width {
            let columns = x * picture.width / width..(x + 1) * picture.width / width;
            let count = rows.len() * columns.len();
            for channel in 0..3 {
                let sum: usize = rows
                    .clone()
                    .flat_map(|row| columns.clone().map(move |column| (row, column)))
                    .map(|(row, column)| {
                        usize::from(picture.rgb[3 * (row * picture.width + column) + channel])
                    })
                    .sum();
                rgb.push(((sum + count / 2) / count) as u8);
            }
        }
    }
    Picture { width, height, rgb, seed: picture.seed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_kept_and_nothing_grows() {
        assert_eq!(fit((512, 512), 100, 60), (60, 60));
        assert_eq!(fit((512, 256), 100, 60), (100, 50));
        assert_eq!(fit((8, 4), 100, 60), (8, 4));
        assert_eq!(fit((2000, 1), 10, 10), (10, 1));
        assert_eq!(fit((1, 2000), 10, 10), (1, 10));
    }

    #[test]
    fn a_pixel_is_the_mean_of_those_it_stands_for() {
        let rgb = vec![0, 10, 0, 2, 20, 0, 4, 30, 255, 7, 40, 255];
        let picture = Picture { width: 2, height: 2, rgb: rgb.clone(), seed: 0 };
        assert_eq!(shrink(&picture, 1, 1).rgb, [3, 25, 128]);
        assert_eq!(shrink(&picture, 5, 5).rgb, rgb);
    }
}
