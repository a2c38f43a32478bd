//! `cargo xtask bench`: what the tracer costs, against the tools that one would take instead. One module for each thing
//! that is measured.

mod flood;
mod snapshot;

use anyhow::Result;

/// Measure the tracer on this machine, against other tools
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Flood(flood::Args),
    Snapshot(snapshot::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Flood(args) => flood::run(args),
        What::Snapshot(args) => snapshot::run(args),
    }
}
