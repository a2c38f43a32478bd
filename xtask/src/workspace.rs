//! The workspace: where it is, what cargo says about it, and building its programs.

use std::{
    env,
    ffi::OsString,
    io::BufReader,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Message, Metadata, MetadataCommand};

use crate::process;

/// The folder of the workspace's Cargo.toml.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The cargo that runs this, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// The workspace's packages; with those of the registry when `deps`.
pub(crate) fn metadata(deps: bool) -> Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.current_dir(root());
    if deps {
        command.features(cargo_metadata::CargoOpt::AllFeatures);
    } else {
        command.no_deps();
    }
    command.exec().context("cannot read the workspace with `cargo metadata`")
}

/// Where cargo builds: target/, unless the environment or a configuration file says otherwise.
pub(crate) fn target_dir() -> Result<PathBuf> {
    Ok(metadata(false)?.target_directory.into_std_path_buf())
}

/// Builds with `cargo build ARGS`, and says where the executable of the target `name` is.
pub(crate) fn build_executable(args: &[&str], name: &str) -> Result<PathBuf> {
    build_executable_with(args, name, &[])
}

/// Likewise, with this in the environment.
pub(crate) fn build_executable_with(args: &[&str], name: &str, environment: &[(&str, String)]) -> Result<PathBuf> {
    let mut executables = build(args, environment)?;
    let found = executables.iter().position(|(target, _)| target == name);
    let found = found.with_context(|| format!("cargo built no executable `{name}`: is it still in the workspace?"))?;
    Ok(executables.swap_remove(found).1)
}

/// Builds with `cargo build ARGS`: the executables' names and where they are.
pub(crate) fn build_executables(args: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    build(args, &[])
}

/// Likewise, with this in the environment.
pub(crate) fn build_executables_with(args: &[&str], environment: &[(&str, String)]) -> Result<Vec<(String, PathBuf)>> {
    build(args, environment)
}

fn build(args: &[&str], environment: &[(&str, String)]) -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo();
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.arg("build").args(args).arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut build = command.spawn().with_context(|| format!("cannot start {}", process::shown(&command)))?;
    let mut executables = Vec::new();
    if let Some(stdout) = build.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Message::CompilerArtifact(artifact) = message.context("cannot read cargo's messages")?
                && let Some(path) = artifact.executable
            {
                executables.push((artifact.target.name, path.into_std_path_buf()));
            }
        }
    }
    let status = build.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("{status} from {}", process::shown(&command));
    }
    Ok(executables)
}
