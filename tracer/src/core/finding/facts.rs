//! What the detectors go by besides the tracker: facts that a source has sampled, and nothing that they conclude.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::core::{endpoint::Tuple, snapshot::Socket, transition::Comm};

/// A descriptor of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: Comm,
    /// The descriptor's number.
    pub fd: i32,
}

/// A connection that is over while somebody still has its descriptor: a socket in CLOSE, which no dump lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedSocket {
    /// Inode of its file.
    pub inode: u64,
    /// Its cookie.
    pub cookie: u64,
    /// Its ends; the kernel tells the remote one no more.
    pub tuple: Tuple,
    /// Since anything was sent or heard, ns: it has been in CLOSE for no longer than this.
    pub quiet_ns: u64,
    /// How long it has been seen to be in CLOSE, ns: a lower bound.
    pub closed_for_ns: u64,
}

impl ClosedSocket {
    /// No list had it this long ago. Then it was in CLOSE, for whatever was connected since has been heard since.
    pub fn was_unlisted_for(&mut self, ns: u64) {
        if self.quiet_ns >= ns {
            self.closed_for_ns = self.closed_for_ns.max(ns);
        }
    }
}

/// Open descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorUsage {
    /// How many are open.
    pub used: u64,
    /// How many there may be (soft RLIMIT_NOFILE); `None` for no limit.
    pub limit: Option<u64>,
}

impl DescriptorUsage {
    /// From here on accept() and open() will soon fail with EMFILE.
    pub(super) fn is_nearly_full(self) -> bool {
        self.limit.is_some_and(|limit| self.used.saturating_mul(10) >= limit.saturating_mul(8))
    }

    pub(super) fn in_words(self) -> String {
        let limit = self.limit.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
        format!("descriptors open: {} of {limit}", self.used)
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl Default for PortRange {
    /// The kernel's own default for `ip_local_port_range`.
    fn default() -> Self {
        Self { first: 32_768, last: 60_999 }
    }
}

/// What decides how many local ports a namespace has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSettings {
    /// `net.ipv4.ip_local_port_range`.
    pub range: PortRange,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<PortRange>,
    /// `net.ipv4.tcp_tw_reuse`: 0 off, 1 on, 2 for loopback only.
    pub time_wait_reuse: u8,
}

impl PortSettings {
    /// How many ports connect() can choose from.
    #[must_use]
    pub fn available(&self) -> u64 {
        let PortRange { first, last } = self.range;
        let reserved = self.reserved.iter().map(|range| (range.first.max(first), range.last.min(last)));
        let mut reserved: Vec<(u16, u16)> = reserved.filter(|(first, last)| first <= last).collect();
        reserved.sort_unstable();
        let (mut next, mut available) = (u64::from(first), 0);
        for (first, last) in reserved {
            available += u64::from(first).saturating_sub(next);
            next = next.max(u64::from(last) + 1);
        }
        available + (u64::from(last) + 1).saturating_sub(next)
    }
}

/// Counters of a namespace (/proc/net/netstat).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceCounters {
    /// `TCPTimeWaitOverflow`: connections closed without TIME_WAIT, because the table was full.
    pub time_wait_overflows: u64,
    /// `ListenOverflows`: handshakes that found the accept queue full.
    pub listen_overflows: u64,
}

impl NamespaceCounters {
    /// How far they moved since an earlier reading.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            time_wait_overflows: self.time_wait_overflows.saturating_sub(earlier.time_wait_overflows),
            listen_overflows: self.listen_overflows.saturating_sub(earlier.listen_overflows),
        }
    }
}

/// What is sampled of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceFacts {
    /// How many local ports there are.
    pub ports: PortSettings,
    /// Mini-sockets in it, TIME_WAIT and FIN_WAIT2 (`tw` of sockstat).
    pub mini_sockets: Option<u64>,
    /// `net.ipv4.tcp_max_tw_buckets`.
    pub time_wait_max: Option<u64>,
    /// The counters: as they were sampled, or how far they moved within the window, which is what detectors look at.
    pub counters: NamespaceCounters,
}

/// What a source has sampled for the findings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// CLOCK_MONOTONIC of the sample, ns.
    pub now_ns: u64,
    /// How long was watched before, ns; 0 when nothing was.
    pub window_ns: u64,
    /// The sockets that sock_diag lists and that a finding may be about: no mini-sockets, and none that are at work.
    #[serde(skip)]
    pub sockets: Vec<Socket>,
    /// Connections that are over and were not closed.
    pub closed: Vec<ClosedSocket>,
    /// Who holds those that may be in trouble, by inode.
    pub holders: FxHashMap<u64, Vec<Holder>>,
    /// Descriptors of the holding processes.
    pub descriptors: FxHashMap<u32, DescriptorUsage>,
    /// The namespaces, by inode number.
    pub namespaces: FxHashMap<u32, NamespaceFacts>,
    /// Paths of cgroups, by id.
    pub cgroups: FxHashMap<u64, Arc<str>>,
    /// Processes whose descriptors could not be read.
    pub unreadable_processes: usize,
}
