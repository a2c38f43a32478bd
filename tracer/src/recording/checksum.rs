//! Checksums: neither Arrow nor the zstd frames that arrow-rs writes have any, so that a flipped bit could pass for another
//! number. Each batch carries one in its message's own metadata, where Arrow has a place for such things, and the schema
//! one of what it says of the columns and the run. Readers that do not know of them see an Arrow stream like any other.

use std::io;

use anyhow::{Result, ensure};
use arrow_ipc::{
    Buffer, FieldNode, KeyValue, KeyValueArgs, Message, MessageArgs, MessageHeader, RecordBatch, RecordBatchArgs,
    root_as_message,
};
use arrow_schema::Schema;
use crc32fast::Hasher;
use flatbuffers::FlatBufferBuilder;

use super::layout::buffers;

/// What the checksum is called in the metadata of a message or a schema.
const KEY: &str = "tracer.crc32";

/// Before a message's head: the mark that one begins, and the head's length.
const PREFIX: usize = 8;

/// Of the columns, and of what is said of the run.
fn of_schema(schema: &Schema) -> String {
    let mut hasher = Hasher::new();
    let mut text = |text: &str| {
        hasher.update(text.as_bytes());
        hasher.update(&[0]);
    };
    for field in schema.fields() {
        text(field.name());
        text(&buffers(field.data_type()).map_or_else(String::new, |buffers| buffers.to_string()));
    }
    let mut pairs: Vec<_> = schema.metadata().iter().filter(|(key, _)| *key != KEY).collect();
    pairs.sort_unstable();
    for (key, value) in pairs {
        text(key);
        text(value);
    }
    format!("{:08x}", hasher.finalize())
}

/// A schema with its checksum put in.
pub(super) fn seal_schema(mut schema: Schema) -> Schema {
    let checksum = of_schema(&schema);
    schema.metadata.insert(KEY.to_owned(), checksum);
    schema
}

/// Compares a schema with its checksum; returns whether it has one, and then so must the batches.
pub(super) fn check_schema(schema: &Schema) -> Result<bool> {
    let said = schema.metadata().get(KEY);
    ensure!(
        said.is_none_or(|said| *said == of_schema(schema)),
        "damaged, or written anew by another program: it differs from its checksum"
    );
    Ok(said.is_some())
}

/// Of what is in a batch, and of where it is.
fn of_batch(batch: &RecordBatch<'_>, body: &[u8]) -> String {
    let mut hasher = Hasher::new();
    hasher.update(&batch.length().to_le_bytes());
    hasher.update(&[u8::try_from(batch.compression().map_or(-1, |codec| codec.codec().0)).unwrap_or(u8::MAX)]);
    for node in batch.nodes().into_iter().flatten() {
        hasher.update(&node.0);
    }
    for buffer in batch.buffers().into_iter().flatten() {
        hasher.update(&buffer.0);
    }
    hasher.update(body);
    format!("{:08x}", hasher.finalize())
}

/// Compares a batch with its checksum.
pub(super) fn check(message: &Message<'_>, batch: &RecordBatch<'_>, body: &[u8], required: bool) -> Result<()> {
    let said = message.custom_metadata().into_iter().flatten().find(|pair| pair.key() == Some(KEY));
    let said = said.and_then(|pair| pair.value());
    match said {
        Some(said) => ensure!(said == of_batch(batch, body), "damaged: a batch that differs from its checksum"),
        None => ensure!(!required, "damaged, or written anew by another program: a batch without its checksum"),
    }
    Ok(())
}

/// An encoded batch with its checksum put in.
pub(super) fn seal(encoded: &[u8]) -> io::Result<Vec<u8>> {
    sealed(encoded).ok_or_else(|| io::Error::other("a batch was encoded in an unexpected way"))
}

fn sealed(encoded: &[u8]) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(*encoded.get(4..)?.first_chunk()?) as usize;
    let (head, body) = encoded.get(PREFIX..)?.split_at_checked(length)?;
    let message = root_as_message(head).ok()?;
    let batch = message.header_as_record_batch()?;
    let nodes: Vec<FieldNode> = batch.nodes()?.iter().copied().collect();
    let buffers: Vec<Buffer> = batch.buffers()?.iter().copied().collect();

    let mut builder = FlatBufferBuilder::new();
    let value = builder.create_string(&of_batch(&batch, body));
    let key = builder.create_string(KEY);
    let pair = KeyValue::create(&mut builder, &KeyValueArgs { key: Some(key), value: Some(value) });
    let custom_metadata = Some(builder.create_vector(&[pair]));
    let compression = batch.compression().map(|compression| {
        let args = arrow_ipc::BodyCompressionArgs { codec: compression.codec(), method: compression.method() };
        arrow_ipc::BodyCompression::create(&mut builder, &args)
    });
    let (nodes, buffers) = (Some(builder.create_vector(&nodes)), Some(builder.create_vector(&buffers)));
    let args = RecordBatchArgs { length: batch.length(), nodes, buffers, compression, variadicBufferCounts: None };
    let header = Some(RecordBatch::create(&mut builder, &args).as_union_value());
    let args = MessageArgs {
        version: message.version(),
        header_type: MessageHeader::RecordBatch,
        header,
        bodyLength: message.bodyLength(),
        custom_metadata,
    };
    let message = Message::create(&mut builder, &args);
    builder.finish(message, None);

    let head = builder.finished_data();
    let length = head.len().next_multiple_of(8);
    let mut out = Vec::with_capacity(PREFIX + length + body.len());
    out.extend(encoded.get(..4)?);
    out.extend(u32::try_from(length).ok()?.to_le_bytes());
    out.extend(head);
    out.resize(PREFIX + length, 0);
    out.extend(body);
    Some(out)
}
