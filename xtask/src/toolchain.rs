//! What builds BPF programs: a Rust compiler that brings the sources of `core` (no channel ships `core` for BPF), and
//! bpf-linker, which turns the compiler's LLVM bitcode into BPF and so must know that LLVM.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{elf, read::elf::ElfFile64};

use crate::process;

/// The version that is known to work, and what `setup` installs.
pub(crate) const BPF_LINKER: &str = "0.13.0";
/// Below this, the workspace does not build.
const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// Where the compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Origin {
    /// rustup's nightly with the component rust-src
    Nightly,
    /// /usr/bin/cargo and /usr/bin/rustc with their library sources
    Distribution,
}

impl Origin {
    /// In the order of preference: a nightly is newer, a distribution's LLVM more of one piece.
    pub(crate) const ALL: [Self; 2] = [Self::Nightly, Self::Distribution];

    /// Its rustc.
    fn rustc(self) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut command = Command::new(process::find("rustup").unwrap_or_else(|| "rustup".into()));
                // To look for a toolchain must not download one.
                command.args(["run", "nightly", "rustc"]);
                command
            }
            Self::Distribution => Command::new("/usr/bin/rustc"),
        };
        clean(&mut command);
        // To look for a toolchain must not download one.
        command.env("RUSTUP_AUTO_INSTALL", "0");
        command
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nightly => "rustup's nightly",
            Self::Distribution => "/usr/bin/rustc",
        })
    }
}

/// Takes from the environment everything that steers cargo, rustc or rustup, but for where things are kept and how the
/// network is reached: the object must not depend on who builds it, nor a nightly be told to be the stable that runs this.
fn clean(command: &mut Command) {
    const KEPT: [&str; 10] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "RUSTUP_HOME",
        "RUSTUP_DIST_",
        "RUSTUP_UPDATE_ROOT",
    ];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let steers = text.starts_with("CARGO") || text.starts_with("RUST");
        if steers && !KEPT.iter().any(|kept| text.starts_with(kept)) {
            command.env_remove(&name);
        }
    }
}

/// A compiler with the sources of its library.
pub(crate) struct Rust {
    pub(crate) origin: Origin,
    /// As `rustc --version` tells it.
    pub(crate) version: String,
    /// The version of the LLVM in it.
    pub(crate) llvm: String,
    pub(crate) sysroot: PathBuf,
}

impl Rust {
    /// What there is of this origin, or what is missing.
    pub(crate) fn find(origin: Origin) -> Result<Self> {
        let verbose =
            process::output(origin.rustc().arg("-vV")).map_err(|_| anyhow::anyhow!("{origin} is not installed"))?;
        let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (release, llvm) = field("release:").zip(field("LLVM version:")).with_context(|| {
            format!("{origin} does not say its versions (`rustc -vV`)") //
        })?;
        ensure!(
            version(release) >= OLDEST_RUSTC,
            "{origin} is {release}, and {}.{} is needed",
            OLDEST_RUSTC.0,
            OLDEST_RUSTC.1
        );
        let sysroot = process::output(origin.rustc().args(["--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot.trim_end());
        let found = Self {
            origin,
            version: verbose.lines().next().unwrap_or_default().to_owned(),
            llvm: llvm.to_owned(),
            sysroot,
        };
        ensure!(found.library().join("Cargo.lock").exists(), "{origin} {release} has no library sources (rust-src)");
        Ok(found)
    }

    /// The sources of `core`.
    pub(crate) fn library(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// The compiler's own LLVM, where it is a file of its own.
    pub(crate) fn own_llvm(&self) -> Option<PathBuf> {
        let lib = fs::read_dir(self.sysroot.join("lib")).ok()?;
        let mut files = lib.filter_map(|entry| Some(entry.ok()?.path()));
        files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libLLVM.so.")))
    }

    /// This toolchain's cargo, free of what the cargo that runs this set for its own.
    pub(crate) fn cargo(&self) -> Command {
        let bin = self.sysroot.join("bin");
        let mut command = Command::new(bin.join("cargo"));
        clean(&mut command);
        // cargo would take any rustc that is first on PATH.
        command.env("RUSTC", bin.join("rustc"));
        if self.origin == Origin::Distribution {
            // A stable compiler: -Z build-std is for those who say that they know.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

/// A bpf-linker that runs.
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    /// As `bpf-linker --version` tells it.
    pub(crate) version: String,
    /// The version of its LLVM; unknown when that is linked in, as in the released binaries.
    pub(crate) llvm: Option<String>,
}

impl Linker {
    /// The one on this machine, or what is wrong with it.
    pub(crate) fn find() -> Result<Self> {
        let path = process::find("bpf-linker").context("bpf-linker is not installed")?;
        let version = process::output(Command::new(&path).arg("--version"))
            .with_context(|| format!("{} does not run (the LLVM it was built with is gone?)", path.display()))?;
        let llvm = linked_llvm(&path);
        Ok(Self { path, version: version.trim().to_owned(), llvm })
    }
}

/// Which libLLVM a program asks the dynamic loader for: "22.1" of `libLLVM.so.22.1`.
fn linked_llvm(program: &Path) -> Option<String> {
    let data = fs::read(program).ok()?;
    let file = ElfFile64::<object::Endianness>::parse(&*data).ok()?;
    let table = file.elf_dynamic_table().ok()?;
    let needed = table.iter().filter(|entry| entry.tag == elf::DT_NEEDED);
    needed.filter_map(|entry| str::from_utf8(table.string(entry).ok()?).ok()).find_map(|library| {
        let version = library.strip_prefix("libLLVM")?.trim_start_matches(".so").trim_start_matches(['.', '-']);
        let version = version.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
        Some(version.trim_end_matches('.').to_owned())
    })
}

/// A compiler and a linker that fit.
pub(crate) struct Toolchain {
    pub(crate) rust: Rust,
    pub(crate) linker: Linker,
}

impl Toolchain {
    /// The first that is complete, of `only` this origin if given. The error says what is missing, for each.
    pub(crate) fn find(only: Option<Origin>) -> Result<Self> {
        let mut missing = Vec::new();
        for origin in Origin::ALL.into_iter().filter(|origin| only.is_none_or(|only| only == *origin)) {
            match Rust::find(origin).and_then(Self::with_linker) {
                Ok(found) => return Ok(found),
                Err(error) => missing.push(format!("{error:#}")),
            }
        }
        bail!("{}", missing.join("; "))
    }

    fn with_linker(rust: Rust) -> Result<Self> {
        let linker = Linker::find()?;
        if let Some(llvm) = &linker.llvm {
            // LLVM reads bitcode of older versions, never of newer ones.
            ensure!(
                version(llvm).0 >= version(&rust.llvm).0,
                "{} has LLVM {}, which {} with LLVM {llvm} cannot read",
                rust.origin,
                rust.llvm,
                linker.path.display(),
            );
        }
        Ok(Self { rust, linker })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rust, linker } = self;
        let llvm = linker.llvm.as_ref().map(|llvm| format!(", LLVM {llvm}")).unwrap_or_default();
        write!(f, "{} ({}, LLVM {}) and {}{llvm}", rust.origin, rust.version, rust.llvm, linker.version)
    }
}

/// Major and minor of "1.96.0-nightly".
pub(crate) fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(version("1.101.0-nightly"), (1, 101));
        assert_eq!(version("22.1"), (22, 1));
        assert_eq!(version("23"), (23, 0));
        assert!(version("1.101.0-nightly") > version("1.96.0"));
    }
}
