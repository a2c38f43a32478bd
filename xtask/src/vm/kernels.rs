//! Kernels of Debian's releases, as packages that are unpacked below target/ and stay there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::machine::{AMD64, ARM64, Machine};
use crate::process;

/// A kernel of one of Debian's releases.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Release {
    /// What it is called here.
    pub(super) name: &'static str,
    suite: &'static str,
    /// `cloud` is small; `rt` has the patches, later the setting, for real time.
    flavour: &'static str,
    pub(super) machine: &'static Machine,
    pub(super) asked: Asked,
}

/// What is asked for when it is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// Nothing.
    Usual,
    /// It takes long, or a toolchain of its own.
    All,
}

pub(super) const RELEASES: [Release; 6] = {
    use Asked::{All, Usual};
    [
        Release { name: "5.10", suite: "bullseye", flavour: "cloud", machine: &AMD64, asked: Usual },
        Release { name: "6.1", suite: "bookworm", flavour: "cloud", machine: &AMD64, asked: Usual },
        Release { name: "6.12", suite: "trixie", flavour: "cloud", machine: &AMD64, asked: Usual },
        Release { name: "6.1-rt", suite: "bookworm", flavour: "rt", machine: &AMD64, asked: All },
        Release { name: "6.12-rt", suite: "trixie", flavour: "rt", machine: &AMD64, asked: All },
        Release { name: "6.12-arm64", suite: "trixie", flavour: "cloud", machine: &ARM64, asked: All },
    ]
};

/// Where busybox is taken from.
const NEWEST: &str = "trixie";

/// The modules that the tests need where they are not built in, in the order of their loading.
const MODULES: [&str; 4] = ["tun", "inet_diag", "tcp_diag", "mptcp_diag"];

/// A kernel that was unpacked.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// In the order of their loading.
    pub(super) modules: Vec<PathBuf>,
}

/// The kernel of a release, downloaded if it is not there yet.
pub(super) fn fetch(release: &Release, folder: &Path, mirror: Option<&str>) -> Result<Kernel> {
    let root = folder.join(release.name);
    if !root.exists() {
        let apt = Apt::new(release.suite, release.machine, folder, mirror)?;
        // Whatever the newest one is called.
        let newest = format!("linux-image-{}-{}", release.flavour, release.machine.debian);
        let depends = apt.cache(&["depends", &newest])?;
        let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        let image = image.with_context(|| format!("Debian {} has no {newest}", release.suite))?;
        apt.unpack(&format!("linux-image-{image}"), &root)?;
    }
    let files = files_below(&root)?;
    let find = |matches: &dyn Fn(&str) -> bool| {
        let name = |path: &&PathBuf| path.file_name().is_some_and(|name| matches(&name.to_string_lossy()));
        files.iter().find(name).cloned()
    };
    let image =
        find(&|name| name.starts_with("vmlinuz-")).with_context(|| format!("no kernel in {}", root.display()))?;
    let mut modules = Vec::new();
    for module in MODULES {
        let (plain, packed) = (format!("{module}.ko"), format!("{module}.ko.xz"));
        if let Some(found) = find(&|name| name == plain) {
            modules.push(found);
        } else if let Some(found) = find(&|name| name == packed) {
            process::succeed(Command::new("xz").arg("--decompress").arg(&found))?;
            modules.push(found.with_extension(""));
        }
    }
    Ok(Kernel { image, modules })
}

/// The static busybox.
pub(super) fn busybox(machine: &Machine, folder: &Path, mirror: Option<&str>) -> Result<PathBuf> {
    let root = folder.join(format!("busybox-{}", machine.debian));
    if !root.exists() {
        Apt::new(NEWEST, machine, folder, mirror)?.unpack("busybox-static", &root)?;
    }
    let found = files_below(&root)?.into_iter().find(|path| path.ends_with("bin/busybox"));
    found.with_context(|| format!("no busybox in {}", root.display()))
}

/// apt with a list of packages of its own: what this machine has installed, and from where, does not matter.
struct Apt<'a> {
    suite: &'a str,
    machine: &'a Machine,
    folder: PathBuf,
}

impl<'a> Apt<'a> {
    fn new(suite: &'a str, machine: &'a Machine, folder: &Path, mirror: Option<&str>) -> Result<Self> {
        for program in ["apt-get", "dpkg-deb", "xz"] {
            ensure!(process::find(program).is_some(), "{program} is missing, which Debian's kernels are unpacked with");
        }
        const KEYS: [&str; 2] =
            ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];
        let keys = KEYS.into_iter().find(|path| Path::new(path).exists());
        let keys = keys.context("Debian's keys are missing: apt-get install debian-archive-keyring")?;
        let mirror = mirror.map_or_else(own_mirror, |given| Ok(given.to_owned()))?;
        let this = Self { suite, machine, folder: folder.join("apt").join(format!("{suite}-{}", machine.debian)) };
        let make = |name: &str| {
            let path = this.folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))
        };
        make("lists/partial")?;
        make("cache/archives/partial")?;
        let write = |name: &str, text: &str| {
            let path = this.folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("status", "")?;
        write("sources.list", &format!("deb [signed-by={keys}] {mirror} {suite} main\n"))?;
        process::succeed(this.apt("apt-get").arg("update"))?;
        Ok(this)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let options = [
            ("Dir::Etc::sourcelist", self.folder.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::Etc::preferences", PathBuf::from("/dev/null")),
            ("Dir::Etc::preferencesparts", PathBuf::from("/dev/null")),
            ("Dir::State", self.folder.clone()),
            ("Dir::State::lists", self.folder.join("lists")),
            ("Dir::State::status", self.folder.join("status")),
            ("Dir::Cache", self.folder.join("cache")),
        ];
        for (name, path) in options {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        // Nothing but the packages' names and places; as whoever calls, into a folder of theirs.
        command.args(["-q", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=", "-o"]);
        command.arg(format!("APT::Architecture={}", self.machine.debian));
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        command
    }

    fn cache(&self, args: &[&str]) -> Result<String> {
        process::output(self.apt("apt-cache").args(args).env("LC_ALL", "C"))
    }

    /// Downloads a package and unpacks it into `root`, which is there only when it is whole.
    fn unpack(&self, package: &str, root: &Path) -> Result<()> {
        let place = self.folder.join("download");
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        process::succeed(self.apt("apt-get").args(["download", package]).current_dir(&place))
            .with_context(|| format!("cannot download {package} of Debian {}", self.suite))?;
        let Some(deb) = files_below(&place)?.into_iter().next() else { bail!("apt has downloaded no {package}") };
        let unpacked = place.join("root");
        process::succeed(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&unpacked))?;
        fs::rename(&unpacked, root).with_context(|| format!("cannot make {}", root.display()))?;
        fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))
    }
}

/// Where this machine has Debian's packages from, if it is a Debian.
fn own_mirror() -> Result<String> {
    let targets = process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]));
    let mirror = targets.as_deref().unwrap_or_default().lines().find_map(|line| line.strip_prefix("Debian "));
    Ok(mirror.unwrap_or("http://deb.debian.org/debian").trim().to_owned())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot look into {}", folder.display()))? {
            let entry = entry.with_context(|| format!("cannot look into {}", folder.display()))?;
            let kind = entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}
