//! Flags of encoding and decoding in tiles.

use clap::Args;
use sdrt::pipeline::{Tiled, Tiling};

#[derive(Args)]
#[command(next_help_heading = "Machine")]
pub struct TilingArgs {
    /// Encodes and decodes pictures tile by tile, in the memory of one tile: auto (where the whole does not fit),
    /// on or off
    #[arg(long, value_name = "WHEN", default_value = "auto", num_args = 0..=1, default_missing_value = "on")]
    vae_tiling: Tiled,
    /// Latent pixels of a tile's side [default: what the VAE was trained at; Stable Diffusion 1.x: 64]
    #[arg(long, value_name = "N")]
    vae_tile_size: Option<usize>,
}

impl TilingArgs {
    pub fn tiling(&self) -> Tiling {
        Tiling { when: self.vae_tiling, tile_size: self.vae_tile_size }
    }
}
