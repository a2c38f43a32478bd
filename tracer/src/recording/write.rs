//! Writes recordings. Rows are gathered on the thread that drains the ring buffer; encoding, compressing and writing is
//! another thread's work, so that a slow disk is felt as late as can be.

use std::{
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use arrow_array::RecordBatch;
use arrow_schema::Schema;
use rustc_hash::FxHashSet;

use super::{checksum, metadata::Metadata, rows::RecordingColumns};
use crate::{
    core::{
        input::Input,
        snapshot::Socket,
        transition::{Event, KernelAddress},
    },
    output::{
        BATCH_AGE, BATCH_ROWS, arrow,
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
    Part(W, Arc<Schema>),
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
    hasher: RandomState,
    jobs: Option<SyncSender<Job<W>>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    part_bytes: Arc<AtomicU64>,
}

impl<W: Write + Send + 'static> Recorder<W> {
    /// Begins a recording in its first file.
    pub fn new(to: W, metadata: &Metadata) -> Result<Self> {
        let (jobs, received) = sync_channel(WAITING_BATCHES);
        let part_bytes = Arc::new(AtomicU64::new(0));
        let written = Arc::clone(&part_bytes);
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || write_jobs(&received, &written))
            .context("cannot start the thread that writes")?;
        let mut recorder = Self {
            columns: RecordingColumns::default(),
            schema: Arc::new(RecordingColumns::schema()),
            since: None,
            now_ns: None,
            told_cgroups: FxHashSet::default(),
            hasher: RandomState::new(),
            jobs: Some(jobs),
            thread: Some(thread),
            part_bytes,
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
        self.part_bytes.store(0, Ordering::Relaxed);
        self.send(Job::Part(to, Arc::clone(&self.schema)))
    }

    /// How much was written to this file so far.
    pub fn part_bytes(&self) -> u64 {
        self.part_bytes.load(Ordering::Relaxed)
    }

    /// Takes an event, with what `tracer log` shows of it when it is a transition.
    pub fn event(&mut self, event: &Event, shown: Option<&LogRecord>, time: Time) -> Result<()> {
        self.tell_now()?;
        match (event, shown) {
            (Event::Transition(transition), Some(shown)) => {
                let id = self.socket_id(transition.socket.address);
                self.columns.transition(transition, shown, id);
            }
            (Event::Reset(reset), _) => {
                let id = self.socket_id(reset.socket.address);
                self.columns.reset(reset, time, id);
            }
            (Event::Transition(_), None) => {}
        }
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
            Input::Dump(dump) => &dump.snapshot.sockets,
            Input::MiniSockets(snapshot) => &snapshot.sockets,
            Input::Facts(facts) => &facts.sockets,
            _ => &[],
        };
        for sockets in sockets.chunks(BATCH_ROWS) {
            self.columns.sockets(sockets);
            self.write_when_full()?;
        }
        if let Input::Forget(socket) = input {
            let id = self.socket_id(socket.address).unwrap_or(0);
            let socket = crate::core::transition::SocketId { address: KernelAddress(id), ..*socket };
            self.columns.input(&Input::Forget(socket))?;
        } else {
            self.columns.input(input)?;
        }
        self.write_when_full()
    }

    /// Writes what has waited for long enough; called several times a second.
    pub fn flush(&mut self) -> Result<()> {
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
        self.jobs = None;
        self.outcome()
    }

    /// A socket's address is told by a hash of it, with a key that nobody knows.
    fn socket_id(&self, address: KernelAddress) -> Option<u64> {
        (address != KernelAddress(0)).then(|| self.hasher.hash_one(address.0) | 1)
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
        self.send(Job::Batch(batch))
    }

    fn send(&mut self, job: Job<W>) -> Result<()> {
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => self.outcome(),
        }
    }

    /// Why the thread has ended.
    fn outcome(&mut self) -> Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            None => Err(anyhow!("the recording cannot be written any more")),
            Some(Ok(result)) => Ok(result?),
            Some(Err(_)) => Err(anyhow!("the thread that writes the recording failed")),
        }
    }
}

fn write_jobs<W: Write>(jobs: &Receiver<Job<W>>, written: &AtomicU64) -> io::Result<()> {
    let mut part: Option<(W, arrow::Encoder)> = None;
    for job in jobs {
        match job {
            Job::Part(mut to, schema) => {
                end_part(part.take())?;
                let mut encoder = arrow::Encoder::new(&schema)?;
                to.write_all(&encoder.take())?;
                to.flush()?;
                part = Some((to, encoder));
            }
            Job::Batch(batch) => {
                if let Some((to, encoder)) = &mut part {
                    let bytes = checksum::seal(&encoder.batch(&batch)?)?;
                    to.write_all(&bytes)?;
                    to.flush()?;
                    written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            }
        }
    }
    end_part(part)
}

fn end_part<W: Write>(part: Option<(W, arrow::Encoder)>) -> io::Result<()> {
    if let Some((mut to, mut encoder)) = part {
        to.write_all(&encoder.end()?)?;
        to.flush()?;
    }
    Ok(())
}
