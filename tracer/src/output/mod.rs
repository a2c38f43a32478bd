//! How things are written. Everything here is a function from values to bytes into some `impl Write`; opening files is
//! [`file`]'s business alone.
//!
//! - `records`: the fields, in one place, for all formats
//! - `table`, `jsonl`, `csv`: the formats
//! - `report`: findings, as text or JSON

mod csv;
pub mod file;
mod jsonl;
pub mod records;
pub mod report;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, Write};

use serde::Serialize;

/// What a stream of records is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Columns for people.
    Table,
    /// One JSON object a line.
    Jsonl,
    /// RFC 4180, with a header.
    Csv,
}

/// A record that every format can write.
pub trait Row: Serialize {
    /// The names of its fields, as in JSON and in the CSV header.
    const FIELDS: &'static [&'static str];

    /// The header of the table.
    const TABLE_HEADER: &'static str;

    /// Its line in the table, without the end of the line.
    fn table_line(&self) -> String;
}

/// Writes records of one kind in one format.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    format: Format,
    line: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes the header too, where the format has one.
    pub fn new<R: Row>(format: Format, mut to: W) -> io::Result<Self> {
        match format {
            Format::Table => writeln!(to, "{}", R::TABLE_HEADER)?,
            Format::Csv => csv::header::<R>(&mut to)?,
            Format::Jsonl => {}
        }
        Ok(Self { to, format, line: Vec::new() })
    }

    /// Writes one record, as a whole line at once.
    pub fn write<R: Row>(&mut self, record: &R) -> io::Result<()> {
        self.line.clear();
        match self.format {
            Format::Table => table::write(record, &mut self.line)?,
            Format::Jsonl => jsonl::write(record, &mut self.line)?,
            Format::Csv => csv::write(record, &mut self.line)?,
        }
        self.to.write_all(&self.line)
    }

    /// Brings out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Gives back what is written to.
    pub fn into_inner(self) -> W {
        self.to
    }
}

/// Lines of at most `width` characters, where the words allow it.
#[must_use]
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
