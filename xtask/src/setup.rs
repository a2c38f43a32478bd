//! `cargo xtask setup`: installs what `build-ebpf`, `test` and `export` need and the machine lacks.
//!
//! For BPF programs there are two ways, and the first that works is taken: rustup's nightly with bpf-linker on that compiler's own LLVM, or
//! (where rustup cannot download) Debian's packages, which are one matching set of compiler, library sources and LLVM.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    export, process,
    toolchain::{BPF_LINKER, Origin, Rust, Toolchain, version},
    workspace,
};

const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];
/// The first rustc-web whose LLVM is the one of llvm-22-dev.
const DEBIAN_RUSTC: &str = "1.96";
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
/// The major versions of LLVM that this bpf-linker has a feature for.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Install what build-ebpf, test and export need
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print the commands only
    #[arg(long)]
    dry_run: bool,
    /// Install this toolchain only, in place of the first that can be had
    #[arg(long)]
    toolchain: Option<Origin>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let steps = Steps { dry_run: args.dry_run };
    if !export::has_python() {
        steps.packages("python3 with venv", &["python3-venv"])?;
    }
    if process::find("tmux").is_none() {
        steps.packages("tmux", &["tmux"])?;
    }
    let missing = match Toolchain::find(args.toolchain) {
        Ok(toolchain) => {
            println!("nothing to do: BPF programs build with {toolchain}");
            return Ok(());
        }
        Err(missing) => missing,
    };
    println!("to install: {missing:#}");
    let mut failed = Vec::new();
    for origin in Origin::ALL.into_iter().filter(|origin| args.toolchain.is_none_or(|only| only == *origin)) {
        let installed = match origin {
            Origin::Nightly => steps.nightly(),
            Origin::Distribution => steps.debian(),
        };
        match installed {
            Ok(()) if args.dry_run => println!("# if that fails:"),
            Ok(()) => match Toolchain::find(Some(origin)) {
                Ok(toolchain) => {
                    println!("done: BPF programs build with {toolchain}");
                    return Ok(());
                }
                Err(error) => failed.push(error),
            },
            Err(error) => failed.push(error),
        }
        if let (false, Some(error)) = (args.dry_run, failed.last()) {
            println!("{origin} cannot be used: {error:#}");
        }
    }
    if args.dry_run {
        println!("# {}", by_hand());
        return Ok(());
    }
    bail!("cannot install what build-ebpf needs; {}", by_hand())
}

fn by_hand() -> String {
    format!(
        "by hand: install rustup, type `rustup toolchain install nightly --component rust-src`, and put on PATH a bpf-linker \
         {BPF_LINKER} with the LLVM of that nightly (its releases have binaries; `rustc +nightly -vV` tells the LLVM)"
    )
}

/// Commands, run or just shown.
struct Steps {
    dry_run: bool,
}

impl Steps {
    fn step(&self, command: &mut Command) -> Result<()> {
        println!("$ {}", process::shown(command));
        if self.dry_run { Ok(()) } else { process::succeed(command.stdin(Stdio::null())) }
    }

    /// rustup's nightly, and a linker with its LLVM.
    fn nightly(&self) -> Result<()> {
        let mut rust = Rust::find(Origin::Nightly);
        if rust.is_err() {
            let rustup = process::find("rustup").context("rustup is not installed")?;
            let mut install = Command::new(rustup);
            install.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
            // rustup itself is not this command's business, and may come from a package that cannot be updated so.
            install.arg("--no-self-update");
            self.step(&mut install)?;
            rust = Rust::find(Origin::Nightly);
        }
        match rust {
            Ok(rust) => self.linker_for(&rust),
            // Nothing was installed, so there is nothing to find.
            Err(_) if self.dry_run => {
                println!("# and bpf-linker {BPF_LINKER} on the LLVM of that nightly (`cargo install`, as below)");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// bpf-linker on the LLVM that comes with a rustup toolchain.
    fn linker_for(&self, rust: &Rust) -> Result<()> {
        let major = version(&rust.llvm).0;
        ensure!(
            LINKER_LLVM.contains(&major),
            "bpf-linker {BPF_LINKER} cannot be built with LLVM {} of {}",
            rust.llvm,
            rust.version
        );
        let llvm = rust.own_llvm().with_context(|| format!("{} has no libLLVM.so of its own", rust.version))?;
        // bpf-linker's build looks for this name in this layout.
        let prefix = workspace::target_dir()?.join("bpf").join(format!("llvm-{major}"));
        let link = prefix.join("lib/libLLVM.so");
        println!("$ mkdir -p {0}/lib && ln -sf {1} {0}/lib/libLLVM.so", prefix.display(), llvm.display());
        if !self.dry_run {
            fs::create_dir_all(prefix.join("lib")).with_context(|| format!("cannot make {}", prefix.display()))?;
            if link.symlink_metadata().is_ok() {
                fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
            }
            symlink(&llvm, &link).with_context(|| format!("cannot make the link {}", link.display()))?;
        }
        self.linker(&prefix, &format!("llvm-{major}"), llvm.parent().map(Path::to_path_buf))
    }

    /// bpf-linker on the LLVM in `prefix`, which it finds again in `rpath` when it runs.
    fn linker(&self, prefix: &Path, feature: &str, rpath: Option<PathBuf>) -> Result<()> {
        let mut install = workspace::cargo();
        install.args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--no-default-features",
            "--features",
            feature,
        ]);
        // --force: there may be one of the same version with another LLVM, or with the same one of a nightly that is gone.
        install.args(["--locked", "--force"]).env("LLVM_PREFIX", prefix);
        if let Some(rpath) = rpath {
            install.env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", rpath.display()));
        }
        self.step(&mut install)
    }

    /// Debian's packages, and a linker with their LLVM.
    fn debian(&self) -> Result<()> {
        if Rust::find(Origin::Distribution).is_err() || !Path::new(DEBIAN_LLVM).join("lib/libLLVM.so").exists() {
            ensure!(process::find("apt-get").is_some(), "this is no Debian-like system (no apt-get)");
            self.step(process::as_root("apt-get")?.arg("update"))?;
            if !self.dry_run {
                debian_has_rustc()?;
            }
            // The names are Debian's for the compilers that its browsers are built with, newer than the release's own.
            self.apt_install(&DEBIAN_PACKAGES)?;
        }
        self.linker(Path::new(DEBIAN_LLVM), "llvm-22", None)
    }

    /// What tests need besides Rust: a Python that can make virtual environments, a terminal for the screen.
    fn packages(&self, what: &str, packages: &[&str]) -> Result<()> {
        ensure!(process::find("apt-get").is_some(), "{what} is missing: install it by hand");
        self.step(process::as_root("apt-get")?.arg("update"))?;
        self.apt_install(packages)
    }

    fn apt_install(&self, packages: &[&str]) -> Result<()> {
        let mut install = process::as_root("env")?;
        install.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends"]);
        self.step(install.args(packages))
    }
}

/// Fails when apt offers no compiler that is new enough.
fn debian_has_rustc() -> Result<()> {
    let policy = process::output(Command::new("apt-cache").args(["policy", DEBIAN_PACKAGES[0]]).env("LC_ALL", "C"))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    let candidate = candidate.filter(|candidate| *candidate != "(none)");
    let candidate = candidate.with_context(|| format!("apt has no package {}", DEBIAN_PACKAGES[0]))?;
    ensure!(
        version(candidate) >= version(DEBIAN_RUSTC),
        "apt has {} {candidate}, and {DEBIAN_RUSTC} is needed",
        DEBIAN_PACKAGES[0]
    );
    Ok(())
}
