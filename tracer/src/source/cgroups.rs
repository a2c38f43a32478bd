//! Names of cgroups: the kernel gives an id, which is the inode number of the cgroup's directory.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustc_hash::FxHashMap;

/// How often the tree is walked again for an id that is not in it.
const WALK_EVERY: Duration = Duration::from_secs(1);

/// Where the tree is mounted as a rule.
const USUAL_ROOT: &str = "/sys/fs/cgroup";

/// Levels and directories that are looked at; beyond it ids stay numbers.
const MAX_DEPTH: usize = 32;
const MAX_DIRECTORIES: usize = 100_000;

/// Known cgroups (v2).
#[derive(Debug, Default)]
pub struct Cgroups {
    root: Option<PathBuf>,
    paths: FxHashMap<u64, Arc<str>>,
    /// What ids are called that are not in the tree, as it was when it was last walked.
    unknown: FxHashMap<u64, Arc<str>>,
    walked: Option<Instant>,
    is_fresh: bool,
}

impl Cgroups {
    /// Finds where the cgroup v2 tree is mounted.
    #[must_use]
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { root: mount_point(&mounts), ..Self::default() }
    }

    /// The path of a cgroup below the root of the tree (`/system.slice/nginx.service`), or its number in the manner of
    /// namespaces (`cgroup:[123]`) when it is gone or cannot be seen; `None` for id 0.
    pub fn name(&mut self, id: u64) -> Option<Arc<str>> {
        if id == 0 {
            return None;
        }
        if let Some(path) = self.paths.get(&id) {
            return Some(Arc::clone(path));
        }
        if !self.is_fresh {
            self.walk();
        }
        if let Some(path) = self.paths.get(&id) {
            return Some(Arc::clone(path));
        }
        if self.unknown.len() >= MAX_DIRECTORIES {
            self.unknown.clear();
        }
        Some(Arc::clone(self.unknown.entry(id).or_insert_with(|| Arc::from(format!("cgroup:[{id}]")))))
    }

    /// Time has passed: the tree may have changed. To be called now and then; looking at the clock for each name would cost
    /// more than the name.
    pub fn grow_old(&mut self) {
        if self.walked.is_none_or(|walked| walked.elapsed() >= WALK_EVERY) {
            self.is_fresh = false;
        }
    }

    /// The ids of a cgroup and all below it, given by its path in the tree or in the file system.
    pub fn ids_below(&mut self, path: &str) -> Result<Vec<u64>> {
        let Some(root) = self.root.clone() else {
            bail!("no cgroup v2 tree is mounted, so --cgroup has nothing to go by");
        };
        self.walk();
        let path = Path::new(path);
        let wanted = path.strip_prefix(&root).unwrap_or(path);
        let wanted = Path::new("/").join(wanted.strip_prefix("/").unwrap_or(wanted));
        let below = self.paths.iter().filter(|(_, known)| Path::new(known.as_ref()).starts_with(&wanted));
        let ids: Vec<u64> = below.map(|(id, _)| *id).collect();
        if ids.is_empty() {
            bail!("no cgroup {} below {}", wanted.display(), root.display());
        }
        Ok(ids)
    }

    fn walk(&mut self) {
        (self.walked, self.is_fresh) = (Some(Instant::now()), true);
        self.unknown.clear();
        let Some(root) = self.root.clone() else {
            return;
        };
        let mut open = vec![(root.clone(), 0)];
        let mut seen = 0;
        while let Some((folder, depth)) = open.pop() {
            seen += 1;
            if let Ok(metadata) = fs::metadata(&folder) {
                let below = folder.strip_prefix(&root).unwrap_or(&folder);
                let name = printable(&Path::new("/").join(below));
                self.paths.insert(metadata.ino(), Arc::from(name));
            }
            if depth >= MAX_DEPTH || seen + open.len() >= MAX_DIRECTORIES {
                continue;
            }
            let folders = fs::read_dir(&folder).into_iter().flatten().flatten();
            let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            open.extend(folders.map(|entry| (entry.path(), depth + 1)));
        }
    }
}

/// A path in the tree as another host may have given it: below the root, with or without where the tree is mounted.
#[must_use]
pub fn below_root(path: &str) -> PathBuf {
    let path = Path::new(path);
    let below = path.strip_prefix(USUAL_ROOT).unwrap_or(path);
    Path::new("/").join(below.strip_prefix("/").unwrap_or(below))
}

/// Whoever may make cgroups chooses their names, and these go to terminals.
fn printable(path: &Path) -> String {
    path.to_string_lossy().chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The first cgroup v2 mount in a mountinfo file.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_tree_is_found_among_the_mounts() {
        let mounts = "31 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      36 31 0:32 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      42 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point(""), None);
    }

    #[test]
    fn a_path_of_another_host_is_taken_with_and_without_the_mount_point() {
        for path in ["/system.slice/a", "system.slice/a", "/sys/fs/cgroup/system.slice/a"] {
            assert_eq!(below_root(path), Path::new("/system.slice/a"), "{path}");
        }
        assert_eq!(below_root("/sys/fs/cgroup"), Path::new("/"));
    }

    #[test]
    fn an_id_without_a_name_stays_a_number() {
        let mut none = Cgroups::default();
        assert_eq!(none.name(0), None);
        assert_eq!(none.name(77).as_deref(), Some("cgroup:[77]"));
        assert!(none.ids_below("/x").is_err());
    }

    #[test]
    fn control_characters_in_a_name_are_replaced() {
        assert_eq!(printable(Path::new("/a\u{1b}[2J")), "/a\u{fffd}[2J");
    }
}
