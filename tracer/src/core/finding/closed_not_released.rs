//! Sockets in CLOSE whose descriptor is still open: the peer's RST, a timeout or a kill ended the connection, and the
//! program has not noticed, or does not close. sock_diag, ss and netstat cannot list them; lsof prints "can't identify
//! protocol".
//!
//! Those that closed while the tracer watched are in the tally, with all that was seen of them; of those that were over
//! before, only what the socket itself still says is known.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    ClosedSocket, DescriptorUsage, Facts, Finding, FoundSocket, Kind, SAMPLE, Severity, Tally, Thresholds, common_end,
    counted, fds_of, holder_of, severity_by_count, tally::FileLeft, who,
};
use crate::core::{
    connection::{Certainty, Closing, Process},
    endpoint::Tuple,
};

/// A socket that was left behind.
#[derive(Clone, Copy)]
struct Left {
    inode: u64,
    cookie: u64,
    tuple: Tuple,
    cgroup: u64,
    age_ns: u64,
    certainty: Certainty,
    ending: Ending,
}

#[derive(Clone, Copy)]
enum Ending {
    Seen(Closing),
    /// It was over before; nothing has been sent or heard for this long, ns.
    Before(u64),
}

impl Left {
    fn seen(left: &FileLeft, now_ns: u64) -> Self {
        Self {
            inode: left.inode,
            cookie: left.cookie,
            tuple: left.tuple,
            cgroup: left.cgroup,
            age_ns: now_ns.saturating_sub(left.closed_ns),
            certainty: Certainty::Exact,
            ending: Ending::Seen(left.closing),
        }
    }

    fn before(socket: &ClosedSocket) -> Self {
        Self {
            inode: socket.inode,
            cookie: socket.cookie,
            tuple: socket.tuple,
            cgroup: 0,
            age_ns: socket.closed_for_ns,
            certainty: Certainty::AtLeast,
            ending: Ending::Before(socket.quiet_ns),
        }
    }

    /// For how long nothing has happened on it.
    fn quiet_ns(&self) -> u64 {
        match self.ending {
            Ending::Seen(_) => self.age_ns,
            Ending::Before(quiet_ns) => quiet_ns,
        }
    }
}

pub(super) fn detect(tally: &Tally, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    // By inode: one that was seen to close is in both, and the latest CLOSE of a socket counts.
    let before = facts.closed.iter().map(Left::before);
    let seen = tally.files_left.iter().map(|left| Left::seen(left, facts.now_ns));
    let mut left: BTreeMap<u64, Left> = before.chain(seen).map(|left| (left.inode, left)).collect();
    // The same socket may have connected again.
    for socket in &facts.sockets {
        left.remove(&socket.inode);
    }
    let mut groups: BTreeMap<(u32, u32), (Process, Vec<Left>)> = BTreeMap::new();
    for left in left.into_values().filter(|left| left.quiet_ns() >= thresholds.close_wait_age_ns) {
        if let Some(process) = holder_of(facts, left.inode) {
            let (_, members) = groups.entry((left.tuple.netns, process.pid)).or_insert((process, Vec::new()));
            members.push(left);
        }
    }
    groups.into_iter().map(|((netns, _), (process, left))| finding(netns, process, left, facts)).collect()
}

fn finding(netns: u32, process: Process, mut left: Vec<Left>, facts: &Facts) -> Finding {
    left.sort_by_key(|one| (Reverse(one.quiet_ns()), one.cookie));
    let count = left.len() as u64;
    let usage = facts.descriptors.get(&process.pid).copied();
    let oldest = left.iter().max_by_key(|one| one.age_ns);
    Finding {
        process: Some(process),
        local: common_end(left.iter().map(|one| one.tuple.local)),
        // Whose remote end is not known says nothing about the others'.
        remote: common_end(left.iter().map(|one| one.tuple.remote).filter(|end| end.port != 0)),
        netns,
        count,
        oldest_ns: oldest.map_or(0, |one| one.age_ns),
        oldest_certainty: oldest.map_or(Certainty::Unknown, |one| one.certainty),
        evidence: evidence(&left, usage),
        sockets: left
            .iter()
            .take(SAMPLE)
            .map(|one| FoundSocket {
                cookie: one.cookie,
                local: one.tuple.local,
                remote: one.tuple.remote,
                age_ns: one.age_ns,
                age_certainty: one.certainty,
                fds: fds_of(facts, one.inode, Some(process.pid)),
            })
            .collect(),
        ..Finding::new(
            Kind::ClosedNotReleased,
            if usage.is_some_and(DescriptorUsage::is_nearly_full) {
                Severity::Critical
            } else {
                severity_by_count(count)
            },
            format!(
                "{} keeps {} open whose connections are long over",
                who(Some(process), left.iter().map(|one| one.cgroup).max().unwrap_or(0), facts),
                counted(count, "descriptor")
            ),
        )
    }
}

fn evidence(left: &[Left], usage: Option<DescriptorUsage>) -> Vec<String> {
    let mut endings: BTreeMap<&str, u64> = BTreeMap::new();
    let mut quiet = BTreeSet::new();
    for one in left {
        match one.ending {
            Ending::Seen(closing) => *endings.entry(closing.name()).or_default() += 1,
            Ending::Before(quiet_ns) => {
                quiet.insert(quiet_ns / 1_000_000_000);
                *endings.entry("before the tracer looked").or_default() += 1;
            }
        }
    }
    let endings: Vec<String> = endings.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let mut lines = vec![format!("their connections ended: {}; the descriptors are still open", endings.join(", "))];
    if let (Some(least), Some(most)) = (quiet.first(), quiet.last()) {
        let in_words = |seconds: &u64| humantime::format_duration(Duration::from_secs(*seconds)).to_string();
        let span = if least == most { in_words(least) } else { format!("{} to {}", in_words(least), in_words(most)) };
        lines.push(format!(
            "nothing was sent or heard for {span} on those that ended before; their peers are not known"
        ));
    }
    lines.extend(usage.map(DescriptorUsage::in_words));
    lines
}
