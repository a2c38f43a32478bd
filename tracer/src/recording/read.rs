//! Reads recordings: an Arrow IPC stream, message by message, so that everything before a cut or a damage is given out
//! and no length in the file is believed before its bytes are there.
//!
//! The file may be hostile. What arrow-rs is handed are messages whose sizes, compressed and not, have been checked.

use std::{
    collections::HashMap,
    io::{self, Read},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use arrow_buffer::Buffer;
use arrow_ipc::{MessageHeader, convert::try_fb_to_schema, reader::RecordBatchDecoder, root_as_message};
use arrow_schema::Schema;

use super::{
    metadata::Metadata,
    rows::{CgroupName, Decoded, RecordingColumns, Rows},
};
use crate::core::{input::Input, snapshot::Socket, tracker::MergeKind};

/// The head of a message is some kilobytes.
const MAX_HEAD: usize = 1 << 20;
/// A batch is some megabytes, compressed and not.
const MAX_BODY: u64 = 256 << 20;
/// Rows of one batch.
const MAX_ROWS: i64 = 1 << 20;

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its end mark: the run ended in order.
    Whole,
    /// Without: the writer was killed, or writes still.
    Cut,
}

/// What a file gives out.
#[derive(Debug)]
pub enum Recorded {
    /// An input of the trace.
    Input(Input),
    /// The name of a cgroup.
    Cgroup {
        /// Its id.
        id: u64,
        /// Its path.
        path: Arc<str>,
    },
}

/// Reads a file.
pub struct Reader<R> {
    from: R,
    schema: Arc<Schema>,
    metadata: Metadata,
    /// This file goes on where the one before it ended, so that its first dump tells nothing new.
    continues: bool,
    dumps: u64,
    rows: Option<(Rows, usize)>,
    sockets: Vec<Socket>,
    ending: Option<Ending>,
    read_bytes: u64,
}

/// A message: its head, and what belongs to it.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

enum Next {
    Message(Message),
    End(Ending),
}

impl<R: Read> Reader<R> {
    /// Reads the beginning of a file.
    pub fn new(mut from: R) -> Result<Self> {
        let mut read_bytes = 0;
        let message = match next_message(&mut from, &mut read_bytes) {
            Ok(Next::Message(message)) => message,
            Ok(Next::End(_)) => bail!("it is empty: not a recording"),
            Err(_) => bail!("not a recording of tracer"),
        };
        let head = root_as_message(&message.head).ok();
        let Some(schema) = head.and_then(|head| head.header_as_schema()) else {
            bail!("not a recording of tracer");
        };
        let schema = try_fb_to_schema(schema).context("not a recording of tracer")?;
        let metadata = Metadata::from_schema(schema.metadata())?;
        for field in RecordingColumns::schema().fields() {
            let found = schema.field_with_name(field.name()).ok();
            ensure!(
                found.is_some_and(|found| found.data_type() == field.data_type()),
                "damaged: its column {} is missing or of another type",
                field.name()
            );
        }
        let schema = Arc::new(schema);
        let (dumps, sockets) = (0, Vec::new());
        Ok(Self { from, schema, metadata, continues: false, dumps, rows: None, sockets, ending: None, read_bytes })
    }

    /// What the file says of its run.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// It is read after the file that came before it in its run.
    pub fn goes_on(&mut self) {
        self.continues = true;
    }

    /// How much of the file was read.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// What was read so far is given out: the next thing takes more of the file, and may have to wait for it.
    pub fn has_to_read_on(&self) -> bool {
        self.rows.as_ref().is_none_or(|(rows, at)| *at >= rows.len())
    }

    /// How the file ends, as soon as that is known.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The next thing in the file; `None` at its end. After an error there is nothing more to come.
    pub fn read(&mut self) -> Result<Option<Recorded>> {
        loop {
            let Some((rows, at)) = &mut self.rows else {
                if self.ending.is_some() || !self.read_batch().inspect_err(|_| self.ending = Some(Ending::Cut))? {
                    return Ok(None);
                }
                continue;
            };
            if *at >= rows.len() {
                self.rows = None;
                continue;
            }
            let row = *at;
            *at += 1;
            let decoded = match rows.decode(row, &mut self.sockets) {
                Ok(decoded) => decoded,
                Err(error) => {
                    (self.rows, self.ending) = (None, Some(Ending::Cut));
                    return Err(error.context("damaged"));
                }
            };
            match decoded {
                Decoded::Nothing => {}
                Decoded::Cgroup(CgroupName { id, path }) => return Ok(Some(Recorded::Cgroup { id, path })),
                Decoded::Input(Input::Dump(mut dump)) => {
                    if self.dumps == 0 {
                        dump.kind = if self.continues { MergeKind::Anew } else { MergeKind::StartUp };
                    }
                    self.dumps += 1;
                    return Ok(Some(Recorded::Input(Input::Dump(dump))));
                }
                Decoded::Input(input) => return Ok(Some(Recorded::Input(input))),
            }
        }
    }

    /// Reads the next batch; false at the end.
    fn read_batch(&mut self) -> Result<bool> {
        let message = match next_message(&mut self.from, &mut self.read_bytes)? {
            Next::Message(message) => message,
            Next::End(ending) => {
                self.ending = Some(ending);
                return Ok(false);
            }
        };
        let head = root_as_message(&message.head).ok().context("damaged: a message that cannot be read")?;
        let batch = match head.header_type() {
            MessageHeader::RecordBatch => head.header_as_record_batch().context("damaged: a batch that is none")?,
            other => bail!("damaged: a message of another kind ({other:?})"),
        };
        check_batch(&batch, &message.body)?;
        let body = Buffer::from_vec(message.body);
        let batch =
            RecordBatchDecoder::try_new(&body, batch, Arc::clone(&self.schema), &HashMap::new(), &head.version())
                .and_then(RecordBatchDecoder::read_record_batch)
                .context("damaged: a batch that cannot be read")?;
        self.rows = Some((Rows::new(&batch)?, 0));
        Ok(true)
    }
}

/// Nothing in the batch takes more room than a batch may, once it is unpacked.
fn check_batch(batch: &arrow_ipc::RecordBatch<'_>, body: &[u8]) -> Result<()> {
    ensure!((0..=MAX_ROWS).contains(&batch.length()), "damaged: a batch of {} rows", batch.length());
    let mut unpacked = 0_u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let range = usize::try_from(buffer.offset())
            .ok()
            .zip(usize::try_from(buffer.length()).ok())
            .and_then(|(offset, length)| Some(offset..offset.checked_add(length)?));
        let bytes = range.and_then(|range| body.get(range)).context("damaged: a buffer beyond the end of its batch")?;
        if bytes.is_empty() {
            continue;
        }
        let length = match (batch.compression(), bytes.first_chunk::<8>()) {
            (None, _) => bytes.len() as u64,
            (Some(_), None) => bail!("damaged: a buffer without its length"),
            // -1: it is not compressed after all.
            (Some(_), Some(length)) if i64::from_le_bytes(*length) == -1 => bytes.len() as u64,
            (Some(_), Some(length)) => u64::from_le_bytes(*length),
        };
        unpacked = unpacked.saturating_add(length);
        ensure!(unpacked <= MAX_BODY, "damaged: a batch of more than {} MiB", MAX_BODY >> 20);
    }
    Ok(())
}

/// The next message. An end in the middle of one is the end of a file that was cut off.
fn next_message(from: &mut impl Read, read_bytes: &mut u64) -> Result<Next> {
    const CONTINUES: u32 = u32::MAX;
    let Some(first) = read_u32(from)? else {
        return Ok(Next::End(Ending::Cut));
    };
    ensure!(first == CONTINUES, "damaged: no message where one should begin");
    let Some(length) = read_u32(from)? else {
        return Ok(Next::End(Ending::Cut));
    };
    *read_bytes += 8;
    if length == 0 {
        return Ok(Next::End(Ending::Whole));
    }
    ensure!(length as usize <= MAX_HEAD, "damaged: a message with a head of {length} bytes");
    let Some(head) = read_bytes_of(from, u64::from(length))? else {
        return Ok(Next::End(Ending::Cut));
    };
    let body_length = root_as_message(&head).ok().context("damaged: a message that cannot be read")?.bodyLength();
    let body_length = u64::try_from(body_length).ok().filter(|length| *length <= MAX_BODY);
    let body_length = body_length.context("damaged: a message of an impossible length")?;
    let Some(body) = read_bytes_of(from, body_length)? else {
        return Ok(Next::End(Ending::Cut));
    };
    *read_bytes += u64::from(length) + body_length;
    Ok(Next::Message(Message { head, body }))
}

fn read_u32(from: &mut impl Read) -> Result<Option<u32>> {
    Ok(read_bytes_of(from, 4)?.and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?))))
}

/// So many bytes; `None` when the file ends before. Memory grows with what is there, not with what was promised.
fn read_bytes_of(from: &mut impl Read, length: u64) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::with_capacity(length.min(1 << 20) as usize);
    match from.by_ref().take(length).read_to_end(&mut bytes) {
        Ok(read) => Ok((read as u64 == length).then_some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error.into()),
    }
}
