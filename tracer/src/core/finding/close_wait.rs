//! Sockets stuck in CLOSE_WAIT: the peer has closed, the program here does not. Each keeps a descriptor (or a place in
//! the accept queue) until the process ends.
//!
//! A connection that is closed only towards us and on which we still send is no leak: what counts is how long it has
//! been in CLOSE_WAIT *and* quiet.

use rustc_hash::FxHashMap;

use super::{
    Cause, DescriptorUsage, Facts, Finding, FoundSocket, Holder, Kind, SAMPLE, SHORTEST_GROWTH_WINDOW_NS, Severity,
    Thresholds, came_through, common_end, counted, fds_of, holder_of, severity_by_count, who,
};
use crate::core::{
    connection::{Certainty, Connection, Process, ProcessSource},
    snapshot::Socket,
    state::State,
    tracker::Tracker,
};

const MINUTE_NS: f64 = 60e9;

/// A healthy server passes through CLOSE_WAIT too, in less than this.
const PASSING_NS: u64 = 1_000_000_000;

/// A finding is about one process and one cause.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Group {
    netns: u32,
    pid: Option<u32>,
    cause: Cause,
}

#[derive(Default)]
struct Members<'a> {
    stuck: Vec<Stuck<'a>>,
    /// Came to CLOSE_WAIT within the window and are still there.
    new_in_window: u64,
}

struct Stuck<'a> {
    socket: &'a Socket,
    process: Option<Process>,
    holders: &'a [Holder],
    age_ns: u64,
    age_certainty: Certainty,
}

pub(super) fn detect(tracker: &Tracker, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let known: FxHashMap<u64, Connection> = tracker
        .open_in(State::CLOSE_WAIT, facts.now_ns)
        .map(|connection| (connection.socket.cookie, connection))
        .collect();
    let mut groups: FxHashMap<Group, Members<'_>> = FxHashMap::default();
    for socket in facts.sockets.iter().filter(|socket| socket.state == State::CLOSE_WAIT) {
        let stuck = examine(socket, known.get(&socket.cookie), facts);
        let pid = stuck.process.map(|process| process.pid);
        let members = groups.entry(Group { netns: socket.tuple.netns, pid, cause: cause(socket) }).or_default();
        let quiet_ns = socket.info.map_or(u64::MAX, |info| u64::from(info.last_data_sent_ms) * 1_000_000);
        let began_in_window = stuck.age_certainty == Certainty::Exact && stuck.age_ns <= facts.window_ns;
        members.new_in_window += u64::from(began_in_window && stuck.age_ns >= PASSING_NS);
        if stuck.age_ns.min(quiet_ns) >= thresholds.close_wait_age_ns {
            members.stuck.push(stuck);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().filter(|(_, members)| !members.stuck.is_empty()).collect();
    groups.sort_unstable_by_key(|(group, _)| *group);
    groups.into_iter().map(|(group, members)| finding(group, members, facts)).collect()
}

fn examine<'a>(socket: &'a Socket, known: Option<&Connection>, facts: &'a Facts) -> Stuck<'a> {
    let holders = facts.holders.get(&socket.inode).filter(|_| socket.inode != 0).map_or(&[][..], Vec::as_slice);
    let seen = known.and_then(|connection| connection.spans.last());
    let (age_ns, age_certainty) = match seen {
        // Its beginning was seen; while it lasts it is at least as long as it is now, which for an age is exact.
        Some(span) if known.is_some_and(|connection| connection.spans.len() > 1 && !connection.gap) => {
            (span.ns, Certainty::Exact)
        }
        Some(span) => (span.ns.max(socket.at_least_in_state_ns()), Certainty::AtLeast),
        None => (socket.at_least_in_state_ns(), Certainty::AtLeast),
    };
    // What was never accepted is its listener's.
    let listener = || {
        let listener = facts.sockets.iter().find(|listener| socket.inode == 0 && came_through(listener, socket))?;
        let process = holder_of(facts, listener.inode)?;
        Some(Process { source: ProcessSource::Listener, ..process })
    };
    let process =
        holder_of(facts, socket.inode).or_else(|| known.and_then(|connection| connection.process)).or_else(listener);
    Stuck { socket, process, holders, age_ns, age_certainty }
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

fn finding(group: Group, members: Members<'_>, facts: &Facts) -> Finding {
    let Members { mut stuck, new_in_window } = members;
    stuck.sort_by_key(|one| (std::cmp::Reverse(one.age_ns), one.socket.cookie));
    let count = stuck.len() as u64;
    let process = stuck[0].process;
    let usage = group.pid.and_then(|pid| facts.descriptors.get(&pid)).copied();
    let growth_per_min = growth(new_in_window, facts.window_ns);
    let eta_s =
        usage.filter(|_| group.cause != Cause::NeverAccepted).and_then(|usage| time_left(usage, growth_per_min));
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
            severity(count, growth_per_min, usage, eta_s),
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

fn growth(new_in_window: u64, window_ns: u64) -> Option<f64> {
    (window_ns >= SHORTEST_GROWTH_WINDOW_NS)
        .then(|| new_in_window as f64 / ((window_ns - PASSING_NS) as f64 / MINUTE_NS))
}

fn time_left(usage: DescriptorUsage, growth_per_min: Option<f64>) -> Option<u64> {
    let growth = growth_per_min.filter(|growth| *growth > 0.0)?;
    let left = usage.limit?.saturating_sub(usage.used);
    Some((left as f64 / growth * 60.0) as u64)
}

/// A few old sockets are a blemish; many, or more and more of them, end in EMFILE.
fn severity(count: u64, growth: Option<f64>, usage: Option<DescriptorUsage>, eta_s: Option<u64>) -> Severity {
    if usage.is_some_and(DescriptorUsage::is_nearly_full) || eta_s.is_some_and(|eta| eta < 3600) {
        Severity::Critical
    } else if growth.is_some_and(|growth| growth > 0.0) {
        Severity::Warning
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
        Cause::EofReadNotClosed => "the receive queues are empty, the FIN was read".to_owned(),
    });
    lines.extend(usage.map(DescriptorUsage::in_words));
    let shared = stuck.iter().filter(|one| one.holders.iter().any(|holder| holder.pid != one.holders[0].pid)).count();
    if shared > 0 {
        lines.push(format!("{} shared by several processes", counted(shared as u64, "socket")));
    }
    let orphaned_inode = stuck.iter().any(|one| one.socket.inode != 0 && one.holders.is_empty());
    if orphaned_inode && facts.unreadable_processes > 0 {
        lines.push(format!(
            "descriptors of {} could not be read (run as root to see whose sockets these are)",
            counted(facts.unreadable_processes as u64, "process").replace("processs", "processes")
        ));
    }
    lines
}
