//! CSV (RFC 4180): the csv crate does the format. A field that is empty is not known; a field that has parts of its own
//! (`states`, `process`) is JSON text.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use super::Row;

pub(super) fn header<R: Row>(to: &mut impl Write) -> io::Result<()> {
    header_of(R::FIELDS, to)
}

pub(super) fn header_of(fields: &[&str], to: &mut impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    write_fields(fields, &mut line)?;
    to.write_all(&line)
}

/// A record, or any other object with the members of the header.
pub(super) fn write(record: &impl Serialize, line: &mut Vec<u8>) -> io::Result<()> {
    // Its members come in the order of the header.
    let Value::Object(fields) = serde_json::to_value(record)? else {
        return Err(io::Error::other("a record is an object"));
    };
    let text = |value: Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    write_fields(fields.into_iter().map(|(_, value)| text(value)), line)
}

fn write_fields<F: AsRef<[u8]>>(fields: impl IntoIterator<Item = F>, line: &mut Vec<u8>) -> io::Result<()> {
    // A buffer of the usual size costs more than what is written into it.
    let mut writer = csv::WriterBuilder::new().buffer_capacity(512).from_writer(line);
    writer.write_record(fields)?;
    writer.flush()
}
