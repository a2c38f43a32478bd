//! Where output goes: standard output or a file, opened here and nowhere else.
//!
//! What is written is whole lines, or whole pieces of a binary format. When a disk is full in the middle of one, the file
//! is cut back to the last complete one: what is there can be read.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// How much is gathered before it is written.
const CHUNK: usize = 64 << 10;

/// What may not be torn apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Lines: several are gathered before they are written.
    Lines,
    /// What comes with one call of `write`.
    Pieces,
}

/// Standard output or a file.
pub struct Output {
    to: Target,
    contents: Contents,
    pending: Vec<u8>,
}

enum Target {
    Stdout(io::Stdout),
    /// `length` is `None` until the file is written to for the first time.
    File {
        file: File,
        path: PathBuf,
        length: Option<u64>,
    },
}

impl Output {
    /// Standard output for `None` and `-`, else a file, which only its owner may read when it is new. One that has
    /// something in it is left alone unless it may be overwritten, and emptied when the first line is written or flushed:
    /// a run that cannot start leaves it as it was.
    pub fn open(path: Option<&Path>, contents: Contents, overwrite: bool) -> Result<Self> {
        let to = match path.filter(|path| *path != Path::new("-")) {
            None if contents == Contents::Pieces && io::stdout().is_terminal() => {
                bail!("this is no format for a terminal: write it to a file (-o FILE) or a pipe")
            }
            None => Target::Stdout(io::stdout()),
            Some(path) => {
                let file = open_file(path, overwrite).with_context(|| format!("cannot write to {}", path.display()))?;
                Target::File { file, path: path.to_owned(), length: None }
            }
        };
        Ok(Self { to, contents, pending: Vec::with_capacity(CHUNK) })
    }

    fn write_pending(&mut self) -> io::Result<()> {
        let result = match &mut self.to {
            Target::Stdout(stdout) => stdout
                .write_all(&self.pending)
                .and_then(|()| stdout.flush())
                .map_err(|error| named(&"standard output", &error)),
            Target::File { file, path, length } => {
                write_whole(file, &self.pending, self.contents, length).map_err(|error| named(&path.display(), &error))
            }
        };
        // What could not be written now is not tried again: it would come in the middle of something.
        self.pending.clear();
        result
    }
}

/// A new file, or one that may be written over. What is no regular file (a pipe, a device) has nothing to lose.
fn open_file(path: &Path, overwrite: bool) -> Result<File> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        opened => return Ok(opened?),
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.len() > 0 && !overwrite {
        bail!("it is there already; --force overwrites it");
    }
    Ok(file)
}

/// Appends lines, or a piece; on an error what was written of the last, incomplete one is taken back.
fn write_whole(file: &mut File, bytes: &[u8], contents: Contents, length: &mut Option<u64>) -> io::Result<()> {
    let start = match *length {
        Some(length) => length,
        None => {
            // A pipe or a device cannot be emptied, and need not be.
            let _ = file.set_len(0);
            0
        }
    };
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return give_up(file, &bytes[..written], contents, start, io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return give_up(file, &bytes[..written], contents, start, error),
        }
    }
    *length = Some(start + bytes.len() as u64);
    Ok(())
}

fn give_up(file: &File, written: &[u8], contents: Contents, length: u64, error: io::Error) -> io::Result<()> {
    let whole = match contents {
        Contents::Lines => written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1),
        Contents::Pieces => 0,
    };
    if whole < written.len() {
        // A pipe or a device cannot be cut; what it has taken cannot be taken back.
        let _ = file.set_len(length + whole as u64);
    }
    Err(error)
}

impl Write for Output {
    /// Takes whole lines or one piece, as [`super::Writer`] gives them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.contents == Contents::Pieces || self.pending.len() >= CHUNK {
            self.write_pending()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let untouched = matches!(self.to, Target::File { length: None, .. });
        if untouched || !self.pending.is_empty() { self.write_pending() } else { Ok(()) }
    }
}

/// The same error with the name of what could not be written.
fn named(name: &dyn std::fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}
