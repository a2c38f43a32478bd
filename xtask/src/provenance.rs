//! Where the BPF object in the tree comes from: the hash of the sources it was built from, and what built it.
//!
//! `cargo build` embeds the object as it is, so nothing but the test in this file notices when the sources have moved on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The object in the tree, from the workspace's root.
pub(crate) const OBJECT: &str = "tracer/bpf/tracer.bpf.o";

/// The file beside an object, with the ending `.toml` in place of `.o`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Provenance {
    /// [`hash_sources`] of the sources that it was built from.
    pub(crate) sources_sha256: String,
    /// The hash of the object itself.
    pub(crate) object_sha256: String,
    /// As `rustc --version` tells it.
    pub(crate) rustc: String,
    /// The LLVM of rustc.
    pub(crate) rustc_llvm: String,
    /// As `bpf-linker --version` tells it.
    pub(crate) bpf_linker: String,
    /// The LLVM of bpf-linker.
    pub(crate) bpf_linker_llvm: String,
}

impl Provenance {
    /// The file that tells about `object`.
    pub(crate) fn path(object: &Path) -> PathBuf {
        object.with_extension("toml")
    }

    /// Reads what the file beside `object` tells.
    pub(crate) fn read(object: &Path) -> Result<Self> {
        let path = Self::path(object);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Writes the file beside `object`.
    pub(crate) fn write(&self, object: &Path) -> Result<()> {
        let path = Self::path(object);
        let text = toml::to_string(self).context("cannot write TOML")?;
        let text = format!("# Written by `cargo xtask build-ebpf`, together with the object that it is about.\n{text}");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The hash of all that decides what the programs are: the files of tracer-ebpf, and the versions of the aya crates that
/// they are built on (the rest of the lock file concerns the host's programs only).
pub(crate) fn hash_sources(root: &Path) -> Result<String> {
    let mut files = vec![root.join("tracer-ebpf/Cargo.toml")];
    collect(&root.join("tracer-ebpf/src"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy();
        hash.update(format!("{name} {}\n", content.len()));
        hash.update(content);
    }
    for (name, version) in locked(&root.join("Cargo.lock"))? {
        hash.update(format!("{name} {version}\n"));
    }
    Ok(hex(&hash.finalize()))
}

/// The hash of one file's content.
pub(crate) fn hash_bytes(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            // An editor's leftovers are no sources.
            files.push(path);
        }
    }
    Ok(())
}

/// The locked versions of the crates that end up in the programs, in order.
fn locked(lock: &Path) -> Result<Vec<(String, String)>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let text = fs::read_to_string(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let lock: Lock = toml::from_str(&text).with_context(|| format!("cannot understand {}", lock.display()))?;
    let ours = |name: &str| name.starts_with("aya-ebpf") || name.starts_with("aya-log-ebpf");
    let mut found: Vec<_> = lock.package.into_iter().map(|Package { name, version }| (name, version)).collect();
    found.retain(|(name, _)| ours(name));
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    #[test]
    fn the_object_in_the_tree_is_built_from_these_sources() -> Result<()> {
        let object = workspace::root().join(OBJECT);
        let recorded = Provenance::read(&object)?;
        assert_eq!(
            recorded.sources_sha256,
            hash_sources(workspace::root())?,
            "{OBJECT} was built from other sources than those in tracer-ebpf: run `cargo xtask build-ebpf`, and commit \
             the object and the file beside it"
        );
        assert_eq!(
            recorded.object_sha256,
            hash_bytes(&fs::read(&object)?),
            "{OBJECT} is not the object that the file beside it tells about: run `cargo xtask build-ebpf`, and commit both"
        );
        Ok(())
    }

    #[test]
    fn every_change_of_the_sources_changes_the_hash() -> Result<()> {
        let root = std::env::temp_dir().join(format!("tracer-xtask-{}", std::process::id()));
        fs::create_dir_all(root.join("tracer-ebpf/src/deep"))?;
        let write = |path: &str, text: &str| fs::write(root.join(path), text);
        let lock = |version: &str, other: &str| {
            write(
                "Cargo.lock",
                &format!(
                    "[[package]]\nname = \"aya-ebpf\"\nversion = \"{version}\"\n\n[[package]]\nname = \"clap\"\nversion = \"{other}\"\n"
                ),
            )
        };
        write("tracer-ebpf/Cargo.toml", "")?;
        write("tracer-ebpf/src/lib.rs", "a")?;
        lock("0.2.1", "4")?;
        let first = hash_sources(&root)?;
        lock("0.2.1", "5")?;
        assert_eq!(hash_sources(&root)?, first, "crates of the host's programs do not count");
        write("tracer-ebpf/src/lib.rs~", "a")?;
        assert_eq!(hash_sources(&root)?, first, "an editor's leftovers do not count");

        let mut seen = vec![first];
        let mut changed = |what: &str| {
            let now = hash_sources(&root)?;
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
            Ok::<_, anyhow::Error>(())
        };
        lock("0.2.2", "5")?;
        changed("another aya-ebpf")?;
        write("tracer-ebpf/src/lib.rs", "b")?;
        changed("another content")?;
        write("tracer-ebpf/src/deep/more.rs", "")?;
        changed("another file")?;
        write("tracer-ebpf/Cargo.toml", "[package]")?;
        changed("another manifest")?;
        fs::remove_dir_all(&root)?;
        Ok(())
    }
}
