//! What has to be counted while connections end, because afterwards they are gone.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::common_end;
use crate::core::{
    connection::{Closing, Connection, Opening, Process, ResetCause},
    endpoint::{Address, Endpoint, Tuple},
    transition::Errno,
};

/// Different things that each table counts at most; what comes later is left out.
const CAPACITY: usize = 20_000;

/// A connection shorter than this could have been a request on one that is kept alive.
const SHORT_NS: u64 = 1_000_000_000;

/// connect() sends another SYN after this time; who gives up earlier may have wanted another address (RFC 8305).
const SYN_TIMEOUT_NS: u64 = 1_000_000_000;

/// Connects that failed, told apart by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Failure {
    pub(super) netns: u32,
    pub(super) remote: Endpoint,
    pub(super) pid: u32,
}

/// How a connect() failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// There was no free local port.
    NoLocalPort,
    /// The peer refused it.
    Refused,
    /// Nobody answered.
    TimedOut,
    /// The program closed it after a time without any answer.
    GivenUp,
    /// With another error, by its number.
    Other(u32),
}

impl Failed {
    /// `None` for a connection that came in, was established, or was given up too soon to say.
    #[must_use]
    pub fn of(connection: &Connection) -> Option<Self> {
        // Once it was established, it is no connect that failed.
        let established = connection.spans.len() > 1;
        match connection.closing? {
            _ if connection.opening != Opening::Active => None,
            Closing::NoLocalPort => Some(Self::NoLocalPort),
            _ if established => None,
            Closing::Refused => Some(Self::Refused),
            Closing::TimedOut => Some(Self::TimedOut),
            Closing::Aborted if connection.error != Errno::NONE => Some(Self::Other(connection.error.0)),
            Closing::Aborted if connection.duration_ns() >= SYN_TIMEOUT_NS => Some(Self::GivenUp),
            _ => None,
        }
    }
}

/// What became of the connects of one process to one destination.
#[derive(Clone, Debug, Default)]
pub(super) struct Connects {
    pub(super) process: Option<Process>,
    pub(super) cgroup: u64,
    pub(super) attempts: u64,
    pub(super) refused: u64,
    pub(super) timed_out: u64,
    /// Closed by the program, after a time without any answer.
    pub(super) given_up: u64,
    /// Given up by the kernel with an error of the network (unreachable …).
    pub(super) other: FxHashMap<u32, u64>,
}

impl Connects {
    pub(super) fn failed(&self) -> u64 {
        self.refused + self.timed_out + self.given_up + self.other.values().sum::<u64>()
    }
}

/// Resets, told apart by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ResetKind {
    pub(super) netns: u32,
    pub(super) pid: u32,
    /// Sent by this host, for this reason; `None`: by the peer.
    pub(super) cause: Option<ResetCause>,
    /// Killed by another process (SOCK_DESTROY).
    pub(super) killed: bool,
}

/// Connections that ended in a RST.
#[derive(Clone, Debug, Default)]
pub(super) struct Resets {
    pub(super) process: Option<Process>,
    pub(super) cgroup: u64,
    pub(super) count: u64,
    /// Those that carried nothing.
    pub(super) empty: u64,
    /// Those that whoever ended them may have been done with: data had come and gone.
    pub(super) exchanged: u64,
    /// What all their ends have in common, as [`common_end`] tells.
    pub(super) local: Option<Endpoint>,
    pub(super) remote: Option<Endpoint>,
    /// A sample of their ends.
    pub(super) sample: Vec<Tuple>,
}

/// Two ends that connect again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) netns: u32,
    pub(super) local: Address,
    pub(super) remote: Endpoint,
    pub(super) pid: u32,
}

/// Their short connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Short {
    pub(super) process: Option<Process>,
    pub(super) cgroup: u64,
    pub(super) count: u64,
    pub(super) duration_ns: u64,
    pub(super) bytes: u64,
}

/// A connection that closed by itself while the program still had it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileLeft {
    pub(super) inode: u64,
    pub(super) cookie: u64,
    pub(super) tuple: Tuple,
    pub(super) process: Option<Process>,
    pub(super) cgroup: u64,
    pub(super) closed_ns: u64,
    pub(super) closing: Closing,
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// connect() calls that found no free local port, by namespace and destination.
    pub(super) no_local_port: FxHashMap<(u32, Endpoint), u64>,
    pub(super) connects: FxHashMap<Failure, Connects>,
    pub(super) resets: FxHashMap<ResetKind, Resets>,
    /// Connections that ended, by namespace and process.
    pub(super) ended: FxHashMap<(u32, u32), u64>,
    pub(super) short: FxHashMap<Pair, Short>,
    /// The latest ones.
    pub(super) files_left: VecDeque<FileLeft>,
}

impl Tally {
    /// Takes an ended connection in.
    pub fn count(&mut self, connection: &Connection) {
        let Connection { tuple, process, cgroup, .. } = connection;
        let pid = process.map_or(0, |process| process.pid);
        if let Some(ended) = place(&mut self.ended, (tuple.netns, pid)) {
            *ended += 1;
        }
        self.count_connect(connection, pid);
        self.count_reset(connection, pid);
        let short = connection.opening == Opening::Active
            && connection.closing == Some(Closing::Active)
            && connection.duration_ns() < SHORT_NS;
        let pair = Pair { netns: tuple.netns, local: tuple.local.address, remote: tuple.remote, pid };
        if short && let Some(short) = place(&mut self.short, pair) {
            (short.process, short.cgroup) = (*process, *cgroup);
            short.count += 1;
            short.duration_ns += connection.duration_ns();
            let bytes = connection.bytes_in.unwrap_or(0).saturating_add(connection.bytes_out.unwrap_or(0));
            short.bytes = short.bytes.saturating_add(bytes);
        }
        if let (Some(inode), Some(closed_ns), Some(closing)) =
            (connection.file_left, connection.ended_ns, connection.closing)
        {
            if self.files_left.len() >= CAPACITY {
                self.files_left.pop_front();
            }
            self.files_left.push_back(FileLeft {
                inode,
                cookie: connection.socket.cookie,
                tuple: *tuple,
                process: *process,
                cgroup: *cgroup,
                closed_ns,
                closing,
            });
        }
    }

    fn count_connect(&mut self, connection: &Connection, pid: u32) {
        if !matches!(connection.opening, Opening::Active) {
            return;
        }
        let Tuple { netns, remote, .. } = connection.tuple;
        let failed = Failed::of(connection);
        if failed == Some(Failed::NoLocalPort) {
            if let Some(count) = place(&mut self.no_local_port, (netns, remote)) {
                *count += 1;
            }
            return;
        }
        let Some(connects) = place(&mut self.connects, Failure { netns, remote, pid }) else {
            return;
        };
        (connects.process, connects.cgroup) = (connection.process, connection.cgroup);
        connects.attempts += 1;
        match failed {
            Some(Failed::Refused) => connects.refused += 1,
            Some(Failed::TimedOut) => connects.timed_out += 1,
            Some(Failed::GivenUp) => connects.given_up += 1,
            Some(Failed::Other(error)) => *connects.other.entry(error).or_default() += 1,
            Some(Failed::NoLocalPort) | None => {}
        }
    }

    fn count_reset(&mut self, connection: &Connection, pid: u32) {
        let (cause, killed) = match connection.closing {
            Some(Closing::ResetReceived) => (None, false),
            Some(Closing::ResetSent) => (Some(connection.reset_cause.unwrap_or(ResetCause::Unknown)), false),
            Some(Closing::Killed) => (None, true),
            _ => return,
        };
        let kind = ResetKind { netns: connection.tuple.netns, pid, cause, killed };
        if let Some(resets) = place(&mut self.resets, kind) {
            (resets.process, resets.cgroup) = (connection.process, connection.cgroup);
            let is_first = resets.count == 0;
            narrow(&mut resets.local, is_first, connection.tuple.local);
            narrow(&mut resets.remote, is_first, connection.tuple.remote);
            resets.count += 1;
            let nothing_lost = cause != Some(ResetCause::DataAfterClose)
                && (connection.bytes_in, connection.bytes_out) == (Some(0), Some(0));
            resets.empty += u64::from(nothing_lost);
            let deliberate = matches!(cause, None | Some(ResetCause::Linger)) && !killed;
            let exchanged = connection.bytes_in > Some(0) && connection.bytes_out > Some(0);
            resets.exchanged += u64::from(deliberate && exchanged);
            if resets.sample.len() < super::SAMPLE {
                resets.sample.push(connection.tuple);
            }
        }
    }

    /// The cgroups of all that was counted.
    pub fn cgroups(&self) -> impl Iterator<Item = u64> + '_ {
        let connects = self.connects.values().map(|connects| connects.cgroup);
        let resets = self.resets.values().map(|resets| resets.cgroup);
        let short = self.short.values().map(|short| short.cgroup);
        let left = self.files_left.iter().map(|left| left.cgroup);
        connects.chain(resets).chain(short).chain(left)
    }

    /// The inodes of files that were left behind: whoever still holds them holds a socket that no list shows.
    pub fn inodes_left(&self) -> impl Iterator<Item = u64> + '_ {
        self.files_left.iter().map(|left| left.inode)
    }
}

/// Leaves of the end that all had in common what one more has too.
fn narrow(common: &mut Option<Endpoint>, is_first: bool, end: Endpoint) {
    if is_first || common.is_some() {
        *common = common_end(common.iter().copied().chain([end]));
    }
}

/// The counter for a key, unless the table is full.
fn place<K: Eq + std::hash::Hash, V: Default>(table: &mut FxHashMap<K, V>, key: K) -> Option<&mut V> {
    (table.len() < CAPACITY || table.contains_key(&key)).then(|| table.entry(key).or_default())
}
