//! What runs on every kernel: the test program and the tracer, for each kind of computer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::machine::{AMD64, Machine};
use crate::{process, workspace};

/// What runs on every kernel.
pub(super) struct Programs {
    pub(super) tests: PathBuf,
    pub(super) tracer: PathBuf,
    /// What they need there; nothing when they are static.
    pub(super) libraries: Vec<PathBuf>,
}

impl Programs {
    fn build(machine: &Machine) -> Result<Self> {
        // Optimised, for it runs in software; what makes linking long is of no use here.
        let args = ["--locked", "--release", "--target", machine.target, "--package", "tracer", "--test", "kernel"];
        let settings = ["--bin", "tracer", "--config=profile.release.lto=false", "--config=profile.release.debug=0"];
        let built = workspace::build_executables_with(&[&args[..], &settings].concat(), &machine.build_settings()?)?;
        Ok(Self { tests: named("kernel", &built)?, tracer: named("tracer", &built)?, libraries: Vec::new() })
    }

    /// Those of `cargo xtask test`, without debug information.
    fn as_tested() -> Result<Self> {
        let built =
            workspace::build_executables(&["--locked", "--package", "tracer", "--test", "kernel", "--bin", "tracer"])?;
        let objcopy = process::find("objcopy").context("objcopy is missing (Debian: apt-get install binutils)")?;
        let folder = workspace::target_dir()?.join("vm").join("quick");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let stripped = |name: &str| {
            let to = folder.join(name);
            process::succeed(Command::new(&objcopy).arg("--strip-debug").arg(named(name, &built)?).arg(&to))?;
            anyhow::Ok(to)
        };
        let (tests, tracer) = (stripped("kernel")?, stripped("tracer")?);
        let mut libraries = libraries_of(&tests)?;
        libraries.extend(libraries_of(&tracer)?);
        libraries.sort();
        libraries.dedup();
        Ok(Self { tests, tracer, libraries })
    }
}

fn named(name: &str, built: &[(String, PathBuf)]) -> Result<PathBuf> {
    let found = built.iter().find(|(target, _)| target == name).map(|(_, path)| path.clone());
    found.with_context(|| format!("cargo built no `{name}`: is it still in the workspace?"))
}

/// What the dynamic loader would load, and the loader itself.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let told = process::output(Command::new("ldd").arg(program))?;
    Ok(told.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// The programs for each kind of computer, built when they are first wanted.
pub(super) struct Built {
    quick: bool,
    programs: Vec<(&'static Machine, Programs)>,
}

impl Built {
    pub(super) fn new(quick: bool) -> Self {
        Self { quick, programs: Vec::new() }
    }

    pub(super) fn programs(&mut self, machine: &'static Machine) -> Result<&Programs> {
        let at = match self.programs.iter().position(|(known, _)| *known == machine) {
            Some(at) => at,
            None => {
                let quick = self.quick && *machine == AMD64;
                let built = if quick { Programs::as_tested()? } else { Programs::build(machine)? };
                self.programs.push((machine, built));
                self.programs.len() - 1
            }
        };
        Ok(&self.programs[at].1)
    }
}
