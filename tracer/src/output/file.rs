//! Where output goes: standard output or a file, opened here and nowhere else.
//!
//! What is written is whole lines. When a disk is full in the middle of one, the file is cut back to the last complete
//! line: what is there can be read.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// How much is gathered before it is written.
const CHUNK: usize = 64 << 10;

/// Standard output or a file.
pub struct Output {
    to: Target,
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
    /// Standard output for `None` and `-`, else a file, which only its owner may read when it is new. An existing one is
    /// emptied when the first line is written or flushed: a run that cannot start leaves it as it was.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let to = match path {
            None => Target::Stdout(io::stdout()),
            Some(path) if path == Path::new("-") => Target::Stdout(io::stdout()),
            Some(path) => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(path)
                    .with_context(|| format!("cannot write to {}", path.display()))?;
                Target::File { file, path: path.to_owned(), length: None }
            }
        };
        Ok(Self { to, pending: Vec::with_capacity(CHUNK) })
    }

    fn write_pending(&mut self) -> io::Result<()> {
        let result = match &mut self.to {
            Target::Stdout(stdout) => stdout
                .write_all(&self.pending)
                .and_then(|()| stdout.flush())
                .map_err(|error| named(&"standard output", &error)),
            Target::File { file, path, length } => {
                write_lines(file, &self.pending, length).map_err(|error| named(&path.display(), &error))
            }
        };
        // What could not be written now is not tried again: it would come in the middle of something.
        self.pending.clear();
        result
    }
}

/// Appends whole lines; on an error what was written of the last, incomplete one is taken back.
fn write_lines(file: &mut File, lines: &[u8], length: &mut Option<u64>) -> io::Result<()> {
    let start = match *length {
        Some(length) => length,
        None => {
            // A pipe or a device cannot be emptied, and need not be.
            let _ = file.set_len(0);
            0
        }
    };
    let mut written = 0;
    while written < lines.len() {
        match file.write(&lines[written..]) {
            Ok(0) => return give_up(file, &lines[..written], start, io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return give_up(file, &lines[..written], start, error),
        }
    }
    *length = Some(start + lines.len() as u64);
    Ok(())
}

fn give_up(file: &File, written: &[u8], length: u64, error: io::Error) -> io::Result<()> {
    let whole = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < written.len() {
        // A pipe or a device cannot be cut; it has no half lines to keep either.
        let _ = file.set_len(length + whole as u64);
    }
    Err(error)
}

impl Write for Output {
    /// Takes whole lines only, as [`super::Writer`] gives them.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(lines);
        if self.pending.len() >= CHUNK {
            self.write_pending()?;
        }
        Ok(lines.len())
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
