//! Names of rotated files, and which files a replay reads in which order.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Files of a rotated recording: `trace.arrows` becomes `trace.000000.arrows`, `trace.000001.arrows` and so on.
#[derive(Clone, Debug)]
pub struct Rotated {
    folder: PathBuf,
    stem: String,
    extension: String,
    next: u64,
}

impl Rotated {
    /// Goes on after the files that are there already.
    pub fn new(path: &Path) -> Result<Self> {
        let name = |part: Option<&OsStr>| part.and_then(OsStr::to_str).map(str::to_owned);
        let Some(stem) = name(path.file_stem()) else {
            bail!("{}: a rotated recording needs a file name", path.display());
        };
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let extension = name(path.extension()).unwrap_or_else(|| "arrows".to_owned());
        let mut rotated = Self { folder: folder.to_owned(), stem, extension, next: 0 };
        rotated.next = rotated.existing()?.last().map_or(0, |(number, _)| number + 1);
        Ok(rotated)
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The next file's path.
    pub fn next_path(&mut self) -> PathBuf {
        let path = self.folder.join(format!("{}.{:06}.{}", self.stem, self.next, self.extension));
        self.next += 1;
        path
    }

    /// Deletes the oldest files, so that `keep` are left.
    pub fn delete_oldest(&self, keep: usize) -> Result<()> {
        let existing = self.existing()?;
        let surplus = existing.len().saturating_sub(keep);
        for (_, path) in existing.into_iter().take(surplus) {
            fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
        }
        Ok(())
    }

    /// The files that are there, by number. Only regular files whose names are exactly ours.
    fn existing(&self) -> Result<Vec<(u64, PathBuf)>> {
        let entries =
            fs::read_dir(&self.folder).with_context(|| format!("cannot look into {}", self.folder.display()))?;
        let mut files: Vec<(u64, PathBuf)> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .filter_map(|entry| Some((self.number_of(entry.file_name().to_str()?)?, entry.path())))
            .collect();
        files.sort();
        Ok(files)
    }

    fn number_of(&self, name: &str) -> Option<u64> {
        let number = name
            .strip_prefix(&self.stem)?
            .strip_prefix('.')?
            .strip_suffix(&self.extension)?
            .strip_suffix('.')
            .filter(|number| is_number(number))?;
        number.parse().ok()
    }
}

/// The files to read: a folder stands for the recordings in it, by their names.
pub fn listed(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path).with_context(|| format!("cannot look into {}", path.display()))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| is_recording(path) && path.is_file())
            .collect();
        if found.is_empty() {
            bail!("{}: no recording (*.arrows, or numbered by --rotate) in this folder", path.display());
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// `.arrows` is what Arrow streams are called; a rotated recording is known by its number, whatever the user called it.
fn is_recording(path: &Path) -> bool {
    let number = path.file_stem().and_then(|stem| Path::new(stem).extension()).and_then(OsStr::to_str);
    path.extension().is_some_and(|extension| extension == "arrows") || number.is_some_and(is_number)
}

/// As [`Rotated`] writes them.
fn is_number(text: &str) -> bool {
    text.len() >= 6 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_s_recordings_are_known_by_their_names() {
        for name in ["host.arrows", "trace.000001.arrow", "night.v2.000012.rec"] {
            assert!(is_recording(Path::new(name)), "{name}");
        }
        for name in ["log.arrow", "log.parquet", "notes.12.txt", "000001", "arrows"] {
            assert!(!is_recording(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn only_names_of_the_same_recording_count() {
        let rotated =
            Rotated { folder: PathBuf::from("."), stem: "trace".to_owned(), extension: "arrows".to_owned(), next: 0 };
        assert_eq!(rotated.number_of("trace.000012.arrows"), Some(12));
        assert_eq!(rotated.number_of("trace.1000000.arrows"), Some(1_000_000));
        for other in ["trace.arrows", "trace.12.arrows", "trace.00001x.arrows", "other.000012.arrows", "trace.000012"] {
            assert_eq!(rotated.number_of(other), None, "{other}");
        }
    }
}
