//! CSV (RFC 4180): the csv crate does the format. A field that is empty is not known; a field that has parts of its own
//! (`states`, `process`) is JSON text.

use std::io::{self, Write};

use serde_json::Value;

use super::Row;

pub(super) fn header<R: Row>(to: &mut impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    write_fields(R::FIELDS, &mut line)?;
    to.write_all(&line)
}

pub(super) fn write<R: Row>(record: &R, line: &mut Vec<u8>) -> io::Result<()> {
    let Value::Object(fields) = serde_json::to_value(record)? else {
        return Err(io::Error::other("a record is an object"));
    };
    let text = |name: &&str| match fields.get(*name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let fields: Vec<String> = R::FIELDS.iter().map(text).collect();
    write_fields(&fields, line)
}

fn write_fields<F: AsRef<[u8]>>(fields: &[F], line: &mut Vec<u8>) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(line);
    writer.write_record(fields)?;
    writer.flush()
}
