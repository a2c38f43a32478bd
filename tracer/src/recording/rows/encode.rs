//! Inputs as rows.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use anyhow::Result;
use arrow_array::{
    RecordBatch,
    builder::{BinaryBuilder, StringBuilder},
};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use rustc_hash::FxHashMap;

use super::{DumpDetail, FIN_RECEIVED, LINGER, MPTCP, ORPHANED, SEND_SHUTDOWN, kind};
use crate::{
    core::{
        endpoint::{Endpoint, Tuple},
        input::Input,
        snapshot::{Snapshot, Socket, SocketKind},
        state::State,
        transition::{Comm, Context, Details, Errno, KernelAddress, Origin, Reset, ResetDirection, Transition},
    },
    output::{
        columns::Column,
        fields::{Cell, Columnar, columnar},
        records::{self, LogColumns, LogRecord, Time},
    },
};

columnar! {
    /// The columns besides those of the log; `None` where a row has nothing to say.
    #[derive(Default)]
    struct Extra in ExtraColumns {
        socket_id: Option<u64>,
        ends: Option<[u8; 40]>,
        task_pid: Option<u32>,
        task_tid: Option<u32>,
        task_comm: Option<TaskName>,
        context: Option<u8>,
        flags: Option<u8>,
        previous_port: Option<u16>,
        errno: Option<u32>,
        cgroup_id: Option<u64>,
        bytes_received: Option<u64>,
        bytes_acked: Option<u64>,
        srtt_us: Option<u32>,
        retransmits: Option<u32>,
        socket_kind: Option<u8>,
        receive_queue: Option<u32>,
        send_queue: Option<u32>,
        expires_in_ms: Option<u32>,
        last_data_sent_ms: Option<u32>,
        last_data_recv_ms: Option<u32>,
        last_ack_recv_ms: Option<u32>,
    }
}

/// The name of a task, byte by byte.
struct TaskName(Comm);

impl Cell for TaskName {
    type Column = BinaryBuilder;

    fn append(&self, column: &mut BinaryBuilder) {
        column.append_value(self.0.as_bytes());
    }

    fn append_null(column: &mut BinaryBuilder) {
        column.append_null();
    }
}

/// What is said in the log's columns of something that is no transition; `None` is null.
#[derive(Clone, Copy, Debug, Default)]
struct SparseRow {
    time: Option<Time>,
    mono_ns: Option<u64>,
    cookie: Option<u64>,
    tuple: Option<Tuple>,
    old_state: Option<State>,
    new_state: Option<State>,
    uid: Option<u32>,
    inode: Option<u64>,
}

impl SparseRow {
    fn append(&self, log: &mut LogColumns) {
        let (local, remote) = (self.tuple.map(|tuple| tuple.local), self.tuple.map(|tuple| tuple.remote));
        records::VERSION.append(&mut log.v);
        self.time.append(&mut log.time);
        self.mono_ns.append(&mut log.mono_ns);
        self.cookie.append(&mut log.cookie);
        self.tuple.map(|tuple| tuple.netns).append(&mut log.netns);
        local.map(|end| end.address).append(&mut log.local_addr);
        local.map(|end| end.port).append(&mut log.local_port);
        remote.map(|end| end.address).append(&mut log.remote_addr);
        remote.map(|end| end.port).append(&mut log.remote_port);
        self.old_state.append(&mut log.old_state);
        self.new_state.append(&mut log.new_state);
        u64::append_null(&mut log.in_state_ns);
        u32::append_null(&mut log.pid);
        Comm::append_null(&mut log.comm);
        self.uid.append(&mut log.uid);
        self.inode.append(&mut log.inode);
        <Arc<str>>::append_null(&mut log.cgroup);
        Errno::append_null(&mut log.error);
        Origin::append_null(&mut log.origin);
    }
}

/// Gathers rows.
pub(in crate::recording) struct RecordingColumns {
    kind: StringBuilder,
    log: LogColumns,
    extra: ExtraColumns,
    detail: StringBuilder,
    rows: usize,
    detail_bytes: usize,
    /// A socket's address is told by a hash of it, with a key that nobody knows.
    hasher: RandomState,
}

impl RecordingColumns {
    pub(in crate::recording) fn new() -> Self {
        Self {
            kind: StringBuilder::new(),
            log: LogColumns::default(),
            extra: ExtraColumns::default(),
            detail: StringBuilder::new(),
            rows: 0,
            detail_bytes: 0,
            hasher: RandomState::new(),
        }
    }

    /// Names and types; what a row is is always known.
    pub(in crate::recording) fn schema() -> Schema {
        let others = LogRecord::fields().iter().chain(&Extra::fields()).cloned().collect::<Vec<_>>();
        let mut fields = vec![Field::new("kind", DataType::Utf8, false)];
        fields.extend(others.iter().map(|field| Field::clone(field).with_nullable(true)));
        fields.push(Field::new("detail", DataType::Utf8, true));
        Schema::new(fields)
    }

    pub(in crate::recording) fn rows(&self) -> usize {
        self.rows
    }

    /// About how much the long texts take.
    pub(in crate::recording) fn detail_bytes(&self) -> usize {
        self.detail_bytes
    }

    /// What was gathered, as a batch.
    pub(in crate::recording) fn batch(&mut self, schema: Arc<Schema>) -> Result<RecordBatch, ArrowError> {
        (self.rows, self.detail_bytes) = (0, 0);
        let mut arrays = vec![Column::finish(&mut self.kind)?];
        arrays.extend(LogRecord::arrays(&mut self.log)?);
        arrays.extend(Extra::arrays(&mut self.extra)?);
        arrays.push(Column::finish(&mut self.detail)?);
        RecordBatch::try_new(schema, arrays)
    }

    /// A transition, with what `tracer log` shows of it.
    pub(in crate::recording) fn transition(&mut self, transition: &Transition, shown: &LogRecord) {
        shown.append(&mut self.log);
        let shown_tuple = Tuple {
            netns: shown.netns.unwrap_or(0),
            local: Endpoint { address: shown.local_addr, port: shown.local_port },
            remote: Endpoint { address: shown.remote_addr, port: shown.remote_port },
        };
        let details = transition.details;
        self.extra(
            kind::TRANSITION,
            &Extra {
                socket_id: self.socket_id(transition.socket.address),
                ends: (shown_tuple != transition.tuple).then(|| pack(&transition.tuple)),
                task_pid: Some(transition.task.pid),
                task_tid: Some(transition.task.tid),
                task_comm: Some(TaskName(transition.task.comm)),
                context: Some(match transition.context {
                    Context::Softirq => 0,
                    Context::Process => 1,
                    Context::Unknown => 2,
                }),
                flags: details.as_ref().map(flags),
                previous_port: details.map(|details| details.previous_port),
                errno: details.map(|details| details.error.0),
                cgroup_id: details.map(|details| details.cgroup),
                bytes_received: details.map(|details| details.bytes_received),
                bytes_acked: details.map(|details| details.bytes_acked),
                srtt_us: details.map(|details| details.srtt_us),
                retransmits: details.map(|details| details.retransmits),
                ..Extra::default()
            },
            None,
        );
    }

    /// A RST.
    pub(in crate::recording) fn reset(&mut self, reset: &Reset, time: Time) {
        let row = SparseRow {
            time: Some(time),
            mono_ns: Some(reset.mono_ns),
            cookie: Some(reset.socket.cookie).filter(|cookie| *cookie != 0),
            tuple: Some(reset.tuple),
            old_state: Some(reset.state),
            ..SparseRow::default()
        };
        row.append(&mut self.log);
        let kind = match reset.direction {
            ResetDirection::Sent => kind::RESET_SENT,
            ResetDirection::Received => kind::RESET_RECEIVED,
        };
        let socket_id = self.socket_id(reset.socket.address);
        self.extra(kind, &Extra { socket_id, ..Extra::default() }, None);
    }

    /// The name of a cgroup.
    pub(in crate::recording) fn cgroup(&mut self, id: u64, path: &str) {
        SparseRow::default().append(&mut self.log);
        self.extra(kind::CGROUP, &Extra { cgroup_id: Some(id), ..Extra::default() }, Some(path));
    }

    /// Everything else, without the sockets in it.
    pub(in crate::recording) fn input(&mut self, input: &Input) -> Result<()> {
        match input {
            // An event is more than itself: what is shown of it comes with it.
            Input::Event(_) => {}
            Input::Now(now_ns) => {
                let row = SparseRow { mono_ns: Some(*now_ns), ..SparseRow::default() };
                row.append(&mut self.log);
                self.extra(kind::NOW, &Extra::default(), None);
            }
            Input::Forget(socket) => {
                let cookie = Some(socket.cookie).filter(|cookie| *cookie != 0);
                let row = SparseRow { cookie, ..SparseRow::default() };
                row.append(&mut self.log);
                let socket_id = self.socket_id(socket.address);
                self.extra(kind::FORGET, &Extra { socket_id, ..Extra::default() }, None);
            }
            Input::DumpBegins(_) => self.word(kind::DUMP_BEGINS, None, None),
            Input::DumpFailed => self.word(kind::DUMP_FAILED, None, None),
            Input::DumpPart(snapshot) => self.dump_ends(kind::DUMP_PART, snapshot)?,
            Input::Dump(snapshot) => self.dump_ends(kind::DUMP, snapshot)?,
            Input::MiniSockets(snapshot) => self.dump_ends(kind::MINI_SOCKETS, snapshot)?,
            Input::Loss(loss) => self.word(kind::LOSS, None, Some(&serde_json::to_string(loss)?)),
            Input::Counters(counters) => {
                self.word(kind::COUNTERS, Some(counters.now_ns), Some(&serde_json::to_string(counters)?));
            }
            Input::Facts(facts) => self.word(kind::FACTS, Some(facts.now_ns), Some(&serde_json::to_string(facts)?)),
        }
        Ok(())
    }

    fn dump_ends(&mut self, kind: &str, snapshot: &Snapshot) -> Result<()> {
        let detail = DumpDetail {
            started_ns: snapshot.started_ns,
            ended_ns: snapshot.ended_ns,
            complete_netns: snapshot.complete_netns.clone(),
            holders: FxHashMap::default(),
        };
        self.word(kind, Some(snapshot.ended_ns), Some(&serde_json::to_string(&detail)?));
        Ok(())
    }

    fn word(&mut self, kind: &str, mono_ns: Option<u64>, detail: Option<&str>) {
        let row = SparseRow { mono_ns, ..SparseRow::default() };
        row.append(&mut self.log);
        self.extra(kind, &Extra::default(), detail);
    }

    /// Sockets of a dump or a sample; the input itself comes after all of them.
    pub(in crate::recording) fn sockets(&mut self, sockets: &[Socket]) {
        for socket in sockets {
            let row = SparseRow {
                cookie: Some(socket.cookie),
                tuple: Some(socket.tuple),
                new_state: Some(socket.state),
                uid: Some(socket.uid),
                inode: Some(socket.inode),
                ..SparseRow::default()
            };
            row.append(&mut self.log);
            let info = socket.info;
            let extra = Extra {
                task_pid: socket.holder.map(|holder| holder.pid),
                task_comm: socket.holder.map(|holder| TaskName(holder.comm)),
                cgroup_id: Some(socket.cgroup),
                bytes_received: info.map(|info| info.bytes_received),
                bytes_acked: info.map(|info| info.bytes_acked),
                socket_kind: Some(match socket.kind {
                    SocketKind::Full => 0,
                    SocketKind::Mini { .. } => 1,
                    SocketKind::Request => 2,
                }),
                receive_queue: Some(socket.receive_queue),
                send_queue: Some(socket.send_queue),
                expires_in_ms: match socket.kind {
                    SocketKind::Mini { expires_in_ms } => Some(expires_in_ms),
                    SocketKind::Full | SocketKind::Request => None,
                },
                last_data_sent_ms: info.map(|info| info.last_data_sent_ms),
                last_data_recv_ms: info.map(|info| info.last_data_recv_ms),
                last_ack_recv_ms: info.map(|info| info.last_ack_recv_ms),
                ..Extra::default()
            };
            self.extra(kind::SOCKET, &extra, None);
        }
    }

    fn extra(&mut self, kind: &str, extra: &Extra, detail: Option<&str>) {
        self.kind.append_value(kind);
        extra.append(&mut self.extra);
        self.detail.append_option(detail);
        self.rows += 1;
        self.detail_bytes += detail.map_or(0, str::len);
    }

    fn socket_id(&self, address: KernelAddress) -> Option<u64> {
        (address != KernelAddress(0)).then(|| self.hasher.hash_one(address.0) | 1)
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
