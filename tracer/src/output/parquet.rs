//! Parquet: the parquet crate does the format. A file is complete only with the footer that comes last.

use std::{io, sync::Arc};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};

/// Encodes a file: bytes come out here, who writes them is none of its business.
pub(super) struct Encoder(ArrowWriter<Vec<u8>>);

impl Encoder {
    /// Begins a file.
    pub(super) fn new(schema: Arc<Schema>) -> io::Result<Self> {
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("tracer ", env!("CARGO_PKG_VERSION")).to_owned());
        // Times, cookies and sizes: a dictionary of what hardly comes twice costs much and is given up in the end.
        let wide = |field: &&Arc<Field>| matches!(field.data_type(), DataType::UInt64 | DataType::Timestamp(..));
        for field in schema.fields().iter().filter(wide) {
            let path = ColumnPath::from(field.name().as_str());
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
        ArrowWriter::try_new(Vec::new(), schema, Some(properties.build())).map(Self).map_err(as_io)
    }

    /// Takes a batch in; a group of rows comes out when it is full.
    pub(super) fn batch(&mut self, batch: &RecordBatch) -> io::Result<Vec<u8>> {
        self.0.write(batch).map_err(as_io)?;
        self.take()
    }

    /// What is left, and the footer.
    pub(super) fn end(&mut self) -> io::Result<Vec<u8>> {
        self.0.finish().map_err(as_io)?;
        self.take()
    }

    /// What has come out since the last call.
    pub(super) fn take(&mut self) -> io::Result<Vec<u8>> {
        self.0.sync()?;
        Ok(std::mem::take(self.0.inner_mut()))
    }
}

fn as_io(error: ParquetError) -> io::Error {
    io::Error::other(error)
}
