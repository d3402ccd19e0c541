//! How large a picture is, and what XL is told of it.

use clap::Args;
use sdrt::error::Error;
use sdrt::pipeline::SizeConditioning;

#[derive(Args)]
#[command(next_help_heading = "Size")]
pub struct SizeArgs {
    /// Pixels, a multiple of 8 [default: the model's]
    #[arg(short = 'W', long, value_name = "N")]
    pub width: Option<usize>,
    /// Pixels, a multiple of 8 [default: the model's]
    #[arg(short = 'H', long, value_name = "N")]
    pub height: Option<usize>,
}

/// XL was trained with the sizes of its pictures as an input: asked for a large original it paints finer,
/// for a crop it cuts off.
#[derive(Args)]
#[command(next_help_heading = "Size")]
pub struct ConditioningArgs {
    /// XL: the size of the original that the picture seems to come from, as in 1024x1024 [default: the
    /// picture's]
    #[arg(long, value_name = "WxH", value_parser = original_size)]
    original_size: Option<[usize; 2]>,
    /// XL: how much of the original seems cut off at its left and top, as in 0,256 [default: 0,0]
    #[arg(long, value_name = "X,Y", value_parser = crop)]
    crop: Option<[usize; 2]>,
    /// XL: the size that the original seems brought to [default: the picture's]
    #[arg(long, value_name = "WxH", value_parser = target_size)]
    target_size: Option<[usize; 2]>,
}

impl ConditioningArgs {
    pub fn conditioning(&self) -> SizeConditioning {
        let ConditioningArgs { original_size: original, crop, target_size: target } = *self;
        SizeConditioning { original, crop: crop.unwrap_or_default(), target }
    }
}

fn original_size(text: &str) -> Result<[usize; 2], Error> {
    pair(text, "original-size", 'x', "1024x1024", 1)
}

fn target_size(text: &str) -> Result<[usize; 2], Error> {
    pair(text, "target-size", 'x', "1024x1024", 1)
}

fn crop(text: &str) -> Result<[usize; 2], Error> {
    pair(text, "crop", ',', "0,256", 0)
}

/// Two whole numbers from `least` on, of at most seven digits: f32 holds them exactly.
fn pair(text: &str, flag: &str, separator: char, example: &str, least: usize) -> Result<[usize; 2], Error> {
    let number = |text: &str| text.parse().ok().filter(|n| (least..10_000_000).contains(n));
    let numbers = text.split_once(separator).and_then(|(a, b)| Some([number(a)?, number(b)?]));
    numbers.ok_or_else(|| {
        Error::invalid(format!(
            "--{flag} {text}: expected two whole numbers from {least} on, as in {example}"
        ))
    })
}
