//! Reads recordings: an Arrow IPC stream, message by message, so that everything before a cut or a damage is given out
//! and no length in the file is believed before its bytes are there.
//!
//! The file may be hostile: `layout` checks what arrow-rs is handed.

use std::{
    collections::HashMap,
    io::{self, Read},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use arrow_buffer::Buffer;
use arrow_ipc::{
    Message, MessageHeader, convert::try_fb_to_schema, reader::RecordBatchDecoder, root_as_message_with_opts,
};
use arrow_schema::Schema;
use flatbuffers::VerifierOptions;

use super::{
    checksum,
    layout::Layout,
    metadata::Metadata,
    rows::{CgroupName, Decoded, Rows},
};
use crate::core::{input::Input, snapshot::Socket, tracker::MergeKind};

/// The head of a message is some kilobytes.
const MAX_HEAD: usize = 1 << 20;
/// A batch is some megabytes, compressed and not.
const MAX_BODY: u64 = 256 << 20;
/// Names of cgroups in one file.
const MAX_NAMES: usize = 64 << 20;

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
    layout: Layout,
    /// Somebody else may have written it without.
    has_checksums: bool,
    /// This file goes on where the one before it ended, so that its first dump tells nothing new.
    continues: bool,
    dumps: u64,
    rows: Option<(Rows, usize)>,
    sockets: Vec<Socket>,
    names_bytes: usize,
    ending: Option<Ending>,
    read_bytes: u64,
}

/// A message: its head, and what belongs to it.
struct Encoded {
    head: Vec<u8>,
    body: Vec<u8>,
}

enum Next {
    Message(Encoded),
    End(Ending),
}

impl<R: Read> Reader<R> {
    /// Reads the beginning of a file.
    pub fn new(mut from: R) -> Result<Self> {
        let mut read_bytes = 0;
        let message = match next_message(&mut from, &mut read_bytes) {
            Ok(Next::Message(message)) => message,
            Ok(Next::End(_)) => bail!("it is empty: not a recording"),
            Err(error) if error.is::<io::Error>() => return Err(error),
            Err(_) => bail!("not a recording of tracer"),
        };
        let head = parse(&message.head).ok();
        let Some(schema) = head.and_then(|head| head.header_as_schema()) else {
            bail!("not a recording of tracer");
        };
        let schema = try_fb_to_schema(schema).context("not a recording of tracer")?;
        let metadata = Metadata::from_schema(schema.metadata())?;
        let has_checksums = checksum::check_schema(&schema)?;
        Ok(Self {
            from,
            layout: Layout::of(&schema)?,
            schema: Arc::new(schema),
            metadata,
            has_checksums,
            continues: false,
            dumps: 0,
            rows: None,
            sockets: Vec::new(),
            names_bytes: 0,
            ending: None,
            read_bytes,
        })
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
                if self.ending.is_some() || !self.read_message().inspect_err(|_| self.ending = Some(Ending::Cut))? {
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
                Decoded::Cgroup(CgroupName { id, path }) => {
                    self.names_bytes += path.len() + size_of::<CgroupName>();
                    if self.names_bytes > MAX_NAMES {
                        (self.rows, self.ending) = (None, Some(Ending::Cut));
                        bail!("damaged: names of more than {} MiB", MAX_NAMES >> 20);
                    }
                    return Ok(Some(Recorded::Cgroup { id, path }));
                }
                Decoded::Input(Input::DumpBegins(mut kind)) => {
                    if self.dumps == 0 {
                        kind = if self.continues { MergeKind::Anew } else { MergeKind::StartUp };
                    }
                    self.dumps += 1;
                    return Ok(Some(Recorded::Input(Input::DumpBegins(kind))));
                }
                Decoded::Input(input) => return Ok(Some(Recorded::Input(input))),
            }
        }
    }

    /// Reads the next message; false at the end.
    fn read_message(&mut self) -> Result<bool> {
        let message = match next_message(&mut self.from, &mut self.read_bytes)? {
            Next::Message(message) => message,
            Next::End(ending) => {
                self.ending = Some(ending);
                return Ok(false);
            }
        };
        let head = parse(&message.head)?;
        let batch = match head.header_type() {
            MessageHeader::RecordBatch => head.header_as_record_batch().context("damaged: a batch that is none")?,
            // Of a column that a later version has added.
            MessageHeader::DictionaryBatch => return Ok(true),
            other => bail!("damaged: a message of another kind ({other:?})"),
        };
        checksum::check(&head, &batch, &message.body, self.has_checksums)?;
        self.layout.check(&batch, &message.body, MAX_BODY)?;
        let body = Buffer::from_vec(message.body);
        let batch =
            RecordBatchDecoder::try_new(&body, batch, Arc::clone(&self.schema), &HashMap::new(), &head.version())
                .and_then(|decoder| decoder.with_projection(Some(&self.layout.columns)).read_record_batch())
                .context("damaged: a batch that cannot be read")?;
        self.rows = Some((Rows::new(&batch)?, 0));
        Ok(true)
    }
}

/// A message's head, which may be hostile: what it takes to read it, shared parts counted as often as they are used, is
/// in proportion to its size.
fn parse(head: &[u8]) -> Result<Message<'_>> {
    let options =
        VerifierOptions { max_tables: MAX_HEAD / 16, max_apparent_size: 4 * MAX_HEAD, ..VerifierOptions::default() };
    root_as_message_with_opts(&options, head).ok().context("damaged: a message that cannot be read")
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
    let body_length = u64::try_from(parse(&head)?.bodyLength()).ok().filter(|length| *length <= MAX_BODY);
    let body_length = body_length.context("damaged: a message of an impossible length")?;
    let Some(body) = read_bytes_of(from, body_length)? else {
        return Ok(Next::End(Ending::Cut));
    };
    *read_bytes += u64::from(length) + body_length;
    Ok(Next::Message(Encoded { head, body }))
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
