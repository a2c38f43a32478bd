//! `cargo xtask export`: whether Python's readers find in recordings and exports what was traced, and the answers to the
//! questions of docs/export.md in them.
//!
//! The check itself is Python (xtask/export), in a virtual environment below target/.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// Record and export known traffic, and check it with pyarrow, DuckDB and polars
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    let folder = workspace::root().join("xtask/export");
    let python = environment(&folder.join("requirements.txt"))?;
    let tracer = workspace::build_executable(&["--package", "tracer", "--bin", "tracer"], "tracer")?;
    let mut command = process::as_root("unshare")?;
    // -B: what root compiles should not lie beside the sources.
    command.args(["--net", "--"]).arg(python).arg("-B").arg(folder.join("check.py"));
    process::succeed(command.arg(tracer).arg(workspace::root().join("docs/export.md")))
}

/// Whether there is a Python that can make virtual environments; Debian's needs a package of its own for that.
pub(crate) fn has_python() -> bool {
    let mut command = Command::new("python3");
    command.args(["-c", "import ensurepip, venv"]).stdin(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The Python of an environment with these packages, which is made when it is not there yet.
fn environment(requirements: &Path) -> Result<PathBuf> {
    if !has_python() {
        bail!("python3 with venv is missing: `cargo xtask setup` installs it (Debian: apt-get install python3-venv)");
    }
    let folder = workspace::target_dir()?.join("python");
    let (python, made_of) = (folder.join("bin/python"), folder.join("made-of"));
    let version = process::output(Command::new("python3").arg("-VV"))?;
    let packages = fs::read_to_string(requirements)
        .with_context(|| format!("cannot read the names of packages in {}", requirements.display()))?;
    let wanted = version + &packages;
    if fs::read_to_string(&made_of).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    process::succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    // Where there is no wheel, better an error than a compilation that takes forever.
    install.args(["--only-binary", ":all:", "--requirement"]).arg(requirements);
    process::succeed(install.stdin(Stdio::null()))
        .context("cannot install Python's packages: this needs PyPI, or a mirror that pip is configured for")?;
    fs::write(&made_of, wanted).with_context(|| format!("cannot write {}", made_of.display()))?;
    Ok(python)
}
