//! `xylem convert`.
use anyhow::Result;
use std::path::PathBuf;
/// Make a bundle from a dense checkpoint.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}
/// Runs the subcommand.
pub fn run(_args: &Args) -> Result<()> {
    Ok(())
}
