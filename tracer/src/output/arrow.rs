//! Arrow IPC streams, compressed with zstd: arrow-rs does the format. A stream is a schema, then batches, then an end
//! mark; each comes out here as bytes of its own, so that a file can be cut back to whole ones.

use std::io;

use arrow_array::RecordBatch;
use arrow_ipc::{
    CompressionType, MetadataVersion,
    writer::{IpcWriteOptions, StreamWriter},
};
use arrow_schema::{ArrowError, Schema};

/// More would cost time and gain little: the columns repeat themselves.
const ZSTD_LEVEL: i32 = 1;

/// The least that the format allows. With the usual 64 bytes a batch of a few rows would be padding for the most part.
const ALIGNMENT: usize = 8;

/// Encodes a stream.
pub(crate) struct Encoder(StreamWriter<Vec<u8>>);

impl Encoder {
    /// Begins a stream.
    pub(crate) fn new(schema: &Schema) -> io::Result<Self> {
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)
            .and_then(|options| options.try_with_compression(Some(CompressionType::ZSTD)))
            .and_then(|options| options.try_with_compression_level(Some(ZSTD_LEVEL)))
            .map_err(as_io)?;
        StreamWriter::try_new_with_options(Vec::new(), schema, options).map(Self).map_err(as_io)
    }

    /// The bytes of a batch; before the first one those of the schema.
    pub(crate) fn batch(&mut self, batch: &RecordBatch) -> io::Result<Vec<u8>> {
        self.0.write(batch).map_err(as_io)?;
        Ok(self.take())
    }

    /// The end mark, and the schema when no batch came.
    pub(crate) fn end(&mut self) -> io::Result<Vec<u8>> {
        self.0.finish().map_err(as_io)?;
        Ok(self.take())
    }

    /// What has come out since the last call: at first the schema.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.0.get_mut())
    }
}

/// An error of writing is told as such, without the library's name before it.
pub(crate) fn as_io(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        error => io::Error::other(error),
    }
}
