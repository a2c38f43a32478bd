//! Inputs as rows, and rows as inputs. The first columns are those of `tracer log`, filled for transitions as `tracer
//! log` shows them; `kind` says what a row is, and the columns after them are what a replay needs besides.
//!
//! A dump is its sockets, a row each, and then a row that says what they were; small things are JSON in `detail`.
//! Kernel addresses are not in it: a socket without a cookie is known by a keyed hash of its address.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use arrow_array::{
    Array, ArrayRef, BinaryArray, PrimitiveArray, RecordBatch, StringArray,
    builder::{BinaryBuilder, PrimitiveBuilder, StringBuilder},
    types::{ArrowPrimitiveType, UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::{ArrowError, Field, FieldRef, Schema};
use serde::{Deserialize, Serialize};

use crate::{
    core::{
        endpoint::{Address, Endpoint, Tuple},
        finding::Facts,
        input::{Dump, Holders, Input},
        snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
        state::State,
        tracker::MergeKind,
        transition::{
            Comm, Context, Details, Errno, Event, KernelAddress, Origin, Reset, ResetDirection, SocketId, Task,
            Transition,
        },
    },
    output::{
        Row,
        columns::{Columns, LogColumns, SparseRow},
        records::{LogRecord, Time},
    },
    problem::printable,
};

/// Sockets in one dump at most: more than any host has, and less than a hostile file would like. Tests have no time for
/// so many.
pub(super) const MAX_SOCKETS: usize = if cfg!(test) { 100_000 } else { 8 << 20 };

/// Text in the samples for the findings at most: a million sockets in trouble take less.
const MAX_FACTS: usize = 128 << 20;

/// Namespaces of one dump.
const MAX_NETNS: usize = 1 << 16;

/// Ranges of reserved ports: with more of them two would meet.
pub(super) const MAX_RESERVED: usize = 1 << 15;

/// What a row is.
mod kind {
    pub(super) const TRANSITION: &str = "transition";
    pub(super) const RESET_SENT: &str = "reset_sent";
    pub(super) const RESET_RECEIVED: &str = "reset_received";
    pub(super) const SOCKET: &str = "socket";
    pub(super) const DUMP_BEGINS: &str = "dump_begins";
    pub(super) const DUMP_FAILED: &str = "dump_failed";
    pub(super) const DUMP: &str = "dump";
    pub(super) const MINI_SOCKETS: &str = "mini_sockets";
    pub(super) const NOW: &str = "now";
    pub(super) const FORGET: &str = "forget";
    pub(super) const LOSS: &str = "loss";
    pub(super) const COUNTERS: &str = "counters";
    pub(super) const FACTS: &str = "facts";
    pub(super) const CGROUP: &str = "cgroup";
}

const FIN_RECEIVED: u8 = 1;
const ORPHANED: u8 = 2;
const SEND_SHUTDOWN: u8 = 4;
const LINGER: u8 = 8;
const MPTCP: u8 = 16;

/// What is said of a dump besides its sockets.
#[derive(Serialize, Deserialize)]
struct DumpDetail {
    started_ns: u64,
    ended_ns: u64,
    complete_netns: Vec<u32>,
    holders: Holders,
}

/// The columns besides those of the log; `None` where a row has nothing to say.
#[derive(Default)]
struct Extra<'a> {
    socket_id: Option<u64>,
    ends: Option<[u8; 40]>,
    task: Option<Task>,
    context: Option<u8>,
    details: Option<Details>,
    cgroup_id: Option<u64>,
    bytes: Option<(u64, u64)>,
    socket: Option<&'a Socket>,
    detail: Option<&'a str>,
}

type U8s = PrimitiveBuilder<UInt8Type>;
type U16s = PrimitiveBuilder<UInt16Type>;
type U32s = PrimitiveBuilder<UInt32Type>;
type U64s = PrimitiveBuilder<UInt64Type>;

/// Gathers rows.
#[derive(Debug, Default)]
pub(super) struct RecordingColumns {
    kind: StringBuilder,
    log: LogColumns,
    socket_id: U64s,
    ends: BinaryBuilder,
    task_pid: U32s,
    task_tid: U32s,
    task_comm: BinaryBuilder,
    context: U8s,
    flags: U8s,
    previous_port: U16s,
    errno: U32s,
    cgroup_id: U64s,
    bytes_received: U64s,
    bytes_acked: U64s,
    srtt_us: U32s,
    retransmits: U32s,
    socket_kind: U8s,
    receive_queue: U32s,
    send_queue: U32s,
    expires_in_ms: U32s,
    last_data_sent_ms: U32s,
    last_data_recv_ms: U32s,
    last_ack_recv_ms: U32s,
    detail: StringBuilder,
    rows: usize,
    bytes: usize,
}

const EXTRA_FIELDS: [&str; 22] = [
    "socket_id",
    "ends",
    "task_pid",
    "task_tid",
    "task_comm",
    "context",
    "flags",
    "previous_port",
    "errno",
    "cgroup_id",
    "bytes_received",
    "bytes_acked",
    "srtt_us",
    "retransmits",
    "socket_kind",
    "receive_queue",
    "send_queue",
    "expires_in_ms",
    "last_data_sent_ms",
    "last_data_recv_ms",
    "last_ack_recv_ms",
    "detail",
];

/// Columns of the log that a replay needs. The others are for people: a later version may have more of them, or fewer.
const LOG_FIELDS_READ: [&str; 12] = [
    "mono_ns",
    "cookie",
    "netns",
    "local_addr",
    "local_port",
    "remote_addr",
    "remote_port",
    "old_state",
    "new_state",
    "uid",
    "inode",
    "origin",
];

/// The columns that [`Rows`] reads.
pub(super) fn fields_read() -> impl Iterator<Item = FieldRef> {
    let is_read = |name: &str| name == "kind" || LOG_FIELDS_READ.contains(&name) || EXTRA_FIELDS.contains(&name);
    let fields: Vec<FieldRef> = RecordingColumns::schema().fields().to_vec();
    fields.into_iter().filter(move |field| is_read(field.name()))
}

impl RecordingColumns {
    pub(super) fn schema() -> Schema {
        let names = ["kind"].into_iter().chain(LogRecord::FIELDS.iter().copied()).chain(EXTRA_FIELDS);
        let arrays = Self::default().arrays();
        let field = |(name, array): (&str, &ArrayRef)| Field::new(name, array.data_type().clone(), name != "kind");
        Schema::new(names.zip(&arrays).map(field).collect::<Vec<_>>())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// About how much the long texts take.
    pub(super) fn detail_bytes(&self) -> usize {
        self.bytes
    }

    /// What was gathered, as a batch.
    pub(super) fn batch(&mut self, schema: Arc<Schema>) -> Result<RecordBatch, ArrowError> {
        (self.rows, self.bytes) = (0, 0);
        RecordBatch::try_new(schema, self.arrays())
    }

    fn arrays(&mut self) -> Vec<ArrayRef> {
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(self.kind.finish())];
        arrays.extend(self.log.arrays());
        let extra: [ArrayRef; EXTRA_FIELDS.len()] = [
            Arc::new(self.socket_id.finish()),
            Arc::new(self.ends.finish()),
            Arc::new(self.task_pid.finish()),
            Arc::new(self.task_tid.finish()),
            Arc::new(self.task_comm.finish()),
            Arc::new(self.context.finish()),
            Arc::new(self.flags.finish()),
            Arc::new(self.previous_port.finish()),
            Arc::new(self.errno.finish()),
            Arc::new(self.cgroup_id.finish()),
            Arc::new(self.bytes_received.finish()),
            Arc::new(self.bytes_acked.finish()),
            Arc::new(self.srtt_us.finish()),
            Arc::new(self.retransmits.finish()),
            Arc::new(self.socket_kind.finish()),
            Arc::new(self.receive_queue.finish()),
            Arc::new(self.send_queue.finish()),
            Arc::new(self.expires_in_ms.finish()),
            Arc::new(self.last_data_sent_ms.finish()),
            Arc::new(self.last_data_recv_ms.finish()),
            Arc::new(self.last_ack_recv_ms.finish()),
            Arc::new(self.detail.finish()),
        ];
        arrays.extend(extra);
        arrays
    }

    /// A transition, with what `tracer log` shows of it.
    pub(super) fn transition(&mut self, transition: &Transition, shown: &LogRecord, socket_id: Option<u64>) {
        self.log.append(shown);
        let shown_tuple = Tuple {
            netns: shown.netns.unwrap_or(0),
            local: Endpoint { address: shown.local_addr, port: shown.local_port },
            remote: Endpoint { address: shown.remote_addr, port: shown.remote_port },
        };
        let details = transition.details;
        self.extra(
            kind::TRANSITION,
            &Extra {
                socket_id,
                ends: (shown_tuple != transition.tuple).then(|| pack(&transition.tuple)),
                task: Some(transition.task),
                context: Some(match transition.context {
                    Context::Softirq => 0,
                    Context::Process => 1,
                    Context::Unknown => 2,
                }),
                details,
                cgroup_id: details.map(|details| details.cgroup),
                bytes: details.map(|details| (details.bytes_received, details.bytes_acked)),
                ..Extra::default()
            },
        );
    }

    /// A RST.
    pub(super) fn reset(&mut self, reset: &Reset, time: Time, socket_id: Option<u64>) {
        self.log.append_sparse(&SparseRow {
            time: Some(time),
            mono_ns: Some(reset.mono_ns),
            cookie: Some(reset.socket.cookie).filter(|cookie| *cookie != 0),
            tuple: Some(reset.tuple),
            old_state: Some(reset.state),
            ..SparseRow::default()
        });
        let kind = match reset.direction {
            ResetDirection::Sent => kind::RESET_SENT,
            ResetDirection::Received => kind::RESET_RECEIVED,
        };
        self.extra(kind, &Extra { socket_id, ..Extra::default() });
    }

    /// The name of a cgroup.
    pub(super) fn cgroup(&mut self, id: u64, path: &str) {
        self.log.append_sparse(&SparseRow::default());
        self.extra(kind::CGROUP, &Extra { cgroup_id: Some(id), detail: Some(path), ..Extra::default() });
    }

    /// Everything else, without the sockets in it.
    pub(super) fn input(&mut self, input: &Input) -> Result<()> {
        match input {
            // An event is more than itself: what is shown of it comes with it.
            Input::Event(_) => {}
            Input::Now(now_ns) => {
                self.log.append_sparse(&SparseRow { mono_ns: Some(*now_ns), ..SparseRow::default() });
                self.extra(kind::NOW, &Extra::default());
            }
            Input::Forget(socket) => {
                let cookie = Some(socket.cookie).filter(|cookie| *cookie != 0);
                self.log.append_sparse(&SparseRow { cookie, ..SparseRow::default() });
                self.extra(kind::FORGET, &Extra { socket_id: Some(socket.address.0), ..Extra::default() });
            }
            Input::DumpBegins => self.word(kind::DUMP_BEGINS, None, None),
            Input::DumpFailed => self.word(kind::DUMP_FAILED, None, None),
            Input::Dump(dump) => self.dump_ends(kind::DUMP, &dump.snapshot, &dump.holders)?,
            Input::MiniSockets(snapshot) => self.dump_ends(kind::MINI_SOCKETS, snapshot, &Holders::default())?,
            Input::Loss(loss) => self.word(kind::LOSS, None, Some(&serde_json::to_string(loss)?)),
            Input::Counters(counters) => {
                self.word(kind::COUNTERS, Some(counters.now_ns), Some(&serde_json::to_string(counters)?));
            }
            Input::Facts(facts) => self.word(kind::FACTS, Some(facts.now_ns), Some(&serde_json::to_string(facts)?)),
        }
        Ok(())
    }

    fn dump_ends(&mut self, kind: &str, snapshot: &Snapshot, holders: &Holders) -> Result<()> {
        let detail = DumpDetail {
            started_ns: snapshot.started_ns,
            ended_ns: snapshot.ended_ns,
            complete_netns: snapshot.complete_netns.clone(),
            holders: holders.clone(),
        };
        self.word(kind, Some(snapshot.ended_ns), Some(&serde_json::to_string(&detail)?));
        Ok(())
    }

    fn word(&mut self, kind: &str, mono_ns: Option<u64>, detail: Option<&str>) {
        self.log.append_sparse(&SparseRow { mono_ns, ..SparseRow::default() });
        self.extra(kind, &Extra { detail, ..Extra::default() });
    }

    /// Sockets of a dump or a sample; the input itself comes after all of them.
    pub(super) fn sockets(&mut self, sockets: &[Socket]) {
        for socket in sockets {
            self.log.append_sparse(&SparseRow {
                cookie: Some(socket.cookie),
                tuple: Some(socket.tuple),
                new_state: Some(socket.state),
                uid: Some(socket.uid),
                inode: Some(socket.inode),
                ..SparseRow::default()
            });
            let bytes = socket.info.map(|info| (info.bytes_received, info.bytes_acked));
            let cgroup_id = Some(socket.cgroup);
            self.extra(kind::SOCKET, &Extra { cgroup_id, bytes, socket: Some(socket), ..Extra::default() });
        }
    }

    fn extra(&mut self, kind: &str, extra: &Extra<'_>) {
        let Extra { task, details, socket, .. } = extra;
        self.kind.append_value(kind);
        self.socket_id.append_option(extra.socket_id.filter(|id| *id != 0));
        self.ends.append_option(extra.ends);
        self.task_pid.append_option(task.map(|task| task.pid));
        self.task_tid.append_option(task.map(|task| task.tid));
        self.task_comm.append_option(task.as_ref().map(|task| task.comm.as_bytes()));
        self.context.append_option(extra.context);
        self.flags.append_option(details.as_ref().map(flags));
        self.previous_port.append_option(details.map(|details| details.previous_port));
        self.errno.append_option(details.map(|details| details.error.0));
        self.cgroup_id.append_option(extra.cgroup_id);
        self.bytes_received.append_option(extra.bytes.map(|(received, _)| received));
        self.bytes_acked.append_option(extra.bytes.map(|(_, acked)| acked));
        self.srtt_us.append_option(details.map(|details| details.srtt_us));
        self.retransmits.append_option(details.map(|details| details.retransmits));
        self.socket_kind.append_option(socket.map(|socket| match socket.kind {
            SocketKind::Full => 0,
            SocketKind::Mini { .. } => 1,
            SocketKind::Request => 2,
        }));
        self.receive_queue.append_option(socket.map(|socket| socket.receive_queue));
        self.send_queue.append_option(socket.map(|socket| socket.send_queue));
        self.expires_in_ms.append_option(socket.and_then(|socket| match socket.kind {
            SocketKind::Mini { expires_in_ms } => Some(expires_in_ms),
            SocketKind::Full | SocketKind::Request => None,
        }));
        let info = socket.and_then(|socket| socket.info);
        self.last_data_sent_ms.append_option(info.map(|info| info.last_data_sent_ms));
        self.last_data_recv_ms.append_option(info.map(|info| info.last_data_recv_ms));
        self.last_ack_recv_ms.append_option(info.map(|info| info.last_ack_recv_ms));
        self.detail.append_option(extra.detail);
        self.rows += 1;
        self.bytes += extra.detail.map_or(0, str::len);
    }
}

fn flags(details: &Details) -> u8 {
    let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
    flag(details.fin_received, FIN_RECEIVED)
        | flag(details.orphaned, ORPHANED)
        | flag(details.send_shutdown, SEND_SHUTDOWN)
        | flag(details.linger, LINGER)
        | flag(details.mptcp, MPTCP)
}

/// The ends as the kernel told them, where more is known by now.
fn pack(tuple: &Tuple) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[..4].copy_from_slice(&tuple.netns.to_le_bytes());
    bytes[4..20].copy_from_slice(&tuple.local.address.octets());
    bytes[20..22].copy_from_slice(&tuple.local.port.to_le_bytes());
    bytes[22..38].copy_from_slice(&tuple.remote.address.octets());
    bytes[38..].copy_from_slice(&tuple.remote.port.to_le_bytes());
    bytes
}

fn unpack(bytes: &[u8]) -> Option<Tuple> {
    let end = |bytes: &[u8]| {
        let (address, port) = bytes.split_at_checked(16)?;
        let address = Address::v6(address.try_into().ok()?);
        Some(Endpoint { address, port: u16::from_le_bytes(port.try_into().ok()?) })
    };
    let (netns, ends) = bytes.split_at_checked(4)?;
    let (local, remote) = ends.split_at_checked(18)?;
    Some(Tuple { netns: u32::from_le_bytes(netns.try_into().ok()?), local: end(local)?, remote: end(remote)? })
}

/// A name that a row tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CgroupName {
    pub(super) id: u64,
    pub(super) path: Arc<str>,
}

/// What a row is for.
#[derive(Debug)]
pub(super) enum Decoded {
    Input(Input),
    Cgroup(CgroupName),
    /// Part of something, or something that a replay finds out by itself.
    Nothing,
}

/// The columns of a batch.
pub(super) struct Rows {
    kind: StringArray,
    mono_ns: PrimitiveArray<UInt64Type>,
    cookie: PrimitiveArray<UInt64Type>,
    netns: PrimitiveArray<UInt32Type>,
    local_addr: StringArray,
    local_port: PrimitiveArray<UInt16Type>,
    remote_addr: StringArray,
    remote_port: PrimitiveArray<UInt16Type>,
    old_state: StringArray,
    new_state: StringArray,
    uid: PrimitiveArray<UInt32Type>,
    inode: PrimitiveArray<UInt64Type>,
    origin: StringArray,
    socket_id: PrimitiveArray<UInt64Type>,
    ends: BinaryArray,
    task_pid: PrimitiveArray<UInt32Type>,
    task_tid: PrimitiveArray<UInt32Type>,
    task_comm: BinaryArray,
    context: PrimitiveArray<UInt8Type>,
    flags: PrimitiveArray<UInt8Type>,
    previous_port: PrimitiveArray<UInt16Type>,
    errno: PrimitiveArray<UInt32Type>,
    cgroup_id: PrimitiveArray<UInt64Type>,
    bytes_received: PrimitiveArray<UInt64Type>,
    bytes_acked: PrimitiveArray<UInt64Type>,
    srtt_us: PrimitiveArray<UInt32Type>,
    retransmits: PrimitiveArray<UInt32Type>,
    socket_kind: PrimitiveArray<UInt8Type>,
    receive_queue: PrimitiveArray<UInt32Type>,
    send_queue: PrimitiveArray<UInt32Type>,
    expires_in_ms: PrimitiveArray<UInt32Type>,
    last_data_sent_ms: PrimitiveArray<UInt32Type>,
    last_data_recv_ms: PrimitiveArray<UInt32Type>,
    last_ack_recv_ms: PrimitiveArray<UInt32Type>,
    detail: StringArray,
}

fn column<A: Array + Clone + 'static>(batch: &RecordBatch, name: &str) -> Result<A> {
    let column = batch.column_by_name(name).with_context(|| format!("it has no column {name}"))?;
    column.as_any().downcast_ref::<A>().cloned().with_context(|| format!("its column {name} is of another type"))
}

fn value<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, row: usize) -> Option<T::Native> {
    column.is_valid(row).then(|| column.value(row))
}

fn number<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, row: usize) -> T::Native {
    value(column, row).unwrap_or_default()
}

fn text(column: &StringArray, row: usize) -> &str {
    if column.is_valid(row) { column.value(row) } else { "" }
}

impl Rows {
    pub(super) fn new(batch: &RecordBatch) -> Result<Self> {
        Ok(Self {
            kind: column(batch, "kind")?,
            mono_ns: column(batch, "mono_ns")?,
            cookie: column(batch, "cookie")?,
            netns: column(batch, "netns")?,
            local_addr: column(batch, "local_addr")?,
            local_port: column(batch, "local_port")?,
            remote_addr: column(batch, "remote_addr")?,
            remote_port: column(batch, "remote_port")?,
            old_state: column(batch, "old_state")?,
            new_state: column(batch, "new_state")?,
            uid: column(batch, "uid")?,
            inode: column(batch, "inode")?,
            origin: column(batch, "origin")?,
            socket_id: column(batch, "socket_id")?,
            ends: column(batch, "ends")?,
            task_pid: column(batch, "task_pid")?,
            task_tid: column(batch, "task_tid")?,
            task_comm: column(batch, "task_comm")?,
            context: column(batch, "context")?,
            flags: column(batch, "flags")?,
            previous_port: column(batch, "previous_port")?,
            errno: column(batch, "errno")?,
            cgroup_id: column(batch, "cgroup_id")?,
            bytes_received: column(batch, "bytes_received")?,
            bytes_acked: column(batch, "bytes_acked")?,
            srtt_us: column(batch, "srtt_us")?,
            retransmits: column(batch, "retransmits")?,
            socket_kind: column(batch, "socket_kind")?,
            receive_queue: column(batch, "receive_queue")?,
            send_queue: column(batch, "send_queue")?,
            expires_in_ms: column(batch, "expires_in_ms")?,
            last_data_sent_ms: column(batch, "last_data_sent_ms")?,
            last_data_recv_ms: column(batch, "last_data_recv_ms")?,
            last_ack_recv_ms: column(batch, "last_ack_recv_ms")?,
            detail: column(batch, "detail")?,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.kind.len()
    }

    /// What a row says; `sockets` are those of the dump that is being read.
    pub(super) fn decode(&self, row: usize, sockets: &mut Vec<Socket>) -> Result<Decoded> {
        let kind = text(&self.kind, row);
        let input = match kind {
            // What was repaired a replay repairs again.
            kind::TRANSITION if text(&self.origin, row) != Origin::Kernel.name() => return Ok(Decoded::Nothing),
            kind::TRANSITION => Input::Event(Event::Transition(self.transition(row)?)),
            kind::RESET_SENT => Input::Event(Event::Reset(self.reset(row, ResetDirection::Sent)?)),
            kind::RESET_RECEIVED => Input::Event(Event::Reset(self.reset(row, ResetDirection::Received)?)),
            kind::SOCKET => {
                ensure!(sockets.len() < MAX_SOCKETS, "a dump of more than {MAX_SOCKETS} sockets");
                sockets.push(self.socket(row)?);
                return Ok(Decoded::Nothing);
            }
            kind::DUMP_BEGINS => Input::DumpBegins,
            kind::DUMP_FAILED => Input::DumpFailed,
            kind::DUMP => {
                let (snapshot, holders) = self.dump(row, sockets)?;
                Input::Dump(Dump { kind: MergeKind::Resync, snapshot, holders })
            }
            kind::MINI_SOCKETS => Input::MiniSockets(self.dump(row, sockets)?.0),
            kind::NOW => Input::Now(self.time(row)?),
            kind::FORGET => Input::Forget(self.socket_id(row)),
            kind::LOSS => Input::Loss(self.detail(row)?),
            kind::COUNTERS => Input::Counters(self.detail(row)?),
            kind::FACTS => Input::Facts(Box::new(Facts { sockets: std::mem::take(sockets), ..self.facts(row)? })),
            kind::CGROUP => {
                let (id, path) = (number(&self.cgroup_id, row), Arc::from(printable(text(&self.detail, row))));
                return Ok(Decoded::Cgroup(CgroupName { id, path }));
            }
            // Something that a later version tells.
            _ => return Ok(Decoded::Nothing),
        };
        Ok(Decoded::Input(input))
    }

    fn detail<'a, T: Deserialize<'a>>(&'a self, row: usize) -> Result<T> {
        serde_json::from_str(text(&self.detail, row)).context("what a row says in detail cannot be read")
    }

    fn facts(&self, row: usize) -> Result<Facts> {
        ensure!(text(&self.detail, row).len() <= MAX_FACTS, "facts of more than {} MiB", MAX_FACTS >> 20);
        let mut facts: Facts = self.detail(row)?;
        let reserved = facts.namespaces.values().map(|namespace| namespace.ports.reserved.len());
        ensure!(reserved.max().is_none_or(|ranges| ranges <= MAX_RESERVED), "more reserved ports than there are");
        for path in facts.cgroups.values_mut() {
            *path = Arc::from(printable(path));
        }
        Ok(facts)
    }

    fn time(&self, row: usize) -> Result<u64> {
        value(&self.mono_ns, row).context("a time is missing")
    }

    fn socket_id(&self, row: usize) -> SocketId {
        SocketId { cookie: number(&self.cookie, row), address: KernelAddress(number(&self.socket_id, row)) }
    }

    fn transition(&self, row: usize) -> Result<Transition> {
        let tuple = if self.ends.is_valid(row) {
            unpack(self.ends.value(row)).context("ends that are none")?
        } else {
            self.tuple(row)?
        };
        let comm = if self.task_comm.is_valid(row) { self.task_comm.value(row) } else { &[] };
        let mut name = [0; 16];
        name.iter_mut().zip(comm).for_each(|(to, from)| *to = *from);
        let details = value(&self.flags, row).map(|flags| Details {
            fin_received: flags & FIN_RECEIVED != 0,
            orphaned: flags & ORPHANED != 0,
            send_shutdown: flags & SEND_SHUTDOWN != 0,
            linger: flags & LINGER != 0,
            mptcp: flags & MPTCP != 0,
            previous_port: number(&self.previous_port, row),
            inode: number(&self.inode, row),
            cgroup: number(&self.cgroup_id, row),
            uid: number(&self.uid, row),
            error: Errno(number(&self.errno, row)),
            bytes_received: number(&self.bytes_received, row),
            bytes_acked: number(&self.bytes_acked, row),
            srtt_us: number(&self.srtt_us, row),
            retransmits: number(&self.retransmits, row),
        });
        Ok(Transition {
            mono_ns: self.time(row)?,
            socket: self.socket_id(row),
            tuple,
            old: state(text(&self.old_state, row))?,
            new: state(text(&self.new_state, row))?,
            task: Task { pid: number(&self.task_pid, row), tid: number(&self.task_tid, row), comm: Comm::new(name) },
            context: match value(&self.context, row) {
                Some(0) => Context::Softirq,
                Some(1) => Context::Process,
                _ => Context::Unknown,
            },
            details,
            origin: Origin::Kernel,
        })
    }

    fn reset(&self, row: usize, direction: ResetDirection) -> Result<Reset> {
        Ok(Reset {
            mono_ns: self.time(row)?,
            socket: self.socket_id(row),
            tuple: self.tuple(row)?,
            state: state(text(&self.old_state, row))?,
            direction,
        })
    }

    fn tuple(&self, row: usize) -> Result<Tuple> {
        let local = Endpoint { address: address(text(&self.local_addr, row))?, port: number(&self.local_port, row) };
        let remote = Endpoint { address: address(text(&self.remote_addr, row))?, port: number(&self.remote_port, row) };
        Ok(Tuple { netns: number(&self.netns, row), local, remote })
    }

    fn socket(&self, row: usize) -> Result<Socket> {
        let info = value(&self.last_ack_recv_ms, row).map(|last_ack_recv_ms| TcpInfo {
            last_data_sent_ms: number(&self.last_data_sent_ms, row),
            last_data_recv_ms: number(&self.last_data_recv_ms, row),
            last_ack_recv_ms,
            bytes_acked: number(&self.bytes_acked, row),
            bytes_received: number(&self.bytes_received, row),
        });
        Ok(Socket {
            cookie: number(&self.cookie, row),
            tuple: self.tuple(row)?,
            state: state(text(&self.new_state, row))?,
            kind: match value(&self.socket_kind, row) {
                Some(1) => SocketKind::Mini { expires_in_ms: number(&self.expires_in_ms, row) },
                Some(2) => SocketKind::Request,
                _ => SocketKind::Full,
            },
            inode: number(&self.inode, row),
            cgroup: number(&self.cgroup_id, row),
            uid: number(&self.uid, row),
            receive_queue: number(&self.receive_queue, row),
            send_queue: number(&self.send_queue, row),
            info,
        })
    }

    fn dump(&self, row: usize, sockets: &mut Vec<Socket>) -> Result<(Snapshot, Holders)> {
        let detail: DumpDetail = self.detail(row)?;
        ensure!(detail.complete_netns.len() <= MAX_NETNS, "a dump of more than {MAX_NETNS} namespaces");
        let snapshot = Snapshot {
            started_ns: detail.started_ns,
            ended_ns: detail.ended_ns,
            complete_netns: detail.complete_netns,
            sockets: std::mem::take(sockets),
        };
        Ok((snapshot, detail.holders))
    }
}

fn state(name: &str) -> Result<State> {
    let unnamed = || name.strip_prefix("UNKNOWN_").and_then(|number| number.parse().ok()).map(State);
    match State::from_name(name).or_else(unnamed) {
        Some(state) => Ok(state),
        None => bail!("a state that is none"),
    }
}

fn address(text: &str) -> Result<Address> {
    IpAddr::from_str(text).map(Address::from).context("an address that is none")
}
