//! `cargo xtask vm`: the kernel tests, as one program, on the kernels of Debian's releases in QEMU and on this one.
//!
//! The guest has that program, `tracer` itself and busybox, no disk and no network. Nothing is installed but QEMU, if
//! it is missing; kernels come as packages and stay below target/.

mod guest;
mod kernels;
mod machine;
mod results;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    kernels::{Asked, Release},
    machine::{AMD64, Machine},
    results::Results,
};
use crate::{process, workspace};

/// Longer than any run takes in software on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

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

    fn machine(self) -> &'static Machine {
        match self {
            Self::Running => &AMD64,
            Self::Debian(release) => release.machine,
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
    let mut built = Built { quick: args.quick, programs: Vec::new() };
    let mut all = Vec::new();
    for which in chosen {
        println!("== {}", which.name());
        let programs = built.programs(which.machine());
        let begun = Instant::now();
        let tested = programs.and_then(|programs| match which {
            Which::Running => on_this(programs, &args.args),
            Which::Debian(release) => in_qemu(release, programs, args),
        });
        match &tested {
            Ok(results) => println!("{results}"),
            Err(error) => println!("{error:#}"),
        }
        all.push((which, tested, begun.elapsed()));
    }
    println!("== all");
    let mut failed = Vec::new();
    for (which, tested, took) in &all {
        let (seconds, name) = (took.as_secs(), which.name());
        match tested {
            Ok(results) => println!("{name:<10} {seconds:>4} s  {}", results.summary()),
            Err(error) => println!("{name:<10} {seconds:>4} s  {error:#}"),
        }
        if !tested.as_ref().is_ok_and(Results::is_good) {
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
    Ok(())
}

/// What runs on every kernel.
pub(crate) struct Programs {
    tests: PathBuf,
    tracer: PathBuf,
    /// What they need there; nothing when they are static.
    libraries: Vec<PathBuf>,
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
struct Built {
    quick: bool,
    programs: Vec<(&'static Machine, Programs)>,
}

impl Built {
    fn programs(&mut self, machine: &'static Machine) -> Result<&Programs> {
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

fn in_qemu(release: &Release, programs: &Programs, args: &Args) -> Result<Results> {
    let folder = workspace::target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let qemu = release.machine.qemu()?;
    let mirror = args.mirror.as_deref();
    let busybox = kernels::busybox(release.machine, &folder, mirror)?;
    let kernel = kernels::fetch(release, &folder, mirror)?;
    let initramfs = folder.join(format!("{}.cpio", release.name));
    guest::write(&initramfs, &kernel, &busybox, programs, &args.args)?;
    let mut command = Command::new(qemu);
    // With a thread for each processor one may run into a breakpoint for ever that the kernel has taken away (QEMU 7.2).
    command.args(["-accel", "tcg,thread=single"]);
    command.args(["-m", "2048", "-smp", "2", "-nographic", "-no-reboot", "-net", "none"]);
    command.args(release.machine.qemu_args).arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
    let console = release.machine.console;
    command.arg("-append").arg(format!("console={console} quiet panic=-1 mitigations=off nokaslr"));
    boot(&mut command, &folder.join(format!("{}.log", release.name)))
}

/// Boots the guest and reads its console to the end. All of it goes to `log`.
fn boot(command: &mut Command, log: &Path) -> Result<Results> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut guest = command.spawn().with_context(|| format!("cannot start {}", process::shown(command)))?;
    let console = BufReader::new(guest.stdout.take().context("the guest's console")?);
    let (sender, lines) = channel();
    thread::spawn(move || {
        // Boot messages need not be text.
        for line in console.split(b'\n').map_while(Result::ok) {
            let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    });
    let mut whole = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let deadline = Instant::now() + PATIENCE;
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(whole, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
                if let Some(line) = line.strip_prefix(guest::SAYS) {
                    println!("{line}");
                } else if results::is_worth_showing(&line) {
                    println!("{line}");
                }
                said.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = guest.kill();
                let _ = guest.wait();
                bail!(
                    "the guest did not end within {} minutes; its console is in {}",
                    PATIENCE.as_secs() / 60,
                    log.display()
                );
            }
        }
    }
    let status = guest.wait().context("cannot wait for QEMU")?;
    ensure!(status.success(), "{status} from {}", process::shown(command));
    Results::of(&said).with_context(|| format!("the guest's console is in {}", log.display()))
}
