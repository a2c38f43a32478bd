//! Whether the package installs, works and goes again without a trace, on this machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::COMPLETIONS;
use crate::{process, workspace};

const UNIT: &str = "/usr/lib/systemd/system/tracer-record.service";
/// Where programs that were linked to it would be, were it enabled.
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/tracer-record.service";
/// From 0 to 100, as systemd-analyze(1) rates it.
const MOST_EXPOSURE: &str = "30";

/// To be sure of before anything is built: nobody's own installation is to be tried on, or removed.
pub(super) fn nothing_is_installed() -> Result<()> {
    ensure!(process::find("apt-get").is_some(), "--check needs apt-get: it installs the package");
    ensure!(!is_known(), "--check installs tracer and removes it, and it is installed already: apt-get purge tracer");
    Ok(())
}

/// Whether dpkg knows the package, if only for what it has left behind.
fn is_known() -> bool {
    process::output(Command::new("dpkg-query").args(["--show", "tracer"])).is_ok()
}

/// Installs, tries and removes it, the last also when something was wrong.
pub(super) fn run(deb: &Path, pages: &Path) -> Result<()> {
    apt(&["install"], deb.as_os_str())?;
    let tried = installed_files(pages).and_then(|files| try_out(&files).map(|()| files));
    apt(&["remove"], "tracer".as_ref())?;
    let files = tried?;
    for file in &files {
        ensure!(!file.exists(), "{} is still there after apt-get remove", file.display());
    }
    apt(&["purge"], "tracer".as_ref())?;
    ensure!(!is_known(), "dpkg still knows the package after apt-get purge");
    let state = process::output(Command::new("find").args(["/var/lib/systemd", "/etc/systemd", "-name", "tracer*"]));
    ensure!(state.as_ref().is_ok_and(String::is_empty), "this is left behind: {state:?}");
    println!("installed, tried and removed: {}", deb.display());
    Ok(())
}

fn apt(args: &[&str], package: &std::ffi::OsStr) -> Result<()> {
    let mut command = process::as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "--no-install-recommends", "--quiet"]);
    process::succeed(command.args(args).arg(package).stdin(std::process::Stdio::null()))
}

/// The files of the package that are on the machine: dpkg may have been told to leave out documents.
fn installed_files(pages: &Path) -> Result<BTreeSet<PathBuf>> {
    let listed = process::output(Command::new("dpkg").args(["--listfiles", "tracer"]))?;
    let listed: BTreeSet<PathBuf> = listed.lines().map(PathBuf::from).collect();
    let mut wanted = vec![PathBuf::from("/usr/bin/tracer"), PathBuf::from(UNIT)];
    for page in fs::read_dir(pages).with_context(|| format!("cannot look into {}", pages.display()))? {
        let name = page.context("a manual page")?.file_name();
        wanted.push(PathBuf::from(format!("/usr/share/man/man1/{}", name.display())));
    }
    let folders = ["bash-completion/completions", "zsh/vendor-completions", "fish/vendor_completions.d"];
    let completions = folders.iter().zip(COMPLETIONS);
    wanted.extend(completions.map(|(folder, (_, name))| Path::new("/usr/share").join(folder).join(name)));
    let documents = ["copyright", "LICENSE-MIT", "LICENSE-APACHE", "LICENSES-THIRD-PARTY.gz", "service.md"];
    wanted.extend(documents.map(|name| Path::new("/usr/share/doc/tracer").join(name)));
    for path in wanted {
        ensure!(listed.contains(&path), "{} is not in the package", path.display());
    }
    Ok(listed.into_iter().filter(|path| path.is_file()).collect())
}

/// The program and the unit as they were installed.
fn try_out(files: &BTreeSet<PathBuf>) -> Result<()> {
    let tracer = || process::as_root("/usr/bin/tracer");
    let version = process::output(tracer()?.arg("--version"))?;
    ensure!(version == format!("tracer {}\n", env!("CARGO_PKG_VERSION")), "tracer --version says {version}");
    let page = Path::new("/usr/share/man/man1/tracer-record.1.gz");
    if files.contains(page) && process::find("man").is_some() {
        let found = process::output(Command::new("man").args(["--where", "tracer-record"]))?;
        ensure!(Path::new(found.trim()) == page, "man finds {found}");
    }
    process::output(tracer()?.args(["diagnose", "--snapshot"]))?;
    let folder = workspace::target_dir()?.join("dist-check");
    super::renew(&folder)?;
    let recording = folder.join("check.arrows");
    process::output(tracer()?.args(["record", "--duration", "300ms"]).arg(&recording))?;
    let length = recording.metadata().context("tracer record has made no file")?.len();
    ensure!(length > 0, "tracer record has written nothing");
    process::output(tracer()?.args(["log", "--from"]).arg(&recording))?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot delete {}", folder.display()))?;
    try_unit()
}

fn try_unit() -> Result<()> {
    ensure!(!Path::new(ENABLED).is_symlink(), "the service is enabled, which is for the user to do");
    let Some(analyze) = process::find("systemd-analyze") else {
        println!("left out: systemd-analyze is not here to check {UNIT}");
        return Ok(());
    };
    // It says what is wrong on standard error, and of much that is wrong it does not think that it is a failure.
    let verified = Command::new(&analyze).args(["verify", "--man=no", UNIT]).output().context("systemd-analyze")?;
    let said = String::from_utf8_lossy(&verified.stderr);
    let about = said.lines().find(|line| line.contains("tracer-record"));
    ensure!(verified.status.success() && about.is_none(), "systemd-analyze verify: {said}");
    let mut security = Command::new(&analyze);
    security.args(["security", "--offline=yes", "--no-pager", "--threshold", MOST_EXPOSURE, UNIT]);
    let rated = process::output(&mut security)?;
    println!("{}", rated.lines().last().unwrap_or_default());
    Ok(())
}
