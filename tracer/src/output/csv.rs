//! CSV (RFC 4180): the csv crate does the format. A field that is empty is not known; a field that has parts of its own
//! (`states`, `process`) is JSON text.

use std::io;

use serde::Serialize;
use serde_json::Value;

use super::{Row, text::Text};

/// A buffer of the usual size costs more than what is written into it.
const BUFFER: usize = 512;

pub(super) fn header<R: Row>(to: &mut Text) -> io::Result<()> {
    let mut writer = line(to);
    writer.write_record(R::NAMES)?;
    writer.flush()
}

/// Writes a line; `field` is where a field is written before it is known whether it needs quotes.
pub(super) fn write(record: &impl Row, to: &mut Text, field: &mut Text) -> io::Result<()> {
    let mut writer = line(to);
    record.each_text(field, |text| writer.write_field(text))?;
    writer.write_record(None::<&[u8]>)?;
    writer.flush()
}

/// Objects that are no records, with their header: all have the same members.
pub(super) fn objects<T: Serialize>(objects: &[T]) -> io::Result<Vec<u8>> {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (number, object) in objects.iter().enumerate() {
        let Value::Object(members) = serde_json::to_value(object)? else {
            return Err(io::Error::other("a record is an object"));
        };
        if number == 0 {
            writer.write_record(members.keys())?;
        }
        writer.write_record(members.values().map(text))?;
    }
    writer.into_inner().map_err(|error| io::Error::other(error.to_string()))
}

fn line(to: &mut Text) -> csv::Writer<&mut Vec<u8>> {
    csv::WriterBuilder::new().buffer_capacity(BUFFER).from_writer(to.bytes_mut())
}
