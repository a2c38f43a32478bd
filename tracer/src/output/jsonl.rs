//! JSON lines: serde_json does the format.

use std::io;

use serde::Serialize;

pub(super) fn write(record: &impl Serialize, line: &mut Vec<u8>) -> io::Result<()> {
    serde_json::to_writer(&mut *line, record)?;
    line.push(b'\n');
    Ok(())
}
