//! CSV (RFC 4180): the csv crate does the format. A field that is empty is not known; a field that has parts of its own
//! (`states`, `process`) is JSON text.

use std::io;

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

fn line(to: &mut Text) -> csv::Writer<&mut Vec<u8>> {
    csv::WriterBuilder::new().buffer_capacity(BUFFER).from_writer(to.bytes_mut())
}
