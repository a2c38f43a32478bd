//! `cargo xtask test`: every test of the workspace, each with the rights it needs.
//!
//! Tests that load BPF programs are the integration tests of the tracer whose names start with `kernel`, and the check of
//! its exports. They alone run as root; the rest must not depend on it, and runs as whoever calls.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Metadata, TargetKind};

use crate::{
    build_ebpf, export, process,
    provenance::{self, Provenance},
    workspace,
};

/// Run all tests; those that load BPF programs through sudo when not root
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that load BPF programs, and the check of exports, which traces too
    #[arg(long, conflicts_with = "only_kernel")]
    no_kernel: bool,
    /// Run only the test programs that load BPF programs
    #[arg(long)]
    only_kernel: bool,
    /// Build the BPF programs first, and test with these in place of those in the tree
    #[arg(long)]
    fresh_ebpf: bool,
    /// Passed on to the test programs, which then are all that runs
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let metadata = workspace::metadata(false)?;
    let targets = Targets::of(&metadata);
    let fresh = if args.fresh_ebpf { Some(build_ebpf::build_fresh()?) } else { None };
    if let Some(fresh) = &fresh {
        compare(fresh)?;
    }
    let cargo_test = || {
        let mut command = workspace::cargo();
        command.arg("test");
        if let Some(fresh) = &fresh {
            command.env("TRACER_BPF_OBJECT", fresh);
        }
        command
    };
    let mut failed = Vec::new();
    let mut step = |mut command: Command| {
        if !args.args.is_empty() {
            command.arg("--").args(&args.args);
        }
        if let Err(error) = process::succeed(&mut command) {
            failed.push(format!("{error:#}"));
        }
    };

    if !args.only_kernel {
        let mut command = cargo_test();
        command.args(["--workspace", "--no-fail-fast", "--lib", "--bins", "--examples"]);
        command.args(targets.plain.iter().flat_map(|name| ["--test", name]));
        step(command);
        if targets.doctests {
            let mut command = cargo_test();
            command.args(["--workspace", "--no-fail-fast", "--doc"]);
            step(command);
        }
    }
    if args.no_kernel {
        println!("left out, for --no-kernel, the tests that load BPF programs: {}", list(&targets.kernel));
    } else if !targets.kernel.is_empty() {
        let runner = runner()?;
        for name in &targets.kernel {
            let mut command = cargo_test();
            // The leaking server is what some of them trace.
            command.args(["--package", "tracer", "--test", name, "--example", "leaky_server"]);
            command.envs(runner.clone());
            step(command);
        }
    }
    if args.no_kernel || args.only_kernel || !args.args.is_empty() {
        println!("left out: cargo xtask export");
    } else if let Err(error) = export::run(&export::Args {}) {
        failed.push(format!("{error:#}"));
    }
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join("; "));
    }
    Ok(())
}

/// The test targets of the workspace, by name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Targets {
    /// Integration tests for any user.
    plain: BTreeSet<String>,
    /// Integration tests for root.
    kernel: BTreeSet<String>,
    /// True when a library has its examples tested.
    doctests: bool,
}

impl Targets {
    fn of(metadata: &Metadata) -> Self {
        let mut found = Self::default();
        for package in metadata.workspace_packages() {
            for target in &package.targets {
                found.doctests |= target.doctest;
                if target.kind.contains(&TargetKind::Test) && target.test {
                    let kernel = package.name.as_str() == "tracer" && target.name.starts_with("kernel");
                    let set = if kernel { &mut found.kernel } else { &mut found.plain };
                    set.insert(target.name.clone());
                }
            }
        }
        found
    }
}

fn list(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// The environment with which cargo runs test programs as root.
fn runner() -> Result<Option<(String, String)>> {
    if process::is_root() {
        return Ok(None);
    }
    let sudo = process::find("sudo").context(
        "tests that load BPF programs must run as root, and sudo is not installed: run as root, or --no-kernel",
    )?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = process::output(Command::new(rustc).arg("-vV").current_dir(workspace::root()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let triple = host.replace('-', "_").to_uppercase();
    // -E: RUST_BACKTRACE and the like are meant for the tests.
    Ok(Some((format!("CARGO_TARGET_{triple}_RUNNER"), format!("{} -E", sudo.display()))))
}

/// Says how the fresh object relates to the one in the tree.
fn compare(fresh: &Path) -> Result<()> {
    let tree = Provenance::read(&workspace::root().join(provenance::OBJECT));
    let fresh = Provenance::read(fresh)?;
    match tree {
        Ok(tree) if tree.object_sha256 == fresh.object_sha256 => println!("the fresh object is the one in the tree"),
        Ok(tree) => println!("the fresh object ({}) differs from the one in the tree ({})", fresh.rustc, tree.rustc),
        Err(error) => println!("nothing to compare the fresh object with: {error:#}"),
    }
    Ok(())
}
