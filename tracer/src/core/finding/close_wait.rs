//! Sockets stuck in CLOSE_WAIT: the peer has closed, the program here does not. Each keeps a descriptor (or a place in
//! the accept queue) until the process ends.
//!
//! A connection that is closed only towards us and on which we still send, or have yet to, is no leak: what counts is
//! how long it has been in CLOSE_WAIT *and* quiet.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::{
    Cause, DescriptorUsage, Facts, Finding, FoundSocket, Holder, Kind, SAMPLE, SHORTEST_GROWTH_WINDOW_NS, Severity,
    Thresholds, common_end, counted, fds_of, holder_of, lasting, listening::Listening, severity_by_count, who,
};
use crate::core::{
    connection::{Certainty, Connection, Process, ProcessSource},
    snapshot::Socket,
    state::State,
    tracker::Tracker,
};

const MINUTE_NS: f64 = 60e9;

/// Bounds that are no further apart than this are one age.
const EXACT_ENOUGH_NS: u64 = 1_000_000_000;

/// Who shares a socket is told of so many processes.
const SHARERS: usize = 5;

/// A finding is about one process and one cause.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Group {
    netns: u32,
    pid: Option<u32>,
    cause: Cause,
}

struct Stuck<'a> {
    socket: &'a Socket,
    process: Option<Process>,
    holders: &'a [Holder],
    age_ns: u64,
    age_certainty: Certainty,
    /// Quiet in CLOSE_WAIT for longer than is healthy since so long, ns.
    overdue_ns: u64,
}

pub(super) fn detect(tracker: &Tracker, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let known: FxHashMap<u64, Connection> = tracker
        .open_in(State::CLOSE_WAIT, facts.now_ns)
        .map(|connection| (connection.socket.cookie, connection))
        .collect();
    let listening = Listening::of(facts);
    let mut groups: BTreeMap<Group, Vec<Stuck<'_>>> = BTreeMap::new();
    // Who has yet to send waits for a peer that does not read.
    let idle = |socket: &&Socket| socket.state == State::CLOSE_WAIT && socket.send_queue == 0;
    for socket in facts.sockets.iter().filter(idle) {
        let known = known.get(&socket.cookie);
        let (age_ns, age_certainty) = age(socket, known);
        let quiet_ns = socket.info.map_or(u64::MAX, |info| u64::from(info.last_data_sent_ms) * 1_000_000);
        let Some(overdue_ns) = age_ns.min(quiet_ns).checked_sub(thresholds.close_wait_age_ns) else {
            continue;
        };
        let process = holder_of(facts, socket.inode)
            .or_else(|| known.and_then(|connection| connection.process))
            .or_else(|| listener_of(socket, &listening, facts));
        let holders = facts.holders.get(&socket.inode).filter(|_| socket.inode != 0).map_or(&[][..], Vec::as_slice);
        let pid = process.map(|process| process.pid);
        let group = groups.entry(Group { netns: socket.tuple.netns, pid, cause: cause(socket) }).or_default();
        group.push(Stuck { socket, process, holders, age_ns, age_certainty, overdue_ns });
    }
    groups.into_iter().map(|(group, stuck)| finding(group, stuck, facts)).collect()
}

fn age(socket: &Socket, known: Option<&Connection>) -> (u64, Certainty) {
    match known.and_then(|connection| connection.spans.last()) {
        // Its beginning was seen; while it lasts it is at least as long as it is now, which for an age is exact.
        Some(span) if known.is_some_and(|connection| connection.spans.len() > 1 && !connection.gap) => {
            (span.ns, Certainty::Exact)
        }
        Some(span) => (span.ns.max(socket.at_least_in_state_ns()), Certainty::AtLeast),
        None => (socket.at_least_in_state_ns(), Certainty::AtLeast),
    }
}

/// What was never accepted is its listener's.
fn listener_of(socket: &Socket, listening: &Listening<'_>, facts: &Facts) -> Option<Process> {
    let mut listeners = listening.of_connection(&socket.tuple).filter(|_| socket.inode == 0);
    let process = listeners.find_map(|listener| holder_of(facts, listener.inode))?;
    Some(Process { source: ProcessSource::Listener, ..process })
}

/// `idiag_rqueue` counts the peer's FIN as one byte.
fn cause(socket: &Socket) -> Cause {
    match (socket.inode, socket.receive_queue) {
        (0, _) => Cause::NeverAccepted,
        (_, 0) => Cause::EofReadNotClosed,
        (_, 1) => Cause::FinUnread,
        _ => Cause::DataUnread,
    }
}

fn finding(group: Group, mut stuck: Vec<Stuck<'_>>, facts: &Facts) -> Finding {
    stuck.sort_by_key(|one| (std::cmp::Reverse(one.age_ns), one.socket.cookie));
    let count = stuck.len() as u64;
    let process = stuck[0].process;
    let usage = group.pid.and_then(|pid| facts.descriptors.get(&pid)).copied();
    let growth = Growth::of(&stuck, facts.window_ns);
    let growth_per_min = growth.map(|growth| growth.per_min);
    let eta_s = usage
        .filter(|_| group.cause != Cause::NeverAccepted)
        .and_then(|usage| time_left(usage, growth.filter(|growth| growth.is_steady)?.per_min));
    let who = who(process, stuck[0].socket.cgroup, facts);
    Finding {
        process,
        local: common_end(stuck.iter().map(|one| one.socket.tuple.local)),
        remote: common_end(stuck.iter().map(|one| one.socket.tuple.remote)),
        netns: group.netns,
        count,
        oldest_ns: stuck[0].age_ns,
        oldest_certainty: stuck[0].age_certainty,
        growth_per_min,
        eta_s,
        cause: Some(group.cause),
        evidence: evidence(group.cause, &stuck, usage, facts),
        sockets: stuck.iter().take(SAMPLE).map(|one| sample(one, group.pid, facts)).collect(),
        ..Finding::new(
            Kind::CloseWait,
            severity(group.cause, count, usage, eta_s),
            format!("{who} leaves {} in CLOSE_WAIT: {}", counted(count, "socket"), in_words(group.cause)),
        )
        .explained_in(group.cause.name())
    }
}

fn sample(stuck: &Stuck<'_>, pid: Option<u32>, facts: &Facts) -> FoundSocket {
    FoundSocket {
        cookie: stuck.socket.cookie,
        local: stuck.socket.tuple.local,
        remote: stuck.socket.tuple.remote,
        age_ns: stuck.age_ns,
        age_certainty: stuck.age_certainty,
        fds: fds_of(facts, stuck.socket.inode, pid),
    }
}

/// How the number of stuck sockets grows. What has been in CLOSE_WAIT for a short time only says nothing of this: on a
/// busy proxy thousands are, and others a moment later.
#[derive(Clone, Copy)]
struct Growth {
    per_min: f64,
    /// Some in each quarter of the window: a burst is nothing to reckon with.
    is_steady: bool,
}

impl Growth {
    fn of(stuck: &[Stuck<'_>], window_ns: u64) -> Option<Self> {
        if window_ns < SHORTEST_GROWTH_WINDOW_NS {
            return None;
        }
        let mut quarters = [0_u64; 4];
        for one in stuck.iter().filter(|one| one.overdue_ns < window_ns) {
            quarters[(u128::from(one.overdue_ns) * 4 / u128::from(window_ns)) as usize] += 1;
        }
        let became_stuck: u64 = quarters.iter().sum();
        Some(Self {
            per_min: became_stuck as f64 / (window_ns as f64 / MINUTE_NS),
            is_steady: quarters.iter().all(|count| *count > 0),
        })
    }
}

fn time_left(usage: DescriptorUsage, growth_per_min: f64) -> Option<u64> {
    let left = usage.limit?.saturating_sub(usage.used);
    Some((left as f64 / growth_per_min * 60.0) as u64)
}

/// A few old sockets are a blemish; many, or more and more of them, end in EMFILE.
fn severity(cause: Cause, count: u64, usage: Option<DescriptorUsage>, eta_s: Option<u64>) -> Severity {
    // A server may be near its limit by honest work: one leaked socket in a thousand does not make the difference. But
    // without descriptors accept() fails.
    let counts = |usage: DescriptorUsage| count.saturating_mul(10) >= usage.used || cause == Cause::NeverAccepted;
    if usage.is_some_and(|usage| usage.is_nearly_full() && counts(usage)) || eta_s.is_some_and(|eta| eta < 3600) {
        Severity::Critical
    } else {
        severity_by_count(count)
    }
}

fn in_words(cause: Cause) -> &'static str {
    match cause {
        Cause::NeverAccepted => "never accepted",
        Cause::DataUnread => "data is waiting and is not read",
        Cause::FinUnread => "the peer's FIN is waiting and is not read",
        Cause::EofReadNotClosed => "EOF was read, close() never called",
    }
}

fn evidence(cause: Cause, stuck: &[Stuck<'_>], usage: Option<DescriptorUsage>, facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(match cause {
        Cause::NeverAccepted => "no file refers to these sockets (inode 0): accept() was not called".to_owned(),
        Cause::DataUnread => {
            let bytes: u64 = stuck.iter().map(|one| u64::from(one.socket.receive_queue.saturating_sub(1))).sum();
            format!("{} wait in the receive queues", counted(bytes, "byte"))
        }
        Cause::FinUnread => "the receive queues hold the FIN alone: read() would return 0".to_owned(),
        Cause::EofReadNotClosed => match stuck.iter().filter(|one| closed_with_data(one)).count() {
            0 => "the receive queues are empty, the FIN was read".to_owned(),
            count if count == stuck.len() => {
                "the receive queues are empty, the FIN was read: maybe by the read() that returned the last data".to_owned()
            }
            count => format!(
                "the receive queues are empty, the FIN was read: of {count} maybe by the read() that returned the last data"
            ),
        },
    });
    lines.extend(bounds(&stuck[0]));
    lines.extend(usage.map(DescriptorUsage::in_words));
    lines.extend(sharers(stuck));
    let orphaned_inode = stuck.iter().any(|one| one.socket.inode != 0 && one.holders.is_empty());
    if orphaned_inode && facts.unreadable_processes > 0 {
        lines.push(format!(
            "descriptors of {} could not be read (run as root to see whose sockets these are)",
            counted(facts.unreadable_processes as u64, "process")
        ));
    }
    lines
}

/// Whether the FIN came right behind data: who reads that with room to spare is given both at once, and is not told of an
/// end (`tcp_recvmsg_locked()`, net/ipv4/tcp.c).
fn closed_with_data(stuck: &Stuck<'_>) -> bool {
    // The FIN counts as one byte.
    let has_data = stuck.socket.info.is_some_and(|info| info.bytes_received > 1);
    let latest_ns = stuck.age_ns.saturating_add(EXACT_ENOUGH_NS);
    has_data && stuck.socket.at_most_in_close_wait_ns().is_some_and(|at_most_ns| at_most_ns <= latest_ns)
}

/// The age of one whose beginning was not seen: the peer's FIN came between its last data and its last ACK.
fn bounds(stuck: &Stuck<'_>) -> Option<String> {
    let at_most_ns = stuck.socket.at_most_in_close_wait_ns().filter(|_| stuck.age_certainty != Certainty::Exact)?;
    Some(if at_most_ns <= stuck.age_ns.saturating_add(EXACT_ENOUGH_NS) {
        format!("the oldest has been stuck for {}: the peer closed with its last data", lasting(stuck.age_ns))
    } else {
        let (least, most) = (lasting(stuck.age_ns), lasting(at_most_ns));
        format!("the oldest has been stuck between {least} and {most}: since the peer's last ACK, or its last data")
    })
}

/// Processes that hold the same sockets: each of them has to close.
fn sharers(stuck: &[Stuck<'_>]) -> Option<String> {
    let is_shared = |one: &&Stuck<'_>| one.holders.iter().any(|holder| holder.pid != one.holders[0].pid);
    let count = stuck.iter().filter(is_shared).count();
    let holders = stuck.iter().filter(is_shared).flat_map(|one| one.holders);
    let processes: BTreeSet<(u32, String)> = holders.map(|holder| (holder.pid, holder.comm.to_string())).collect();
    let mut names: Vec<String> = processes.iter().take(SHARERS).map(|(pid, comm)| format!("{comm}[{pid}]")).collect();
    if processes.len() > SHARERS {
        names.push(format!("{} more", processes.len() - SHARERS));
    }
    (count > 0).then(|| format!("{} shared by {}", counted(count as u64, "socket"), names.join(", ")))
}
