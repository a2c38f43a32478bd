//! What is wrong, judged from the tracker's state and from facts that a source has sampled. Pure, so that a recording
//! gives the findings of the live run that it came from.
//!
//! - `close_wait`: sockets that a program never closes
//! - `ports`: destinations that use up the local ports

mod close_wait;
mod ports;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{
    connection::{Certainty, Closing, Connection, Process},
    endpoint::Endpoint,
    snapshot::Socket,
    tracker::Tracker,
    transition::Comm,
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Will hurt if it goes on.
    Warning,
    /// Hurts now, or within the hour.
    Critical,
}

impl Severity {
    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The peer has closed, this host's program does not.
    CloseWait,
    /// A destination uses up the local ports.
    TimeWaitPorts,
}

impl Kind {
    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CloseWait => "close_wait",
            Self::TimeWaitPorts => "time_wait_ports",
        }
    }
}

/// Why a socket is stuck in CLOSE_WAIT, as its queue and inode tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The process never called accept() for it.
    NeverAccepted,
    /// Data waits to be read.
    DataUnread,
    /// All data was read, the FIN behind it was not.
    FinUnread,
    /// read() returned 0 and close() was never called.
    EofReadNotClosed,
}

impl Cause {
    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverAccepted => "never_accepted",
            Self::DataUnread => "data_unread",
            Self::FinUnread => "fin_unread",
            Self::EofReadNotClosed => "eof_read_not_closed",
        }
    }
}

/// A socket that a finding is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSocket {
    /// Its cookie.
    pub cookie: u64,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// Its age in the state that the finding is about, ns.
    pub age_ns: u64,
    /// How well that is known.
    pub age_certainty: Certainty,
    /// Its descriptors in the process that the finding names.
    pub fds: Vec<i32>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// One line that says it.
    pub title: String,
    /// Whose doing it is, when known.
    pub process: Option<Process>,
    /// This host's end that the sockets have in common; port 0 stands for several.
    pub local: Option<Endpoint>,
    /// The peer's end that they have in common, likewise.
    pub remote: Option<Endpoint>,
    /// Network namespace.
    pub netns: u32,
    /// How many sockets.
    pub count: u64,
    /// Age of the oldest, ns.
    pub oldest_ns: u64,
    /// How well that is known.
    pub oldest_certainty: Certainty,
    /// How many more there are each minute; `None` when the window is too short to say.
    pub growth_per_min: Option<f64>,
    /// Time until the resource is used up, at this rate, s.
    pub eta_s: Option<u64>,
    /// Why.
    pub cause: Option<Cause>,
    /// What was measured, in words.
    pub evidence: Vec<String>,
    /// What to do.
    pub remedy: String,
    /// A sample, the oldest first.
    pub sockets: Vec<FoundSocket>,
}

/// How many sockets a finding shows.
const SAMPLE: usize = 20;

/// A window shorter than this says nothing about growth.
const SHORTEST_GROWTH_WINDOW_NS: u64 = 5_000_000_000;

/// When something is worth telling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// A socket in CLOSE_WAIT that has been quiet for this long is stuck, ns.
    pub close_wait_age_ns: u64,
    /// Share of the local ports in use towards one destination, 0 to 1.
    pub port_usage: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { close_wait_age_ns: 60_000_000_000, port_usage: 0.5 }
    }
}

/// A descriptor of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: Comm,
    /// The descriptor's number.
    pub fd: i32,
}

/// Open descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorUsage {
    /// How many are open.
    pub used: u64,
    /// How many there may be (soft RLIMIT_NOFILE); `None` for no limit.
    pub limit: Option<u64>,
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
        (self.range.first..=self.range.last)
            .filter(|port| !self.reserved.iter().any(|range| (range.first..=range.last).contains(port)))
            .count() as u64
    }
}

/// What a source has sampled for the findings.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// CLOCK_MONOTONIC of the sample, ns.
    pub now_ns: u64,
    /// How long was watched before, ns; 0 when nothing was.
    pub window_ns: u64,
    /// Sockets in CLOSE_WAIT, from sock_diag.
    pub close_wait: Vec<Socket>,
    /// Who holds them, by inode.
    pub holders: FxHashMap<u64, Vec<Holder>>,
    /// Descriptors of the holding processes.
    pub descriptors: FxHashMap<u32, DescriptorUsage>,
    /// Port settings by namespace.
    pub ports: FxHashMap<u32, PortSettings>,
    /// Processes whose descriptors could not be read.
    pub unreadable_processes: usize,
}

/// What has to be counted while connections end, because afterwards they are gone.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// connect() calls that found no free local port, by namespace and destination.
    no_local_port: FxHashMap<(u32, Endpoint), u64>,
}

/// Destinations that are counted at most.
const TALLY_CAPACITY: usize = 10_000;

impl Tally {
    /// Takes an ended connection in.
    pub fn count(&mut self, connection: &Connection) {
        if connection.closing == Some(Closing::NoLocalPort) {
            let destination = (connection.tuple.netns, connection.tuple.remote);
            if self.no_local_port.len() < TALLY_CAPACITY || self.no_local_port.contains_key(&destination) {
                *self.no_local_port.entry(destination).or_default() += 1;
            }
        }
    }
}

/// Judges. Worst first.
#[must_use]
pub fn detect(tracker: &Tracker, tally: &Tally, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut findings = close_wait::detect(tracker, facts, thresholds);
    findings.extend(ports::detect(tracker, tally, facts, thresholds));
    findings.sort_by_key(|finding| (Reverse(finding.severity), Reverse(finding.count)));
    findings
}

/// The end that all have in common: with port 0 when the ports differ, `None` when the addresses do.
fn common_end(ends: impl IntoIterator<Item = Endpoint>) -> Option<Endpoint> {
    let mut ends = ends.into_iter();
    let first = ends.next()?;
    ends.try_fold(first, |common, end| {
        (common.address == end.address)
            .then_some(Endpoint { port: if common.port == end.port { common.port } else { 0 }, ..common })
    })
}

/// `1 socket`, `2 sockets`.
fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}
