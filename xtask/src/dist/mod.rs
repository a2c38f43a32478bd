//! `cargo xtask dist`: what is given to others, in target/dist: the program as one static file, its debug information, a
//! Debian package with manual pages, completions and the unit of the recording service, and checksums of these.

mod check;
mod licences;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::{process, workspace};

/// The version that is known to work.
const CARGO_DEB: &str = "3.8.0";

/// Where each shell looks for completions, and under which name.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "tracer"), ("zsh", "_tracer"), ("fish", "tracer.fish")];

/// Build the static program, the Debian package and checksums, in target/dist
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Then install the package with apt-get, try it, and remove it (through sudo when not root)
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.check {
        check::nothing_is_installed()?;
    }
    let host = host()?;
    let cargo_deb = cargo_deb()?;
    let built = build(&host)?;
    let profile = built.parent().context("the program is in no folder")?;
    let package = profile.join("package");
    renew(&package)?;
    strip(&built, &package)?;
    write_texts(&package)?;
    licences::write(&package.join("LICENSES-THIRD-PARTY"))?;
    compress(&package)?;

    let dist = workspace::target_dir()?.join("dist");
    renew(&dist)?;
    let deb = make_deb(&cargo_deb, &host, &dist)?;
    let name = format!("tracer-{}-{host}", env!("CARGO_PKG_VERSION"));
    let copies = [("tracer", name.clone()), ("tracer.debug", format!("{name}.debug"))];
    for (from, to) in &copies {
        fs::copy(package.join(from), dist.join(to)).with_context(|| format!("cannot copy {from} to {to}"))?;
    }
    write_checksums(&dist)?;
    if args.check {
        check::run(&deb, &package.join("man"))?;
    }
    Ok(())
}

/// An empty folder.
fn renew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// What this machine's compiler builds for.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = process::output(Command::new(rustc).arg("-vV").current_dir(workspace::root()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    ensure!(host.contains("linux"), "the tracer is for Linux, and this is {host}");
    Ok(host.to_owned())
}

/// cargo-deb of the version above, below target/ if it is not installed: whoever builds packages need not know of it.
fn cargo_deb() -> Result<PathBuf> {
    let has_version = |program: &Path| {
        let version = process::output(Command::new(program).arg("--version"));
        version.is_ok_and(|version| version.split_whitespace().any(|word| word == CARGO_DEB))
    };
    if let Some(found) = process::find("cargo-deb").filter(|found| has_version(found)) {
        return Ok(found);
    }
    let root = workspace::target_dir()?.join("tools");
    let program = root.join("bin/cargo-deb");
    if has_version(&program) {
        return Ok(program);
    }
    let mut install = workspace::cargo();
    install.args(["install", "cargo-deb", "--version", CARGO_DEB, "--locked", "--force", "--root"]).arg(&root);
    process::succeed(&mut install).with_context(|| {
        format!(
            "cannot install cargo-deb {CARGO_DEB}, which makes the package: this needs crates.io, or that it is on PATH"
        )
    })?;
    Ok(program)
}

/// The program, static and with debug information. The machine's paths stay out of it: with the same compiler it is the
/// same wherever it is built.
fn build(host: &str) -> Result<PathBuf> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    let cargo_home = process::cargo_home().context("neither CARGO_HOME nor HOME is set")?;
    for (from, to) in [(cargo_home.as_path(), "/cargo"), (workspace::root(), "/tracer")] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let args = ["--locked", "--profile", "distribution", "--target", host, "--package", "tracer", "--bin", "tracer"];
    // Separated by 0x1f, so that a path may have spaces.
    workspace::build_executable_with(&args, "tracer", &[("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))])
}

/// Parts the program from its debug information, which few will want to download.
fn strip(built: &Path, to: &Path) -> Result<()> {
    let objcopy = process::find("objcopy").context("objcopy is missing (Debian: apt-get install binutils)")?;
    let (program, debug) = (to.join("tracer"), to.join("tracer.debug"));
    process::succeed(Command::new(&objcopy).arg("--only-keep-debug").arg(built).arg(&debug))?;
    let link = format!("--add-gnu-debuglink={}", debug.display());
    process::succeed(Command::new(&objcopy).args(["--strip-all", &link]).arg(built).arg(&program))?;
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    set_mode(&program, 0o755).and_then(|()| set_mode(&debug, 0o644)).context("cannot set the mode of the program")
}

/// Manual pages and completions, as the program itself gives them.
fn write_texts(package: &Path) -> Result<()> {
    let tracer = |args: &[&str]| process::output(Command::new(package.join("tracer")).args(args));
    let write = |folder: &str, name: &str, text: String| {
        let folder = package.join(folder);
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join(name), text))
            .with_context(|| format!("cannot write {name} below {}", package.display()))
    };
    write("man", "tracer.1", tracer(&["man"])?)?;
    let commands = commands_in(&tracer(&["--help"])?);
    ensure!(!commands.is_empty(), "tracer --help lists no commands");
    for command in commands {
        write("man", &format!("tracer-{command}.1"), tracer(&["man", &command])?)?;
    }
    for (shell, name) in COMPLETIONS {
        write("completions", name, tracer(&["completions", shell])?)?;
    }
    Ok(())
}

/// As Debian wants manual pages and long documents. -n: without a time, so that the same is the same.
fn compress(package: &Path) -> Result<()> {
    let pages = fs::read_dir(package.join("man")).context("cannot look for manual pages")?;
    let pages = pages.filter_map(|page| Some(page.ok()?.path()));
    let mut gzip = Command::new("gzip");
    process::succeed(gzip.args(["-9n"]).args(pages).arg(package.join("LICENSES-THIRD-PARTY")))
}

/// The commands that a help text lists, without `help` itself.
fn commands_in(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
}

fn make_deb(cargo_deb: &Path, host: &str, dist: &Path) -> Result<PathBuf> {
    let mut command = Command::new(cargo_deb);
    // As cargo would call it.
    command.current_dir(workspace::root()).args(["deb", "--no-build", "--no-strip", "--locked", "--quiet"]);
    command.args(["--package", "tracer", "--profile", "distribution", "--target", host, "--output"]).arg(dist);
    if std::env::var_os("SOURCE_DATE_EPOCH").is_none() {
        let mut last_commit = Command::new("git");
        last_commit.current_dir(workspace::root()).args(["log", "-1", "--format=%ct"]);
        // Without a repository the times in the package are those of its files.
        if let Ok(time) = process::output(&mut last_commit) {
            command.env("SOURCE_DATE_EPOCH", time.trim());
        }
    }
    process::succeed(&mut command)?;
    let files = fs::read_dir(dist).with_context(|| format!("cannot look into {}", dist.display()))?;
    let mut paths = files.filter_map(|entry| Some(entry.ok()?.path()));
    let deb = paths.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    deb.with_context(|| format!("cargo-deb has left no package in {}", dist.display()))
}

/// SHA256SUMS, as sha256sum(1) checks it.
fn write_checksums(dist: &Path) -> Result<()> {
    let cannot = || format!("cannot make checksums in {}", dist.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dist).with_context(cannot)? {
        names.push(entry.with_context(cannot)?.file_name());
    }
    names.sort();
    let mut sums = String::new();
    for name in names {
        let Some(name) = name.to_str() else { bail!("{} is no name for a release", name.display()) };
        let contents = fs::read(dist.join(name)).with_context(cannot)?;
        let sum: String = Sha256::digest(&contents).iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{:>9} KB  {}", contents.len() / 1000, dist.join(name).display());
        sums += &format!("{sum}  {name}\n");
    }
    fs::write(dist.join("SHA256SUMS"), sums).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_the_help_lists() {
        let help = "About.\n\nUsage: tracer\n\nCommands:\n  log     Every\n  man     Print\n          more\n  help    Print\n\nOptions:\n  -h\n";
        assert_eq!(commands_in(help), ["log", "man"]);
        assert!(commands_in("").is_empty());
    }
}
