//! `cargo xtask field`: the tracer beside real servers and clients, some of them misbehaving, and whether it says so.
//!
//! Each scenario runs in a network namespace of its own, which is gone with its programs. Here they are chosen and the
//! table is made; `scenarios` has what they do, `lab` how programs are started, watched and ended.

mod lab;
mod scenarios;

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail, ensure};

use self::scenarios::{ALL, Scenario};
use crate::{process, workspace};

/// Run the tracer beside nginx, redis, haproxy, Python and Node.js and check what it says (takes two minutes)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the scenarios whose name contains this
    name: Option<String>,
    /// Install missing programs with apt-get
    #[arg(long)]
    install: bool,
    /// Run one scenario here, in the namespace that was made for it, with this tracer
    #[arg(long, hide = true, value_name = "TRACER")]
    inside: Option<PathBuf>,
}

/// Programs and the packages that have them.
const PACKAGES: [(&str, &str); 6] = [
    ("nginx", "nginx-light"),
    ("redis-server", "redis-server"),
    ("haproxy", "haproxy"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("unshare", "util-linux"),
];

/// Where distributions put servers, which a user's PATH may lack.
fn is_missing(program: &str) -> bool {
    process::find(program).is_none() && !PathBuf::from("/usr/sbin").join(program).is_file()
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |scenario: &&Scenario| args.name.as_ref().is_none_or(|name| scenario.name.contains(name.as_str()));
    let scenarios: Vec<&Scenario> = ALL.iter().filter(wanted).collect();
    ensure!(!scenarios.is_empty(), "no scenario has that name");
    if let (Some(tracer), [scenario]) = (&args.inside, scenarios.as_slice()) {
        return scenario.run_here(tracer);
    }
    if args.install {
        let packages = PACKAGES.iter().filter(|(program, _)| is_missing(program)).map(|(_, package)| package);
        let packages: Vec<_> = packages.collect();
        if !packages.is_empty() {
            let mut command = process::as_root("apt-get")?;
            process::succeed(command.args(["install", "--yes", "--no-install-recommends"]).args(packages))?;
        }
    }
    let tracer = workspace::build_executable(&["--release", "--package", "tracer", "--bin", "tracer"], "tracer")?;
    let (mut wrong, mut left_out) = (0, Vec::new());
    println!("{:<4} {:<38} {:<66} SEEN", "OK", "SCENARIO", "EXPECTED");
    for scenario in scenarios {
        let missing: Vec<_> = PACKAGES
            .iter()
            .filter(|(program, _)| *program == "unshare" || scenario.programs.contains(program))
            .filter(|(program, _)| is_missing(program))
            .map(|(_, package)| *package)
            .collect();
        if !missing.is_empty() {
            left_out.push(format!("{}: apt-get install {}", scenario.name, missing.join(" ")));
            continue;
        }
        let mut command = process::as_root("unshare")?;
        command.args(["--net", "--"]).arg(std::env::current_exe()?).args(["field", scenario.name, "--inside"]);
        wrong += usize::from(!run_in_namespace(command.arg(&tracer))?);
    }
    for line in &left_out {
        println!("left out: {line} (or --install)");
    }
    ensure!(wrong == 0, "{wrong} of the scenarios differ from what was expected");
    Ok(())
}

/// Whether the scenario was as expected; it has said so itself.
fn run_in_namespace(command: &mut Command) -> Result<bool> {
    match command.status()?.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("{} was ended", process::shown(command)),
    }
}
