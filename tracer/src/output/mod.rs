//! How things are written. Everything here is a function from values to bytes into some `impl Write`; opening files is
//! [`file`]'s business alone.
//!
//! - `records`: the fields, in one place, for all formats
//! - `table`, `jsonl`, `csv`: formats that are lines
//! - `columns`: the records as columns, for `arrow` and `parquet`
//! - `report`: findings, as text or JSON

pub(crate) mod arrow;
pub mod columns;
mod csv;
pub mod file;
mod jsonl;
mod parquet;
pub mod records;
pub mod report;
mod table;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use ::parquet::arrow::ArrowWriter;
use serde::Serialize;

use self::columns::Columns;
pub(crate) use self::table::{bytes, duration};

/// What a stream of records is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Columns for people.
    Table,
    /// One JSON object a line.
    Jsonl,
    /// RFC 4180, with a header.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// Parquet.
    Parquet,
}

impl Format {
    /// Whether it is made of lines, which go to a terminal as well as to a file.
    #[must_use]
    pub fn is_text(self) -> bool {
        !matches!(self, Self::Arrow | Self::Parquet)
    }
}

/// A record that every format can write.
pub trait Row: Serialize + Sized {
    /// The names of its fields, as in JSON and in the CSV header.
    const FIELDS: &'static [&'static str];

    /// The header of the table.
    const TABLE_HEADER: &'static str;

    /// Its columns.
    type Columns: Columns<Record = Self>;

    /// Its line in the table, without the end of the line.
    fn table_line(&self) -> String;
}

/// Records in a batch at most.
pub(crate) const BATCH_ROWS: usize = 65_536;

/// A batch that is not full is written after this time: within a second of its first record, and no sooner, for each has
/// some kilobytes of its own.
pub(crate) const BATCH_AGE: Duration = Duration::from_millis(800);

/// Writes records of one kind in one format.
pub struct Writer<R: Row, W: Write + Send>(Form<R, W>);

enum Form<R: Row, W: Write + Send> {
    Lines { to: W, format: Format, line: Vec<u8> },
    Arrow { to: W, encoder: arrow::Encoder, batch: Batch<R> },
    Parquet { writer: ArrowWriter<W>, batch: Batch<R> },
}

/// Records that wait to be written together.
struct Batch<R: Row> {
    columns: R::Columns,
    rows: usize,
    since: Option<Instant>,
}

impl<R: Row> Batch<R> {
    fn new() -> Self {
        Self { columns: R::Columns::default(), rows: 0, since: None }
    }

    fn append(&mut self, record: &R) {
        self.columns.append(record);
        self.rows += 1;
    }

    fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS
    }

    /// Whether its records have waited long enough; looked at now and then.
    fn is_due(&mut self) -> bool {
        self.rows > 0 && self.since.get_or_insert_with(Instant::now).elapsed() >= BATCH_AGE
    }

    fn take(&mut self) -> io::Result<arrow_array::RecordBatch> {
        (self.rows, self.since) = (0, None);
        self.columns.batch().map_err(arrow::as_io)
    }
}

impl<R: Row, W: Write + Send> Writer<R, W> {
    /// Writes the header too, where the format has one.
    pub fn new(format: Format, mut to: W) -> io::Result<Self> {
        Ok(Self(match format {
            Format::Arrow => {
                let mut encoder = arrow::Encoder::new(&R::Columns::schema())?;
                to.write_all(&encoder.take())?;
                Form::Arrow { to, encoder, batch: Batch::new() }
            }
            Format::Parquet => Form::Parquet { writer: parquet::begin(to, R::Columns::schema())?, batch: Batch::new() },
            Format::Table | Format::Jsonl | Format::Csv => {
                match format {
                    Format::Table => writeln!(to, "{}", R::TABLE_HEADER)?,
                    Format::Csv => csv::header::<R>(&mut to)?,
                    _ => {}
                }
                Form::Lines { to, format, line: Vec::new() }
            }
        }))
    }

    /// Writes one record: a line is written as a whole, at once.
    pub fn write(&mut self, record: &R) -> io::Result<()> {
        match &mut self.0 {
            Form::Lines { to, format, line } => {
                line.clear();
                match format {
                    Format::Csv => csv::write(record, line)?,
                    Format::Jsonl => jsonl::write(record, line)?,
                    _ => table::write(record, line)?,
                }
                to.write_all(line)
            }
            Form::Arrow { to, encoder, batch } => {
                batch.append(record);
                if batch.is_full() { to.write_all(&encoder.batch(&batch.take()?)?) } else { Ok(()) }
            }
            Form::Parquet { writer, batch } => {
                batch.append(record);
                if batch.is_full() { parquet::write(writer, &batch.take()?) } else { Ok(()) }
            }
        }
    }

    /// Brings out what has waited; called several times a second.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Form::Lines { to, .. } => to.flush(),
            Form::Arrow { to, encoder, batch } => {
                if batch.is_due() {
                    to.write_all(&encoder.batch(&batch.take()?)?)?;
                }
                to.flush()
            }
            // Nothing of it can be read before its end.
            Form::Parquet { .. } => Ok(()),
        }
    }

    /// Writes what is left, and the end where the format has one; gives back what was written to.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Form::Lines { mut to, .. } => {
                to.flush()?;
                Ok(to)
            }
            Form::Arrow { mut to, mut encoder, mut batch } => {
                if batch.rows > 0 {
                    to.write_all(&encoder.batch(&batch.take()?)?)?;
                }
                to.write_all(&encoder.end()?)?;
                to.flush()?;
                Ok(to)
            }
            Form::Parquet { mut writer, mut batch } => {
                if batch.rows > 0 {
                    parquet::write(&mut writer, &batch.take()?)?;
                }
                parquet::end(writer)
            }
        }
    }
}

/// Writes objects that are no stream of records, as JSON lines or CSV; all have the same members.
pub fn write_objects<T: Serialize>(objects: &[T], format: Format) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if format == Format::Csv
        && let Some(first) = objects.first()
        && let serde_json::Value::Object(members) = serde_json::to_value(first)?
    {
        let names: Vec<&str> = members.keys().map(String::as_str).collect();
        csv::header_of(&names, &mut text)?;
    }
    for object in objects {
        if format == Format::Csv { csv::write(object, &mut text)? } else { jsonl::write(object, &mut text)? }
    }
    Ok(text)
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
