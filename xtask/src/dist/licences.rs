//! The licences of what is linked into the program: most ask for their text to go with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, Package, PackageId};

use crate::workspace;

const HEAD: &str = "The program also contains the following libraries, the standard library of Rust (MIT OR Apache-2.0, \
                    https://www.rust-lang.org) and the GNU C library (LGPL-2.1-or-later, https://www.gnu.org/software/libc).";

/// Writes each text once, with the packages that it is of.
pub(super) fn write(to: &Path) -> Result<()> {
    let metadata = workspace::metadata(true)?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut list = format!("{HEAD}\n\n");
    for package in linked(&metadata)? {
        let name = format!("{} {}", package.name, package.version);
        let licence = package.license.as_deref().unwrap_or("a licence of its own, below");
        writeln!(list, "{name}: {licence}")?;
        let folder = package.manifest_path.as_std_path().parent().context("a manifest in no folder")?;
        let mut found = Vec::new();
        find_texts(folder, 2, &mut found)?;
        ensure!(package.license.is_some() || !found.is_empty(), "{name} has no licence");
        for text in found {
            texts.entry(text).or_default().insert(name.clone());
        }
    }
    for (text, of) in texts {
        let of: Vec<String> = of.into_iter().collect();
        write!(list, "\n{}\n{}\n\n{}\n", "-".repeat(80), of.join(", "), text.trim_end())?;
    }
    fs::write(to, list).with_context(|| format!("cannot write {}", to.display()))
}

/// The packages of the registry that the program is linked from, by name; those of the BPF programs included.
fn linked(metadata: &Metadata) -> Result<Vec<&Package>> {
    let nodes = &metadata.resolve.as_ref().context("cargo metadata has no dependencies")?.nodes;
    let root = metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == "tracer");
    let mut open: Vec<&PackageId> = vec![&root.context("no package `tracer`")?.id];
    let mut seen: BTreeSet<&PackageId> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        let dependencies = nodes.iter().filter(|node| node.id == *id).flat_map(|node| &node.deps);
        for dependency in dependencies {
            let is_linked = dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
            if is_linked && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    let mut packages: Vec<&Package> =
        metadata.packages.iter().filter(|package| package.source.is_some() && seen.contains(&package.id)).collect();
    packages.sort_by_key(|package| (package.name.as_str(), &package.version));
    Ok(packages)
}

/// Files that are called as licences are; C sources that a package brings have theirs in a folder below.
fn find_texts(folder: &Path, depth: usize, found: &mut Vec<String>) -> Result<()> {
    let cannot = || format!("cannot look for licences in {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(cannot)? {
        paths.push(entry.with_context(cannot)?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let is_licence =
            ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"].iter().any(|begin| name.starts_with(begin));
        if path.is_dir() && depth > 1 {
            find_texts(&path, depth - 1, found)?;
        } else if is_licence && path.is_file() {
            found.push(String::from_utf8_lossy(&fs::read(&path).with_context(cannot)?).replace('\r', ""));
        }
    }
    Ok(())
}
