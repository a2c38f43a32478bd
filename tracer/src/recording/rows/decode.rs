//! Rows as inputs. The file may be hostile: nothing here panics, and nothing is taken at its word.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use arrow_array::{
    Array, BinaryArray, PrimitiveArray, RecordBatch, StringArray,
    types::{ArrowPrimitiveType, UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::FieldRef;
use serde::Deserialize;

use super::{
    DumpDetail, FIN_RECEIVED, LINGER, MAX_FACTS, MAX_NETNS, MAX_RESERVED, MAX_SOCKETS, MPTCP, ORPHANED,
    RecordingColumns, SEND_SHUTDOWN, kind,
};
use crate::{
    core::{
        connection::{Process, ProcessSource},
        endpoint::{Address, Endpoint, Tuple},
        finding::Facts,
        input::Input,
        snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
        state::State,
        tracker::MergeKind,
        transition::{
            Comm, Context, Details, Errno, Event, KernelAddress, Origin, Reset, ResetDirection, SocketId, Task,
            Transition,
        },
    },
    problem::printable,
};

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
pub(in crate::recording) struct CgroupName {
    pub(in crate::recording) id: u64,
    pub(in crate::recording) path: Arc<str>,
}

/// What a row is for.
#[derive(Debug)]
pub(in crate::recording) enum Decoded {
    Input(Input),
    Cgroup(CgroupName),
    /// Part of something, or something that a replay finds out by itself.
    Nothing,
}

type U8s = PrimitiveArray<UInt8Type>;
type U16s = PrimitiveArray<UInt16Type>;
type U32s = PrimitiveArray<UInt32Type>;
type U64s = PrimitiveArray<UInt64Type>;

/// Defines the columns that are read, by their names; a file may have others.
macro_rules! columns_read {
    ($($name:ident: $array:ty,)+) => {
        /// The columns of a batch.
        pub(in crate::recording) struct Rows {
            $($name: $array,)+
            local: LastAddress,
            remote: LastAddress,
        }

        const NAMES: &[&str] = &[$(stringify!($name)),+];

        impl Rows {
            pub(in crate::recording) fn new(batch: &RecordBatch) -> Result<Self> {
                Ok(Self {
                    $($name: column(batch, stringify!($name))?,)+
                    local: LastAddress::default(),
                    remote: LastAddress::default(),
                })
            }
        }
    };
}

columns_read! {
    kind: StringArray,
    mono_ns: U64s,
    cookie: U64s,
    netns: U32s,
    local_addr: StringArray,
    local_port: U16s,
    remote_addr: StringArray,
    remote_port: U16s,
    old_state: StringArray,
    new_state: StringArray,
    uid: U32s,
    inode: U64s,
    origin: StringArray,
    socket_id: U64s,
    ends: BinaryArray,
    task_pid: U32s,
    task_tid: U32s,
    task_comm: BinaryArray,
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
    detail: StringArray,
}

/// The columns that [`Rows`] reads.
pub(in crate::recording) fn fields_read() -> impl Iterator<Item = FieldRef> {
    let fields: Vec<FieldRef> = RecordingColumns::schema().fields().to_vec();
    fields.into_iter().filter(|field| NAMES.contains(&field.name().as_str()))
}

/// The last address of a column: the next one is the same more often than not.
#[derive(Default)]
struct LastAddress {
    text: String,
    address: Option<Address>,
}

impl LastAddress {
    fn parse(&mut self, text: &str) -> Result<Address> {
        match self.address {
            Some(address) if self.text == text => Ok(address),
            _ => {
                let address = IpAddr::from_str(text).map(Address::from).context("an address that is none")?;
                text.clone_into(&mut self.text);
                Ok(*self.address.insert(address))
            }
        }
    }
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
    pub(in crate::recording) fn len(&self) -> usize {
        self.kind.len()
    }

    /// What a row says; `sockets` are those of the dump that is being read.
    pub(in crate::recording) fn decode(&mut self, row: usize, sockets: &mut Vec<Socket>) -> Result<Decoded> {
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
            // What it is for is told by where it stands.
            kind::DUMP_BEGINS => Input::DumpBegins(MergeKind::Resync),
            kind::DUMP_FAILED => Input::DumpFailed,
            kind::DUMP_PART => Input::DumpPart(self.dump(row, sockets)?),
            kind::DUMP => Input::Dump(self.dump(row, sockets)?),
            kind::MINI_SOCKETS => Input::MiniSockets(self.dump(row, sockets)?),
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

    fn transition(&mut self, row: usize) -> Result<Transition> {
        let tuple = if self.ends.is_valid(row) {
            unpack(self.ends.value(row)).context("ends that are none")?
        } else {
            self.tuple(row)?
        };
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
            task: Task {
                pid: number(&self.task_pid, row),
                tid: number(&self.task_tid, row),
                comm: self.task_name(row),
            },
            context: match value(&self.context, row) {
                Some(0) => Context::Softirq,
                Some(1) => Context::Process,
                _ => Context::Unknown,
            },
            details,
            origin: Origin::Kernel,
        })
    }

    fn task_name(&self, row: usize) -> Comm {
        let comm = if self.task_comm.is_valid(row) { self.task_comm.value(row) } else { &[] };
        let mut name = [0; 16];
        name.iter_mut().zip(comm).for_each(|(to, from)| *to = *from);
        Comm::new(name)
    }

    fn reset(&mut self, row: usize, direction: ResetDirection) -> Result<Reset> {
        Ok(Reset {
            mono_ns: self.time(row)?,
            socket: self.socket_id(row),
            tuple: self.tuple(row)?,
            state: state(text(&self.old_state, row))?,
            direction,
        })
    }

    fn tuple(&mut self, row: usize) -> Result<Tuple> {
        let local =
            Endpoint { address: self.local.parse(text(&self.local_addr, row))?, port: number(&self.local_port, row) };
        let remote = Endpoint {
            address: self.remote.parse(text(&self.remote_addr, row))?,
            port: number(&self.remote_port, row),
        };
        Ok(Tuple { netns: number(&self.netns, row), local, remote })
    }

    fn socket(&mut self, row: usize) -> Result<Socket> {
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
            holder: value(&self.task_pid, row).map(|pid| Process {
                pid,
                comm: self.task_name(row),
                source: ProcessSource::Holder,
            }),
        })
    }

    fn dump(&self, row: usize, sockets: &mut Vec<Socket>) -> Result<Snapshot> {
        let detail: DumpDetail = self.detail(row)?;
        ensure!(detail.complete_netns.len() <= MAX_NETNS, "a dump of more than {MAX_NETNS} namespaces");
        let mut sockets = std::mem::take(sockets);
        for socket in sockets.iter_mut().filter(|socket| socket.holder.is_none()) {
            socket.holder = detail.holders.get(&socket.inode).copied();
        }
        Ok(Snapshot {
            started_ns: detail.started_ns,
            ended_ns: detail.ended_ns,
            complete_netns: detail.complete_netns,
            sockets,
        })
    }
}

fn state(name: &str) -> Result<State> {
    let unnamed = || name.strip_prefix("UNKNOWN_").and_then(|number| number.parse().ok()).map(State);
    match State::from_kernel_name(name).or_else(unnamed) {
        Some(state) => Ok(state),
        None => bail!("a state that is none"),
    }
}
