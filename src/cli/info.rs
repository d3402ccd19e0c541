//! `sdrt info`

use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub struct Info {}

impl Info {
    pub fn run(&self) -> Result<()> {
        Ok(())
    }
}
