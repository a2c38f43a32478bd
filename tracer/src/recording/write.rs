//! Writes recordings. Rows are gathered on the thread that drains the ring buffer; encoding, compressing and writing is
//! another thread's work, so that a slow disk is felt as late as can be.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use arrow_array::RecordBatch;
use arrow_schema::Schema;
use rustc_hash::FxHashSet;

use super::{checksum, metadata::Metadata, rows::RecordingColumns};
use crate::{
    core::{
        input::Input,
        snapshot::Socket,
        transition::{Reset, Transition},
    },
    output::{
        BATCH_AGE, BATCH_ROWS, arrow,
        behind::{Behind, Jobs},
        records::{LogRecord, Time},
    },
};

/// Batches that wait for the disk before the draining thread has to wait too.
const WAITING_BATCHES: usize = 8;

/// A batch with this much text in `detail` is full, whatever the number of its rows.
const BATCH_DETAIL_BYTES: usize = 4 << 20;

/// What the writing thread is asked for.
enum Job<W> {
    /// From here on another file.
    Part {
        to: W,
        schema: Arc<Schema>,
        written: Arc<AtomicU64>,
    },
    Batch(RecordBatch),
}

/// Writes a recording.
pub struct Recorder<W> {
    columns: RecordingColumns,
    schema: Arc<Schema>,
    /// When the first of the rows that wait was looked at.
    since: Option<Instant>,
    /// It was this time, and nothing has happened since: told before the next thing that does.
    now_ns: Option<u64>,
    told_cgroups: FxHashSet<u64>,
    behind: Behind<Job<W>, ()>,
    /// How much of the current file was written; each has a count of its own, which its last batches may still add to.
    part_bytes: Arc<AtomicU64>,
}

impl<W: Write + Send + 'static> Recorder<W> {
    /// Begins a recording in its first file.
    pub fn new(to: W, metadata: &Metadata) -> Result<Self> {
        let behind =
            Behind::start("recorder", WAITING_BATCHES, write_jobs).context("cannot start the thread that writes")?;
        let mut recorder = Self {
            columns: RecordingColumns::new(),
            schema: Arc::new(RecordingColumns::schema()),
            since: None,
            now_ns: None,
            told_cgroups: FxHashSet::default(),
            behind,
            part_bytes: Arc::default(),
        };
        recorder.begin_part(to, metadata)?;
        Ok(recorder)
    }

    /// Goes on in another file.
    pub fn begin_part(&mut self, to: W, metadata: &Metadata) -> Result<()> {
        self.write_out()?;
        let schema = RecordingColumns::schema().with_metadata(metadata.to_schema());
        self.schema = Arc::new(checksum::seal_schema(schema));
        self.told_cgroups.clear();
        let written = Arc::new(AtomicU64::new(0));
        self.part_bytes = Arc::clone(&written);
        Ok(self.behind.send(Job::Part { to, schema: Arc::clone(&self.schema), written })?)
    }

    /// How much was written to this file so far.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes.load(Ordering::Relaxed)
    }

    /// Whether the disk is slower than what comes.
    pub fn is_behind(&self) -> bool {
        self.behind.waiting() > 1
    }

    /// Takes a transition, with what `tracer log` shows of it.
    pub fn transition(&mut self, transition: &Transition, shown: &LogRecord) -> Result<()> {
        self.tell_now()?;
        self.columns.transition(transition, shown);
        self.write_when_full()
    }

    /// Takes a RST, which happened at that time.
    pub fn reset(&mut self, reset: &Reset, time: Time) -> Result<()> {
        self.tell_now()?;
        self.columns.reset(reset, time);
        self.write_when_full()
    }

    /// Takes the name of a cgroup; `name` is asked once for each.
    pub fn cgroup(&mut self, id: u64, name: impl FnOnce() -> Option<Arc<str>>) {
        if id != 0
            && self.told_cgroups.insert(id)
            && let Some(path) = name()
        {
            self.columns.cgroup(id, &path);
        }
    }

    /// Takes an input that is no event.
    pub fn input(&mut self, input: &Input) -> Result<()> {
        if let Input::Now(now_ns) = input {
            self.now_ns = self.now_ns.max(Some(*now_ns));
            return Ok(());
        }
        self.tell_now()?;
        let sockets: &[Socket] = match input {
            Input::DumpPart(snapshot) | Input::Dump(snapshot) | Input::MiniSockets(snapshot) => &snapshot.sockets,
            Input::Facts(facts) => &facts.sockets,
            _ => &[],
        };
        for sockets in sockets.chunks(BATCH_ROWS) {
            self.columns.sockets(sockets);
            self.write_when_full()?;
        }
        self.columns.input(input)?;
        self.write_when_full()
    }

    /// Writes what has waited for long enough; called several times a second.
    pub fn flush(&mut self) -> Result<()> {
        self.behind.check()?;
        // That time passes is no reason to write: a host where nothing happens has a recording that does not grow.
        if self.columns.rows() > 0 && self.since.get_or_insert_with(Instant::now).elapsed() >= BATCH_AGE {
            self.write_out()?;
        }
        Ok(())
    }

    /// Writes what is left and the end mark.
    pub fn finish(mut self) -> Result<()> {
        self.tell_now()?;
        self.write_out()?;
        Ok(self.behind.finish()?)
    }

    fn tell_now(&mut self) -> Result<()> {
        match self.now_ns.take() {
            Some(now_ns) => self.columns.input(&Input::Now(now_ns)),
            None => Ok(()),
        }
    }

    fn write_when_full(&mut self) -> Result<()> {
        if self.columns.rows() >= BATCH_ROWS || self.columns.detail_bytes() >= BATCH_DETAIL_BYTES {
            self.write_out()?;
        }
        Ok(())
    }

    pub(super) fn write_out(&mut self) -> Result<()> {
        self.since = None;
        if self.columns.rows() == 0 {
            return Ok(());
        }
        let batch = self.columns.batch(Arc::clone(&self.schema)).map_err(arrow::as_io)?;
        Ok(self.behind.send(Job::Batch(batch))?)
    }
}

/// A file under way.
struct Part<W> {
    to: W,
    encoder: arrow::Encoder,
    written: Arc<AtomicU64>,
}

impl<W: Write> Part<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.flush()?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        let end = self.encoder.end()?;
        self.write(&end)
    }
}

fn write_jobs<W: Write>(jobs: Jobs<Job<W>>) -> io::Result<()> {
    let mut part: Option<Part<W>> = None;
    for job in jobs {
        match job {
            Job::Part { to, schema, written } => {
                part.take().map_or(Ok(()), Part::end)?;
                let mut encoder = arrow::Encoder::new(&schema)?;
                let head = encoder.take();
                part.insert(Part { to, encoder, written }).write(&head)?;
            }
            Job::Batch(batch) => {
                if let Some(part) = &mut part {
                    let bytes = checksum::seal(&part.encoder.batch(&batch)?)?;
                    part.write(&bytes)?;
                }
            }
        }
    }
    part.map_or(Ok(()), Part::end)
}
