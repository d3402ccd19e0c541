//! Flags of encoding and decoding in tiles.

use clap::Args;
use sdrt::pipeline::{Tiled, Tiling};

#[derive(Args)]
#[command(next_help_heading = "Machine")]
pub struct TilingArgs {
    #[arg(long, value_name = "WHEN", default_value = "auto", num_args = 0..=1, default_missing_value = "on")]
    vae_tiling: Tiled,
    #[arg(long, value_name = "N")]
    vae_tile_size: Option<usize>,
}

impl TilingArgs {
    pub fn tiling(&self) -> Tiling {
        Tiling { when: self.vae_tiling, tile_size: self.vae_tile_size }
    }
}
