//! Network namespaces: finding them all, and doing something inside one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace and a way into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its inode number, which is how the kernel names it (`net:[4026531833]`).
    pub inum: u32,
    /// A file that refers to it.
    path: PathBuf,
    /// It is the tracer's own: nothing has to be entered.
    is_own: bool,
}

/// The file of the current thread's namespace.
const OWN: &str = "/proc/thread-self/ns/net";

impl Namespace {
    /// The current thread's.
    pub fn own() -> Result<Self> {
        let path = PathBuf::from(OWN);
        let inum = inum_of(&path)?;
        Ok(Self { inum, path, is_own: true })
    }

    /// Runs `inside` in this namespace, on a thread of its own: entering is per thread, and nothing else of the tracer
    /// must go along.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        if self.is_own {
            return Ok(inside());
        }
        let file = File::open(&self.path)
            .with_context(|| format!("cannot open the network namespace {}", self.path.display()))?;
        thread::scope(|scope| {
            let entered = scope.spawn(move || setns(&file, CloneFlags::CLONE_NEWNET).map(|()| inside()));
            match entered.join() {
                Ok(Ok(result)) => Ok(result),
                Ok(Err(error)) => Err(anyhow!(error)
                    .context(format!("cannot enter the network namespace {} (needs CAP_SYS_ADMIN)", self.inum))),
                Err(_) => bail!("a panic inside the network namespace {}", self.inum),
            }
        })
    }
}

/// All namespaces that a process lives in or that are kept by name, the own one first. What cannot be read (other
/// users' processes, without the privilege) is left out.
pub fn all() -> Result<Vec<Namespace>> {
    all_and_of_threads([])
}

/// Likewise, and those that only some thread of these processes lives in.
pub fn all_and_of_threads(pids: impl IntoIterator<Item = u32>) -> Result<Vec<Namespace>> {
    let own = Namespace::own()?;
    let mut others = BTreeMap::new();
    let threads = pids.into_iter().flat_map(|pid| entries_of(&PathBuf::from(format!("/proc/{pid}/task"))));
    let threads = threads.map(|thread| thread.join("ns/net"));
    for path in process_namespaces().into_iter().chain(named_namespaces()).chain(threads) {
        if let Ok(inum) = inum_of(&path)
            && inum != own.inum
        {
            others.entry(inum).or_insert(Namespace { inum, path, is_own: false });
        }
    }
    Ok(std::iter::once(own).chain(others.into_values()).collect())
}

/// Understands what `--netns` takes: an inode number, `self`, a process id as `pid:N`, a name as `ip netns` has it, or
/// a path.
pub fn parse(text: &str) -> Result<u32> {
    if let Ok(inum) = text.parse() {
        return Ok(inum);
    }
    let path = if text == "self" {
        PathBuf::from(OWN)
    } else if let Some(pid) = text.strip_prefix("pid:") {
        let pid: u32 = pid.parse().with_context(|| format!("not a process id: {pid:?}"))?;
        PathBuf::from(format!("/proc/{pid}/ns/net"))
    } else if text.contains('/') {
        PathBuf::from(text)
    } else {
        Path::new("/run/netns").join(text)
    };
    inum_of(&path)
}

fn inum_of(path: &Path) -> Result<u32> {
    let metadata = fs::metadata(path).with_context(|| format!("no network namespace at {}", path.display()))?;
    // All files of namespaces are on one pseudo file system (nsfs).
    let is_namespace = fs::metadata(OWN).is_ok_and(|own| own.dev() == metadata.dev());
    match u32::try_from(metadata.ino()) {
        Ok(inum) if is_namespace => Ok(inum),
        _ => bail!("{} is no network namespace", path.display()),
    }
}

fn process_namespaces() -> Vec<PathBuf> {
    entries_of(Path::new("/proc"))
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)))
        .map(|path| path.join("ns/net"))
        .collect()
}

fn named_namespaces() -> Vec<PathBuf> {
    ["/run/netns", "/run/docker/netns"].into_iter().flat_map(|folder| entries_of(Path::new(folder))).collect()
}

fn entries_of(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_first_and_needs_no_entering() {
        let all = all().expect("namespaces");
        let own = Namespace::own().expect("own");
        assert_eq!(all[0].inum, own.inum);
        assert_eq!(own.enter(|| 7).expect("entered"), 7);
        assert_eq!(parse("self").expect("self"), own.inum);
        assert_eq!(parse(&format!("pid:{}", std::process::id())).expect("pid"), own.inum);
        assert_eq!(parse("4026531833").expect("number"), 4_026_531_833);
    }

    #[test]
    fn what_is_no_namespace_is_named_in_the_error() {
        let error = parse("no-such-namespace").expect_err("no such namespace");
        assert!(format!("{error:#}").contains("/run/netns/no-such-namespace"));
        assert!(parse("pid:x").is_err());
        let error = parse("/proc/self/status").expect_err("no namespace");
        assert!(error.to_string().contains("/proc/self/status is no network namespace"));
    }
}
