//! How things are written. Everything here is a function from values to bytes into some `impl Write`; opening files is
//! [`mod@file`]'s business alone.
//!
//! - `records`: the records; `fields`: what follows from the list of a record's fields
//! - `table`, `jsonl`, `csv`: formats that are lines; `text`: the line under way
//! - `columns`, and of them `arrow` and `parquet`
//! - `behind`: the thread that encodes and writes
//! - `report`: findings, as text or JSON

pub(crate) mod arrow;
pub(crate) mod behind;
pub mod columns;
mod csv;
pub mod fields;
pub mod file;
mod jsonl;
mod parquet;
pub mod records;
pub mod report;
mod table;
#[cfg(test)]
mod tests;
pub mod text;

use std::{
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use serde::Serialize;

pub(crate) use self::table::{bytes, duration};
use self::{
    behind::{Behind, Jobs},
    fields::Fields,
    text::Text,
};

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
pub trait Row: Fields {
    /// The header of the table.
    const TABLE_HEADER: &'static str;

    /// Its line in the table, without the end of the line.
    fn table_line(&self) -> String;
}

/// Records in a batch at most.
pub(crate) const BATCH_ROWS: usize = 65_536;

/// A batch that is not full is written after this time: within a second of its first record, and no sooner, for each has
/// some kilobytes of its own.
pub(crate) const BATCH_AGE: Duration = Duration::from_millis(800);

/// Lines that are handed over together, where they come fast.
const CHUNK_BYTES: usize = 64 << 10;

/// Chunks and batches that may wait until they are written: some 16 MiB of lines, or of columns.
const WAITING_CHUNKS: usize = 256;
const WAITING_BATCHES: usize = 2;

/// Writes records of one kind in one format. Nothing is written, and no thread started, before the first record or flush:
/// a run that cannot start leaves its output as it was.
pub struct Writer<R: Row, W> {
    form: Form<R>,
    /// What the thread begins with, until it is started.
    start: Option<(Encoder, W)>,
    behind: Option<Behind<Piece, W>>,
}

enum Form<R: Row> {
    Lines { format: Format, lines: Text, field: Text },
    Batches(Batch<R>),
}

/// What is handed over to the thread that writes.
enum Piece {
    /// What a format begins with.
    Begin,
    Lines(Vec<u8>),
    Batch(RecordBatch),
    /// What a format ends with.
    End,
}

/// How batches become bytes.
enum Encoder {
    /// There are none: lines are written as they are.
    Lines,
    Arrow(Box<arrow::Encoder>),
    Parquet(Box<parquet::Encoder>),
}

impl Encoder {
    fn new(format: Format, schema: &Arc<Schema>) -> io::Result<Self> {
        Ok(match format {
            Format::Table | Format::Jsonl | Format::Csv => Self::Lines,
            Format::Arrow => Self::Arrow(Box::new(arrow::Encoder::new(schema)?)),
            Format::Parquet => Self::Parquet(Box::new(parquet::Encoder::new(Arc::clone(schema))?)),
        })
    }

    fn bytes(&mut self, piece: Piece) -> io::Result<Vec<u8>> {
        match (piece, self) {
            (Piece::Lines(lines), _) => Ok(lines),
            (_, Self::Lines) => Ok(Vec::new()),
            (Piece::Begin, Self::Arrow(encoder)) => Ok(encoder.take()),
            (Piece::Batch(batch), Self::Arrow(encoder)) => encoder.batch(&batch),
            (Piece::End, Self::Arrow(encoder)) => encoder.end(),
            (Piece::Begin, Self::Parquet(encoder)) => encoder.take(),
            (Piece::Batch(batch), Self::Parquet(encoder)) => encoder.batch(&batch),
            (Piece::End, Self::Parquet(encoder)) => encoder.end(),
        }
    }
}

/// Records that wait to be written together.
struct Batch<R: Row> {
    schema: Arc<Schema>,
    columns: R::Columns,
    rows: usize,
    since: Option<Instant>,
}

impl<R: Row> Batch<R> {
    fn append(&mut self, record: &R) {
        record.append(&mut self.columns);
        self.rows += 1;
    }

    /// Whether its records have waited long enough; looked at now and then.
    fn is_due(&mut self) -> bool {
        self.rows > 0 && self.since.get_or_insert_with(Instant::now).elapsed() >= BATCH_AGE
    }

    fn take(&mut self) -> io::Result<Piece> {
        (self.rows, self.since) = (0, None);
        R::batch(&mut self.columns, Arc::clone(&self.schema)).map(Piece::Batch).map_err(arrow::as_io)
    }
}

impl<R: Row, W: Write + Send + 'static> Writer<R, W> {
    /// Makes ready.
    pub fn new(format: Format, to: W) -> io::Result<Self> {
        let schema = Arc::new(Schema::new(R::fields()));
        let encoder = Encoder::new(format, &schema)?;
        let form = if format.is_text() {
            let mut lines = Text::default();
            match format {
                Format::Csv => csv::header::<R>(&mut lines)?,
                Format::Table => table::header::<R>(&mut lines),
                _ => {}
            }
            Form::Lines { format, lines, field: Text::default() }
        } else {
            Form::Batches(Batch { schema, columns: R::Columns::default(), rows: 0, since: None })
        };
        Ok(Self { form, start: Some((encoder, to)), behind: None })
    }

    /// Takes a record.
    pub fn write(&mut self, record: &R) -> io::Result<()> {
        self.behind()?;
        let is_full = match &mut self.form {
            Form::Lines { format, lines, field } => {
                match format {
                    Format::Csv => csv::write(record, lines, field)?,
                    Format::Jsonl => jsonl::write(record, lines),
                    _ => table::write(record, lines),
                }
                lines.bytes().len() >= CHUNK_BYTES
            }
            Form::Batches(batch) => {
                batch.append(record);
                batch.rows >= BATCH_ROWS
            }
        };
        if is_full { self.hand_over() } else { Ok(()) }
    }

    /// Brings out what has waited; called several times a second.
    pub fn flush(&mut self) -> io::Result<()> {
        self.behind()?.check()?;
        let is_due = match &mut self.form {
            Form::Lines { .. } => true,
            Form::Batches(batch) => batch.is_due(),
        };
        if is_due { self.hand_over() } else { Ok(()) }
    }

    /// Writes what is left, and the end where the format has one; gives back what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some((_, to)) = self.start {
            return Ok(to);
        }
        self.hand_over()?;
        self.behind()?.send(Piece::End)?;
        self.behind.ok_or_else(behind::gone)?.finish()
    }

    /// The thread that writes.
    fn behind(&mut self) -> io::Result<&mut Behind<Piece, W>> {
        if let Some((encoder, to)) = self.start.take() {
            let waiting = match self.form {
                Form::Lines { .. } => WAITING_CHUNKS,
                Form::Batches(_) => WAITING_BATCHES,
            };
            let work = move |pieces| write_pieces(pieces, encoder, to);
            self.behind.insert(Behind::start("writer", waiting, work)?).send(Piece::Begin)?;
        }
        self.behind.as_mut().ok_or_else(behind::gone)
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let piece = match &mut self.form {
            Form::Lines { lines, .. } if lines.bytes().is_empty() => return Ok(()),
            Form::Lines { lines, .. } => Piece::Lines(lines.take()),
            Form::Batches(batch) if batch.rows == 0 => return Ok(()),
            Form::Batches(batch) => batch.take()?,
        };
        self.behind()?.send(piece)
    }
}

fn write_pieces<W: Write>(pieces: Jobs<Piece>, mut encoder: Encoder, mut to: W) -> io::Result<W> {
    for piece in pieces {
        to.write_all(&encoder.bytes(piece)?)?;
        to.flush()?;
    }
    Ok(to)
}

/// Records as lines, all at once, as JSON or CSV.
pub fn lines<R: Row>(records: &[R], format: Format) -> io::Result<Vec<u8>> {
    let (mut text, mut field) = (Text::default(), Text::default());
    if format == Format::Csv {
        csv::header::<R>(&mut text)?;
    }
    for record in records {
        match format {
            Format::Csv => csv::write(record, &mut text, &mut field)?,
            _ => jsonl::write(record, &mut text),
        }
    }
    Ok(text.take())
}

/// Likewise objects that are no stream of records; all have the same members.
pub fn lines_of_objects<T: Serialize>(objects: &[T], format: Format) -> io::Result<Vec<u8>> {
    if format == Format::Csv {
        return csv::objects(objects);
    }
    let mut text = Vec::new();
    for object in objects {
        serde_json::to_writer(&mut text, object)?;
        text.push(b'\n');
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
