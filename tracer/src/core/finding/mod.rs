//! What is wrong, judged from the tracker's state and from facts that a source has sampled. Pure, so that a recording
//! gives the findings of the live run that it came from.
//!
//! One module for each kind of finding. `facts` is what they go by, `tally` counts what is gone by the time that is
//! judged, `ports` what destinations take of the local ports.

mod accept_stalled;
mod churn;
mod close_wait;
mod closed_not_released;
mod connect_failures;
mod facts;
mod listening;
mod peer_not_closing;
mod port_blocked;
pub mod ports;
mod resets;
mod tally;
#[cfg(test)]
mod tests;
mod time_wait_ports;
mod time_wait_table;

use std::cmp::Reverse;

pub use self::{
    facts::{ClosedSocket, DescriptorUsage, Facts, Holder, NamespaceCounters, NamespaceFacts, PortRange, PortSettings},
    tally::{Failed, Tally},
};

use super::{
    connection::{Certainty, Process, ProcessSource},
    endpoint::Endpoint,
    manual,
    tracker::Tracker,
    workload,
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
    /// The table of mini-sockets is (nearly) full.
    TimeWaitTable,
    /// The connection is over, the descriptor is not closed.
    ClosedNotReleased,
    /// Completed connections are not accepted.
    AcceptStalled,
    /// The other side does not end the connection.
    PeerNotClosing,
    /// Connects fail.
    ConnectFailures,
    /// Connections end in a RST.
    Resets,
    /// Many short connections that could be one.
    Churn,
    /// Sockets are left on the port of a listener that is gone.
    PortBlocked,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::CloseWait,
        Self::TimeWaitPorts,
        Self::TimeWaitTable,
        Self::ClosedNotReleased,
        Self::AcceptStalled,
        Self::PeerNotClosing,
        Self::ConnectFailures,
        Self::Resets,
        Self::Churn,
        Self::PortBlocked,
    ];

    /// As in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CloseWait => "close_wait",
            Self::TimeWaitPorts => "time_wait_ports",
            Self::TimeWaitTable => "time_wait_table",
            Self::ClosedNotReleased => "closed_not_released",
            Self::AcceptStalled => "accept_stalled",
            Self::PeerNotClosing => "peer_not_closing",
            Self::ConnectFailures => "connect_failures",
            Self::Resets => "resets",
            Self::Churn => "churn",
            Self::PortBlocked => "port_blocked",
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
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NeverAccepted, Self::DataUnread, Self::FinUnread, Self::EofReadNotClosed];

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
    /// Where the documents say that, and more.
    pub topic: &'static str,
    /// A sample, the oldest first.
    pub sockets: Vec<FoundSocket>,
}

impl Finding {
    /// One about which nothing else is known yet.
    fn new(kind: Kind, severity: Severity, title: String) -> Self {
        Self {
            kind,
            severity,
            title,
            process: None,
            local: None,
            remote: None,
            netns: 0,
            count: 0,
            oldest_ns: 0,
            oldest_certainty: Certainty::Unknown,
            growth_per_min: None,
            eta_s: None,
            cause: None,
            evidence: Vec::new(),
            remedy: manual::remedy(kind.name()).unwrap_or_default(),
            topic: kind.name(),
            sockets: Vec::new(),
        }
    }

    /// With the remedy of a topic that says more of this case than that of its kind.
    fn explained_in(self, topic: &'static str) -> Self {
        Self { remedy: manual::remedy(topic).unwrap_or_default(), topic, ..self }
    }
}

/// How many sockets a finding shows.
const SAMPLE: usize = 20;

/// A window shorter than this says nothing about growth.
const SHORTEST_GROWTH_WINDOW_NS: u64 = 5_000_000_000;

/// When something is worth telling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// A socket that has been quiet for this long in CLOSE_WAIT is stuck, and likewise one whose peer does not close or
    /// whose descriptor was left behind, ns.
    pub close_wait_age_ns: u64,
    /// Share of the local ports in use towards one destination, 0 to 1.
    pub port_usage: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { close_wait_age_ns: 60_000_000_000, port_usage: 0.5 }
    }
}

/// Judges. Worst first.
#[must_use]
pub fn detect(tracker: &Tracker, tally: &Tally, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut findings = close_wait::detect(tracker, facts, thresholds);
    findings.extend(time_wait_ports::detect(tracker, tally, facts, thresholds));
    findings.extend(time_wait_table::detect(facts));
    findings.extend(closed_not_released::detect(tally, facts, thresholds));
    findings.extend(accept_stalled::detect(tracker, facts));
    findings.extend(peer_not_closing::detect(tracker, facts, thresholds));
    findings.extend(connect_failures::detect(tracker, tally, facts));
    findings.extend(resets::detect(tally, facts));
    findings.extend(churn::detect(tally, facts));
    findings.extend(port_blocked::detect(tracker, facts));
    // A stable sort: findings of equal weight stay in the order above.
    findings.sort_by_key(|finding| (Reverse(finding.severity), Reverse(finding.count)));
    findings
}

/// A process and the container, pod or service that it runs in, for a title.
fn who(process: Option<Process>, cgroup: u64, facts: &Facts) -> String {
    let name =
        process.map_or_else(|| "an unknown process".to_owned(), |process| format!("{}[{}]", process.comm, process.pid));
    match facts.cgroups.get(&cgroup).and_then(|path| workload::name_of(path)) {
        Some(workload) => format!("{name} ({workload})"),
        None => name,
    }
}

/// A process that holds a socket: the one with the lowest id, which for a forking server is the parent.
fn holder_of(facts: &Facts, inode: u64) -> Option<Process> {
    let holder = facts.holders.get(&inode).filter(|_| inode != 0)?.iter().min_by_key(|holder| holder.pid)?;
    Some(Process { pid: holder.pid, comm: holder.comm, source: ProcessSource::Holder })
}

/// A socket's descriptors in one process, or in all.
fn fds_of(facts: &Facts, inode: u64, pid: Option<u32>) -> Vec<i32> {
    let holders = facts.holders.get(&inode).filter(|_| inode != 0).map_or(&[][..], Vec::as_slice);
    holders.iter().filter(|holder| pid.is_none_or(|pid| pid == holder.pid)).map(|holder| holder.fd).collect()
}

/// One or two are a blemish, more are a habit.
fn severity_by_count(count: u64) -> Severity {
    if count >= 3 { Severity::Warning } else { Severity::Info }
}

/// A number of the window as a rate; `None` when the window is too short to say.
fn per_minute(count: u64, window_ns: u64) -> Option<f64> {
    (window_ns >= SHORTEST_GROWTH_WINDOW_NS).then(|| count as f64 / (window_ns as f64 / 60e9))
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

/// `1 socket`, `2 sockets`, `2 processes`.
fn counted(count: u64, thing: &str) -> String {
    let plural = match thing {
        _ if count == 1 => "",
        thing if thing.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {thing}{plural}")
}

/// An age as people say it: two units at most.
fn lasting(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, _) => format!("{:.1} s", ns as f64 / 1e9),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, _, _) => format!("{days} d {hours} h"),
    }
}
