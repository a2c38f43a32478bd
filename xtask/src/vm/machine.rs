//! The computers that QEMU plays: what they are called by Debian, rustc and QEMU, and what it takes to build for them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{process, workspace};

/// One kind of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// As Debian calls it.
    pub(super) debian: &'static str,
    /// As rustc calls it.
    pub(super) target: &'static str,
    qemu: &'static str,
    /// Debian's package with that.
    qemu_package: &'static str,
    pub(super) qemu_args: &'static [&'static str],
    pub(super) console: &'static str,
    /// What it takes to build for it, where this computer is another one.
    cross: Option<Cross>,
}

#[derive(Debug, PartialEq, Eq)]
struct Cross {
    linker: &'static str,
    /// Which tells cargo of it.
    variable: &'static str,
    /// Debian's packages with it.
    packages: &'static [&'static str],
}

pub(super) const AMD64: Machine = Machine {
    debian: "amd64",
    target: "x86_64-unknown-linux-gnu",
    qemu: "qemu-system-x86_64",
    qemu_package: "qemu-system-x86",
    // Without cmpxchg16b: QEMU 7.2 gets its flags wrong, and the allocator of Linux 6.12 does not survive that.
    qemu_args: &["-cpu", "qemu64,-cx16"],
    console: "ttyS0",
    cross: None,
};

pub(super) const ARM64: Machine = Machine {
    debian: "arm64",
    target: "aarch64-unknown-linux-gnu",
    qemu: "qemu-system-aarch64",
    qemu_package: "qemu-system-arm",
    // Not `max`: signing pointers in software takes longer than all the rest.
    qemu_args: &["-machine", "virt", "-cpu", "cortex-a72"],
    console: "ttyAMA0",
    cross: Some(Cross {
        linker: "aarch64-linux-gnu-gcc",
        variable: "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
        packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
    }),
};

impl Machine {
    /// QEMU, installed if it is missing.
    pub(super) fn qemu(&self) -> Result<PathBuf> {
        find_or_install(self.qemu, &[self.qemu_package])
    }

    /// What cargo must be told to build for it; installs what that takes and is missing.
    pub(super) fn build_settings(&self) -> Result<Vec<(&'static str, String)>> {
        let mut settings = vec![("RUSTFLAGS", "-Ctarget-feature=+crt-static".to_owned())];
        if let Some(cross) = &self.cross {
            find_or_install(cross.linker, cross.packages)?;
            self.add_rust_library()?;
            settings.push((cross.variable, cross.linker.to_owned()));
        }
        Ok(settings)
    }

    /// Rust's library for it, by rustup.
    fn add_rust_library(&self) -> Result<()> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut ask = Command::new(rustc);
        ask.args(["--print", "target-libdir", "--target", self.target]).current_dir(workspace::root());
        if Path::new(process::output(&mut ask)?.trim_end()).exists() {
            return Ok(());
        }
        println!("Rust's library for {} is missing", self.target);
        let rustup = process::find("rustup").with_context(|| {
            format!(
                "Rust's library for {} is missing, and there is no rustup to add it: install it by hand",
                self.target
            )
        })?;
        process::succeed(Command::new(rustup).args(["target", "add", self.target]).current_dir(workspace::root()))
            .with_context(|| format!("cannot add Rust's library for {}", self.target))
    }
}

/// A program, installed with apt if it is missing.
fn find_or_install(program: &str, packages: &[&str]) -> Result<PathBuf> {
    if process::find(program).is_none() {
        println!("{program} is missing; Debian has it in {}", packages.join(" "));
        install(packages).with_context(|| format!("install {program} by hand"))?;
    }
    process::find(program).with_context(|| format!("{program} is missing: install it by hand"))
}

fn install(packages: &[&str]) -> Result<()> {
    ensure!(process::find("apt-get").is_some(), "there is no apt-get here");
    process::succeed(process::as_root("apt-get")?.arg("update"))?;
    let mut install = process::as_root("env")?;
    install.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "--no-install-recommends"]);
    process::succeed(install.args(packages).stdin(Stdio::null()))
}
