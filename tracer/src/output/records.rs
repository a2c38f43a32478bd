//! The records of `tracer log` and `tracer connections`: which fields there are, what they are called, and how they are
//! made. Scripts rely on them: a field is only ever added.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer};

use super::{
    Row,
    fields::{Part, record},
    table,
};
use crate::{
    core::{
        connection::{Closing, Connection, Process, Span},
        endpoint::{Address, Endpoint, Tuple},
        state::State,
        tracker::Annotation,
        transition::{Comm, Errno, Origin, Transition},
    },
    source::clock::WallClock,
};

/// Version of the records.
pub const VERSION: u8 = 1;

/// A moment of wall time, ns since 1970; as text RFC 3339, UTC, with nine decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_nanos(WallClock::from_offset_ns(self.0).at(0)).fmt(f)
    }
}

record! {
    /// A transition. `None` is what is not known.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LogRecord in LogColumns {
        /// [`VERSION`].
        pub v: u8,
        /// When.
        pub time: Time,
        /// CLOCK_MONOTONIC, ns.
        pub mono_ns: u64,
        /// Socket cookie.
        pub cookie: Option<u64>,
        /// Network namespace.
        pub netns: Option<u32>,
        /// This host's address.
        pub local_addr: Address,
        /// This host's port, 0 when not bound yet.
        pub local_port: u16,
        /// The peer's address.
        pub remote_addr: Address,
        /// The peer's port.
        pub remote_port: u16,
        /// State before.
        pub old_state: State,
        /// State after.
        pub new_state: State,
        /// Time in the state before, ns.
        pub in_state_ns: Option<u64>,
        /// The process that acts; `None` when the current one is not the owner.
        pub pid: Option<u32>,
        /// Its name.
        pub comm: Option<Comm>,
        /// User id that owns the socket.
        pub uid: Option<u32>,
        /// Inode of the socket's file.
        pub inode: Option<u64>,
        /// Path of the socket's cgroup.
        pub cgroup: Option<Arc<str>>,
        /// `sk_err`, by name.
        pub error: Option<Errno>,
        /// `kernel`, `snapshot` or `repaired`.
        pub origin: Origin,
    }
}

impl LogRecord {
    /// Makes the record; the ends are those known by now, which a CLOSE may have wiped in the kernel.
    #[must_use]
    pub fn new(transition: &Transition, annotation: &Annotation, cgroup: Option<Arc<str>>, clock: WallClock) -> Self {
        let Tuple { netns, local, remote } = annotation.tuple.unwrap_or(transition.tuple);
        let owner = transition.owner();
        let details = transition.details;
        Self {
            v: VERSION,
            time: Time(clock.unix_ns(transition.mono_ns)),
            mono_ns: transition.mono_ns,
            cookie: known(transition.socket.cookie),
            netns: known(netns),
            local_addr: local.address,
            local_port: local.port,
            remote_addr: remote.address,
            remote_port: remote.port,
            old_state: transition.old,
            new_state: transition.new,
            in_state_ns: annotation.in_state_ns,
            pid: owner.map(|task| task.pid),
            comm: owner.map(|task| task.comm),
            uid: details.map(|details| details.uid),
            inode: details.and_then(|details| known(details.inode)),
            cgroup,
            error: known(transition.error()).filter(|_| !annotation.no_port),
            origin: transition.origin,
        }
    }
}

impl LogRecord {
    /// The error, and where it comes from when that is not the kernel.
    pub(crate) fn note(&self) -> String {
        let error = self.error.map(|error| error.to_string()).unwrap_or_default();
        if self.origin == Origin::Kernel { error } else { format!("{error} ({})", self.origin).trim().to_owned() }
    }
}

/// The kernel's zero for "none".
fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

impl Row for LogRecord {
    const TABLE_HEADER: &'static str = "TIME (UTC)      PID     COMM             LOCAL                  REMOTE                 \
                                        OLD STATE   → NEW STATE    IN STATE NOTE";

    fn table_line(&self) -> String {
        let pid = or_dash(self.pid);
        let comm = or_dash(self.comm);
        let in_state = self.in_state_ns.map_or_else(|| "-".to_owned(), table::duration);
        let note = self.note();
        format!(
            "{:<15} {pid:<7} {comm:<16} {:<22} {:<22} {:<11} → {:<11} {in_state:>9} {}",
            time_of_day(self.time),
            end(self.local_addr, self.local_port),
            end(self.remote_addr, self.remote_port),
            self.old_state.to_string(),
            self.new_state.to_string(),
            note
        )
    }
}

fn end(address: Address, port: u16) -> String {
    Endpoint { address, port }.to_string()
}

fn or_dash<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Hours to milliseconds.
pub(crate) fn time_of_day(time: Time) -> String {
    let time = time.to_string();
    time.get(11..23).unwrap_or(&time).to_owned()
}

record! {
    /// Time in one state.
    #[derive(Clone, Debug)]
    pub struct StateRecord in StateColumns {
        /// The state.
        pub state: State,
        /// How long, ns.
        pub ns: u64,
        /// `exact`, `at_least` or `unknown`.
        pub certainty: &'static str,
    }
}

record! {
    /// A process and how it is known.
    #[derive(Clone, Debug, Serialize)]
    pub struct ProcessRecord in ProcessColumns {
        /// Process id.
        pub pid: u32,
        /// Its name.
        #[serde(serialize_with = "displayed")]
        pub comm: Comm,
        /// `opener`, `holder`, `closer` or `listener`.
        pub source: &'static str,
    }
}

/// In the JSON of findings.
fn displayed<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Part for StateRecord {}
impl Part for ProcessRecord {}

impl From<&Process> for ProcessRecord {
    fn from(process: &Process) -> Self {
        Self { pid: process.pid, comm: process.comm, source: process.source.name() }
    }
}

record! {
    /// A connection. `None` is what is not known, or not yet.
    #[derive(Clone, Debug)]
    pub struct ConnectionRecord in ConnectionColumns {
        /// [`VERSION`].
        pub v: u8,
        /// Socket cookie.
        pub cookie: Option<u64>,
        /// Network namespace.
        pub netns: Option<u32>,
        /// This host's address.
        pub local_addr: Address,
        /// This host's port.
        pub local_port: u16,
        /// The peer's address.
        pub remote_addr: Address,
        /// The peer's port.
        pub remote_port: u16,
        /// When it opened.
        pub opened: Option<Time>,
        /// When it ended.
        pub ended: Option<Time>,
        /// The sum of its states, ns.
        pub duration_ns: u64,
        /// How it opened.
        pub open: &'static str,
        /// How it ended.
        pub close: Option<&'static str>,
        /// What the kernel keeps of it.
        pub after_close: &'static str,
        /// Its states in order.
        pub states: Vec<StateRecord>,
        /// Payload received, bytes.
        pub bytes_in: Option<u64>,
        /// Payload sent and acknowledged, bytes.
        pub bytes_out: Option<u64>,
        /// Whose it was.
        pub process: Option<ProcessRecord>,
        /// Path of its cgroup.
        pub cgroup: Option<Arc<str>>,
        /// Something in its history was missed and inferred.
        pub gap: bool,
    }
}

impl ConnectionRecord {
    /// Makes the record.
    #[must_use]
    pub fn new(connection: &Connection, cgroup: Option<Arc<str>>, clock: WallClock) -> Self {
        let Tuple { netns, local, remote } = connection.tuple;
        let time = |mono_ns: u64| Time(clock.unix_ns(mono_ns));
        let state = |span: &Span| StateRecord { state: span.state, ns: span.ns, certainty: span.certainty.name() };
        Self {
            v: VERSION,
            cookie: known(connection.socket.cookie),
            netns: known(netns),
            local_addr: local.address,
            local_port: local.port,
            remote_addr: remote.address,
            remote_port: remote.port,
            opened: connection.opened_ns.map(time),
            ended: connection.ended_ns.map(time),
            duration_ns: connection.duration_ns(),
            open: connection.opening.name(),
            close: connection.closing.map(Closing::name),
            after_close: connection.after_close.name(),
            states: connection.spans.iter().map(state).collect(),
            bytes_in: connection.bytes_in,
            bytes_out: connection.bytes_out,
            process: connection.process.as_ref().map(ProcessRecord::from),
            cgroup,
            gap: connection.gap,
        }
    }
}

impl Row for ConnectionRecord {
    const TABLE_HEADER: &'static str = "ENDED (UTC)     PID     COMM             LOCAL                  REMOTE                 \
                                        OPEN         CLOSE           AFTER       DURATION       IN      OUT STATES";

    fn table_line(&self) -> String {
        let ended = self.ended.map_or_else(|| "open".to_owned(), time_of_day);
        let pid = or_dash(self.process.as_ref().map(|process| process.pid));
        let comm = or_dash(self.process.as_ref().map(|process| process.comm));
        let bytes = |count: Option<u64>| or_dash(count.map(table::bytes));
        let mark = |state: &StateRecord| match state.certainty {
            "exact" => format!("{} {}", state.state, table::duration(state.ns)),
            "at_least" => format!("{} ≥{}", state.state, table::duration(state.ns)),
            _ => format!("{} ?{}", state.state, table::duration(state.ns)),
        };
        let states = self.states.iter().map(mark).collect::<Vec<_>>().join(", ");
        let certain = self.states.iter().all(|state| state.certainty != "at_least");
        let duration = format!("{}{}", if certain { "" } else { "≥" }, table::duration(self.duration_ns));
        format!(
            "{ended:<15} {pid:<7} {comm:<16} {:<22} {:<22} {:<12} {:<15} {:<10} {duration:>9} {:>8} {:>8} {states}{}",
            end(self.local_addr, self.local_port),
            end(self.remote_addr, self.remote_port),
            self.open,
            self.close.unwrap_or("-"),
            self.after_close,
            bytes(self.bytes_in),
            bytes(self.bytes_out),
            if self.gap { " (gap)" } else { "" }
        )
    }
}
