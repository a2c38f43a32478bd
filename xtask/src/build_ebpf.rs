//! `cargo xtask build-ebpf`: the BPF programs, from their sources to the object that `cargo build` embeds.
//!
//! The same sources and toolchain give the same bytes, on whatever machine and in whatever folder.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    elf, process,
    provenance::{self, Provenance},
    toolchain::{Origin, Rust, Toolchain},
    workspace,
};

const TARGET: &str = "bpfel-unknown-none";

/// Build the BPF programs and put the object where the tracer embeds it
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the object here, and what built it beside it
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Build with this toolchain only, in place of the first that is complete
    #[arg(long)]
    toolchain: Option<Origin>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| workspace::root().join(provenance::OBJECT));
    build(&out, args.toolchain)
}

/// Builds into target/: the object's path.
pub(crate) fn build_fresh() -> Result<PathBuf> {
    let out = workspace::target_dir()?.join("bpf").join("fresh.bpf.o");
    build(&out, None)?;
    Ok(out)
}

/// Builds, and writes `out` and the file beside it.
fn build(out: &Path, only: Option<Origin>) -> Result<()> {
    let toolchain = Toolchain::find(only).map_err(|missing| {
        anyhow::anyhow!("nothing here can build BPF programs: run `cargo xtask setup` ({missing:#})") //
    })?;
    eprintln!("building the BPF programs with {toolchain}");
    // The hash before the build: an edit during it must not pass for built.
    let sources_sha256 = provenance::hash_sources(workspace::root())?;
    let built = compile(&toolchain)?;
    let built = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let object = elf::strip(&built)?;
    let Toolchain { rust, linker } = toolchain;
    refuse_local_paths(&object, &rust)?;

    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    fs::write(out, &object).with_context(|| format!("cannot write {}", out.display()))?;
    let object_sha256 = provenance::hash_bytes(&object);
    let bpf_linker_llvm = linker.llvm.unwrap_or_else(|| "linked in".to_owned());
    let (rustc, rustc_llvm, bpf_linker) = (rust.version, rust.llvm, linker.version);
    Provenance { sources_sha256, object_sha256, rustc, rustc_llvm, bpf_linker, bpf_linker_llvm }.write(out)?;
    eprintln!("wrote {} ({} KiB; with DWARF {} KiB)", out.display(), object.len() / 1024, built.len() / 1024);
    Ok(())
}

/// Builds with cargo, in a target folder of its own: the path of the object as the linker left it.
fn compile(toolchain: &Toolchain) -> Result<PathBuf> {
    let Toolchain { rust, linker } = toolchain;
    let target_dir = workspace::target_dir()?.join("bpf").join(match rust.origin {
        Origin::Nightly => "nightly",
        Origin::Distribution => "distribution",
    });
    let mut flags: Vec<OsString> = vec![
        // BTF is made from debug information.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        concat_os("-Clinker=", linker.path.as_os_str()),
        // aya-ebpf would take the architecture of the machine that builds. No program here depends on it (none reads
        // registers), so that one object serves every little-endian machine.
        "--cfg=bpf_target_arch=\"x86_64\"".into(),
    ];
    for (from, to) in local_paths(rust)? {
        let mut flag = concat_os("--remap-path-prefix=", from.as_os_str());
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    }
    let mut command = rust.cargo();
    command
        .current_dir(workspace::root())
        .args(["build", "--quiet", "--release", "--locked", "--package", "tracer-ebpf", "--features", "programs"])
        .args(["--bin", "tracer-ebpf", "--target", TARGET, "-Zbuild-std=core"])
        // The workspace's profile is about the tracer; one unit keeps the order of things the same from build to build.
        .args(["--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.debug=2"])
        .args(["--config", "profile.release.lto=\"fat\""])
        .arg("--target-dir")
        .arg(&target_dir)
        // Unlike RUSTFLAGS, this allows for spaces in paths.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\x1f")));
    // The whole command line would bury what cargo has said.
    let status = command.status().with_context(|| format!("cannot start the cargo of {}", rust.origin))?;
    ensure!(status.success(), "the BPF programs do not build with {}: see above ({status})", rust.origin);
    Ok(target_dir.join(TARGET).join("release/tracer-ebpf"))
}

fn concat_os(left: &str, right: &std::ffi::OsStr) -> OsString {
    let mut whole = OsString::from(left);
    whole.push(right);
    whole
}

/// The folders that sources lie in on this machine, and what they are called in the object.
fn local_paths(rust: &Rust) -> Result<Vec<(PathBuf, &'static str)>> {
    let metadata = workspace::metadata(true)?;
    let aya = metadata.packages.iter().find(|package| package.name.as_str() == "aya-ebpf");
    let aya = aya.context("aya-ebpf is not among the packages of the workspace")?;
    // …/registry/src/NAME-HASH/aya-ebpf-VERSION/Cargo.toml
    let registry = aya.manifest_path.ancestors().nth(2).context("aya-ebpf lies in no registry")?;
    let library = rust.library();
    let mut paths = vec![
        (workspace::root().to_path_buf(), "tracer"),
        (registry.to_path_buf().into_std_path_buf(), "crates"),
        (library.clone(), "rust"),
    ];
    // A distribution's library may be a link to elsewhere, and the compiler names either.
    if let Ok(real) = library.canonicalize() {
        paths.push((real, "rust"));
    }
    Ok(paths)
}

/// No one else has this machine's folders, and none of them concerns anyone.
fn refuse_local_paths(object: &[u8], rust: &Rust) -> Result<()> {
    let mut paths: Vec<_> = local_paths(rust)?.into_iter().map(|(path, _)| path).collect();
    paths.push(workspace::target_dir()?);
    paths.extend(process::cargo_home());
    paths.extend(env::home_dir());
    for path in paths {
        let text = path.as_os_str().as_encoded_bytes();
        let contains = text.len() > 1 && object.windows(text.len()).any(|window| window == text);
        ensure!(!contains, "the BPF object names the folder {}: extend local_paths in build_ebpf.rs", path.display());
    }
    Ok(())
}
