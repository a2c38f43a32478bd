//! `cargo xtask run`: the tracer as it is in the tree, with the rights it needs.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Build the tracer (release) and run it, through sudo when not root
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to the tracer
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let tracer = workspace::build_executable(&["--release", "--package", "tracer", "--bin", "tracer"], "tracer")?;
    let mut command = process::as_root(&tracer)?;
    command.args(&args.args);
    // Not a child: signals, the terminal and the exit status are the tracer's own.
    Err(command.exec()).with_context(|| format!("cannot start {}", process::shown(&command)))
}
