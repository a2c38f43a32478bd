//! `cargo xtask vm`: the kernel tests, as one program, on the kernels of Debian's releases in QEMU and on this one.
//!
//! The guest has that program, `tracer` itself and busybox, no disk and no network. Nothing is installed but QEMU, if
//! it is missing; kernels come as packages and stay below target/.

mod guest;
mod kernels;
mod machine;
mod programs;
mod qemu;
mod results;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    kernels::{Asked, Release},
    machine::AMD64,
    programs::{Built, Programs},
    qemu::Guest,
    results::Results,
};
use crate::process;

/// Run the kernel tests on other kernels, in QEMU, and on the running one
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which ones; without it those of the releases for this kind of computer, and the running one
    #[arg(long, value_name = "VERSION")]
    kernel: Vec<Which>,
    /// Those for real time and for arm64, too
    #[arg(long, conflicts_with = "kernel")]
    all: bool,
    /// Take what `cargo xtask test` builds, not optimised: little to build, longer to run; not for arm64
    #[arg(long)]
    quick: bool,
    /// Where Debian's packages come from, in place of where this machine has its own from
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Passed on to the test program, as the names of tests
    #[arg(last = true)]
    args: Vec<String>,
}

/// A kernel to test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Running,
    Debian(&'static Release),
}

impl Which {
    fn all() -> impl Iterator<Item = Self> {
        kernels::RELEASES.iter().map(Self::Debian).chain([Self::Running])
    }

    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Debian(release) => release.name,
        }
    }

    fn asked(self) -> Asked {
        match self {
            Self::Running => Asked::Usual,
            Self::Debian(release) => release.asked,
        }
    }
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all().find(|which| which.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::all().map(Self::name).collect();
            format!("there are {}", names.join(", "))
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let asked = if args.all { Asked::All } else { Asked::Usual };
    let chosen: Vec<Which> = match &args.kernel[..] {
        [] => Which::all().filter(|which| which.asked() <= asked).collect(),
        chosen => chosen.to_vec(),
    };
    let mut built = Built::new(args.quick);
    let (mut guests, mut all) = (Vec::new(), Vec::new());
    for which in &chosen {
        let Which::Debian(release) = which else { continue };
        println!("== {}: its kernel and its programs", release.name);
        match built.programs(release.machine).and_then(|programs| Guest::new(release, programs, args)) {
            Ok(guest) => guests.push(guest),
            Err(error) => all.push(Tested { which: *which, results: Err(error), took: Duration::ZERO }),
        }
    }
    all.extend(qemu::boot_all(guests));
    if chosen.contains(&Which::Running) {
        // Alone, as wherever the tests run.
        let begun = Instant::now();
        let results = built.programs(&AMD64).and_then(|programs| on_this(programs, &args.args));
        all.push(Tested { which: Which::Running, results, took: begun.elapsed() });
    }
    all.sort_by_key(|tested| Which::all().position(|which| which == tested.which));
    tell(&all)
}

/// What came of a kernel.
struct Tested {
    which: Which,
    results: Result<Results>,
    took: Duration,
}

fn tell(all: &[Tested]) -> Result<()> {
    for Tested { which, results, .. } in all {
        println!("== {}", which.name());
        match results {
            Ok(results) => println!("{results}"),
            Err(error) => println!("{error:#}"),
        }
    }
    println!("== all");
    let mut failed = Vec::new();
    for Tested { which, results, took } in all {
        let (seconds, name) = (took.as_secs(), which.name());
        match results {
            Ok(results) => println!("{name:<10} {seconds:>4} s  {}", results.summary()),
            Err(error) => println!("{name:<10} {seconds:>4} s  {error:#}"),
        }
        if !results.as_ref().is_ok_and(Results::is_good) {
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
    Ok(())
}

/// What the test program is told, besides what the caller wants: to show what it printed on success, too.
const TEST_ARGS: [&str; 1] = ["--show-output"];

fn on_this(programs: &Programs, args: &[String]) -> Result<Results> {
    let mut check = process::as_root(&programs.tracer)?;
    let _ = check.arg("check").status();
    let mut command = process::as_root(&programs.tests)?;
    command.args(TEST_ARGS).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut tests = command.spawn().with_context(|| format!("cannot start {}", process::shown(&command)))?;
    let mut lines = Vec::new();
    for line in BufReader::new(tests.stdout.take().context("the tests' output")?).lines() {
        let line = line.context("cannot read what the tests print")?;
        if results::is_worth_showing(&line) {
            println!("{line}");
        }
        lines.push(line);
    }
    tests.wait().context("cannot wait for the tests")?;
    Results::of(&lines)
}
