//! The records of `tracer log` and `tracer connections`: which fields there are, what they are called, and how they are
//! made. Scripts rely on them: a field is only ever added.

use std::net::IpAddr;

use serde::Serialize;

use super::{Row, table};
use crate::{
    core::{
        connection::{Closing, Connection, Process, Span},
        endpoint::{Endpoint, Tuple},
        tracker::Annotation,
        transition::Transition,
    },
    source::clock::WallClock,
};

/// Version of the records.
pub const VERSION: u8 = 1;

/// A transition. `None` is what is not known.
#[derive(Clone, Debug, Serialize)]
pub struct LogRecord {
    /// [`VERSION`].
    pub v: u8,
    /// RFC 3339, UTC, ns.
    pub time: String,
    /// CLOCK_MONOTONIC, ns.
    pub mono_ns: u64,
    /// Socket cookie.
    pub cookie: Option<u64>,
    /// Network namespace.
    pub netns: Option<u32>,
    /// This host's address.
    pub local_addr: IpAddr,
    /// This host's port, 0 when not bound yet.
    pub local_port: u16,
    /// The peer's address.
    pub remote_addr: IpAddr,
    /// The peer's port.
    pub remote_port: u16,
    /// State before.
    pub old_state: String,
    /// State after.
    pub new_state: String,
    /// Time in the state before, ns.
    pub in_state_ns: Option<u64>,
    /// The process that acts; `None` when the current one is not the owner.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<String>,
    /// User id that owns the socket.
    pub uid: Option<u32>,
    /// Inode of the socket's file.
    pub inode: Option<u64>,
    /// Path of the socket's cgroup.
    pub cgroup: Option<String>,
    /// `sk_err`, by name.
    pub error: Option<String>,
    /// `kernel`, `snapshot` or `repaired`.
    pub origin: &'static str,
}

impl LogRecord {
    /// Makes the record; the ends are those known by now, which a CLOSE may have wiped in the kernel.
    #[must_use]
    pub fn new(transition: &Transition, annotation: &Annotation, cgroup: Option<&str>, clock: WallClock) -> Self {
        let Tuple { netns, local, remote } = annotation.tuple.unwrap_or(transition.tuple);
        let owner = transition.owner();
        let details = transition.details;
        Self {
            v: VERSION,
            time: humantime::format_rfc3339_nanos(clock.at(transition.mono_ns)).to_string(),
            mono_ns: transition.mono_ns,
            cookie: known(transition.socket.cookie),
            netns: known(netns),
            local_addr: local.address.ip(),
            local_port: local.port,
            remote_addr: remote.address.ip(),
            remote_port: remote.port,
            old_state: transition.old.to_string(),
            new_state: transition.new.to_string(),
            in_state_ns: annotation.in_state_ns,
            pid: owner.map(|task| task.pid),
            comm: owner.map(|task| task.comm.text()),
            uid: details.map(|details| details.uid),
            inode: details.and_then(|details| known(details.inode)),
            cgroup: cgroup.map(str::to_owned),
            error: transition.error().name().filter(|_| !annotation.no_port),
            origin: transition.origin.name(),
        }
    }
}

/// The kernel's zero for "none".
fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

impl Row for LogRecord {
    const FIELDS: &'static [&'static str] = &[
        "v",
        "time",
        "mono_ns",
        "cookie",
        "netns",
        "local_addr",
        "local_port",
        "remote_addr",
        "remote_port",
        "old_state",
        "new_state",
        "in_state_ns",
        "pid",
        "comm",
        "uid",
        "inode",
        "cgroup",
        "error",
        "origin",
    ];

    const TABLE_HEADER: &'static str = "TIME (UTC)      PID     COMM             LOCAL                  REMOTE                 \
                                        OLD STATE   → NEW STATE    IN STATE NOTE";

    fn table_line(&self) -> String {
        let time = self.time.get(11..23).unwrap_or(&self.time);
        let pid = self.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let comm = self.comm.as_deref().unwrap_or("-");
        let in_state = self.in_state_ns.map_or_else(|| "-".to_owned(), table::duration);
        let mut note = self.error.clone().unwrap_or_default();
        if self.origin != "kernel" {
            note = format!("{note} ({})", self.origin);
        }
        format!(
            "{time:<15} {pid:<7} {comm:<16} {:<22} {:<22} {:<11} → {:<11} {in_state:>9} {}",
            end(self.local_addr, self.local_port),
            end(self.remote_addr, self.remote_port),
            self.old_state,
            self.new_state,
            note.trim()
        )
    }
}

fn end(address: IpAddr, port: u16) -> String {
    Endpoint::new(address, port).to_string()
}

/// Time in one state.
#[derive(Clone, Debug, Serialize)]
pub struct StateRecord {
    /// The state.
    pub state: String,
    /// How long, ns.
    pub ns: u64,
    /// `exact`, `at_least` or `unknown`.
    pub certainty: &'static str,
}

/// A process and how it is known.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessRecord {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// `opener`, `holder`, `closer` or `listener`.
    pub source: &'static str,
}

impl From<&Process> for ProcessRecord {
    fn from(process: &Process) -> Self {
        Self { pid: process.pid, comm: process.comm.text(), source: process.source.name() }
    }
}

/// A connection. `None` is what is not known, or not yet.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionRecord {
    /// [`VERSION`].
    pub v: u8,
    /// Socket cookie.
    pub cookie: Option<u64>,
    /// Network namespace.
    pub netns: Option<u32>,
    /// This host's address.
    pub local_addr: IpAddr,
    /// This host's port.
    pub local_port: u16,
    /// The peer's address.
    pub remote_addr: IpAddr,
    /// The peer's port.
    pub remote_port: u16,
    /// When it opened, RFC 3339, UTC, ns.
    pub opened: Option<String>,
    /// When it ended, likewise.
    pub ended: Option<String>,
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
    pub cgroup: Option<String>,
    /// Something in its history was missed and inferred.
    pub gap: bool,
}

impl ConnectionRecord {
    /// Makes the record.
    #[must_use]
    pub fn new(connection: &Connection, cgroup: Option<&str>, clock: WallClock) -> Self {
        let Tuple { netns, local, remote } = connection.tuple;
        let time = |mono_ns: u64| humantime::format_rfc3339_nanos(clock.at(mono_ns)).to_string();
        let state =
            |span: &Span| StateRecord { state: span.state.to_string(), ns: span.ns, certainty: span.certainty.name() };
        Self {
            v: VERSION,
            cookie: known(connection.socket.cookie),
            netns: known(netns),
            local_addr: local.address.ip(),
            local_port: local.port,
            remote_addr: remote.address.ip(),
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
            cgroup: cgroup.map(str::to_owned),
            gap: connection.gap,
        }
    }
}

impl Row for ConnectionRecord {
    const FIELDS: &'static [&'static str] = &[
        "v",
        "cookie",
        "netns",
        "local_addr",
        "local_port",
        "remote_addr",
        "remote_port",
        "opened",
        "ended",
        "duration_ns",
        "open",
        "close",
        "after_close",
        "states",
        "bytes_in",
        "bytes_out",
        "process",
        "cgroup",
        "gap",
    ];

    const TABLE_HEADER: &'static str = "ENDED (UTC)     PID     COMM             LOCAL                  REMOTE                 \
                                        OPEN         CLOSE           AFTER       DURATION       IN      OUT STATES";

    fn table_line(&self) -> String {
        let ended = self.ended.as_deref().map_or("open", |time| time.get(11..23).unwrap_or(time));
        let (pid, comm) = self
            .process
            .as_ref()
            .map_or_else(|| ("-".to_owned(), "-"), |process| (process.pid.to_string(), process.comm.as_str()));
        let bytes = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), table::bytes);
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
