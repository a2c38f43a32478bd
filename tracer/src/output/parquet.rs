//! Parquet: the parquet crate does the format. A file is complete only with the footer that comes last.

use std::io::{self, Write};

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};

pub(super) fn begin<W: Write + Send>(to: W, schema: Schema) -> io::Result<ArrowWriter<W>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(concat!("tracer ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    ArrowWriter::try_new(to, schema.into(), Some(properties)).map_err(as_io)
}

pub(super) fn write<W: Write + Send>(writer: &mut ArrowWriter<W>, batch: &RecordBatch) -> io::Result<()> {
    writer.write(batch).map_err(as_io)
}

pub(super) fn end<W: Write + Send>(writer: ArrowWriter<W>) -> io::Result<W> {
    let mut to = writer.into_inner().map_err(as_io)?;
    to.flush()?;
    Ok(to)
}

/// An error of writing is told as such, without the library's name before it.
fn as_io(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(source) => io::Error::other(source),
        },
        error => io::Error::other(error),
    }
}
