//! How large an image is, for commands that measure.

use clap::Args;

#[derive(Args)]
#[command(next_help_heading = "Size")]
pub struct SizeArgs {
    #[arg(short = 'W', long, value_name = "N")]
    pub width: Option<usize>,
    #[arg(short = 'H', long, value_name = "N")]
    pub height: Option<usize>,
}
