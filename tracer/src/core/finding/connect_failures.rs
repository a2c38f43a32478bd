//! Connects that fail: refused, timed out, unreachable, for each process and destination.

use rustc_hash::FxHashMap;

use super::{
    Facts, Finding, Kind, Severity, Tally, counted, per_minute,
    tally::{Connects, Failure},
    who,
};
use crate::core::{connection::Opening, endpoint::Tuple, tracker::Tracker, transition::Errno};

/// Fewer than this is a peer that restarts, or a health check.
const AT_LEAST: u64 = 3;

/// From here on whoever depends on it is in trouble, when it is every second one at least.
const MANY: u64 = 10;

pub(super) fn detect(tracker: &Tracker, tally: &Tally, facts: &Facts) -> Vec<Finding> {
    let mut failing: Vec<(&Failure, &Connects)> =
        tally.connects.iter().filter(|(_, connects)| connects.failed() >= AT_LEAST).collect();
    if failing.is_empty() {
        return Vec::new();
    }
    failing.sort_unstable_by_key(|(failure, _)| **failure);
    let open = succeeded_and_open(tracker, facts);
    let by_family = succeeded_by_family(tally, &open);
    let found = failing.into_iter().map(|(failure, connects)| {
        let attempts = connects.attempts + open.get(failure).copied().unwrap_or(0);
        // A name with addresses of both families: the next one is tried, and nobody is in trouble.
        let other = Family { is_v4: !failure.remote.address.is_v4(), ..Family::of(failure) };
        let is_fallen_back = by_family.get(&other).is_some_and(|succeeded| *succeeded >= connects.failed());
        finding(failure, connects, attempts, is_fallen_back, facts)
    });
    found.collect()
}

/// Where a process connects to, when only the port and the address family are looked at.
#[derive(PartialEq, Eq, Hash)]
struct Family {
    netns: u32,
    pid: u32,
    port: u16,
    is_v4: bool,
}

impl Family {
    fn of(failure: &Failure) -> Self {
        let Failure { netns, remote, pid } = *failure;
        Self { netns, pid, port: remote.port, is_v4: remote.address.is_v4() }
    }
}

/// Connections that were made within the window and are still in use: no end has counted them.
fn succeeded_and_open(tracker: &Tracker, facts: &Facts) -> FxHashMap<Failure, u64> {
    let mut open: FxHashMap<Failure, u64> = FxHashMap::default();
    for connection in tracker.open_connections(facts.now_ns) {
        // When it opened is known of those only that were watched.
        if connection.opened_ns.is_some() && connection.opening == Opening::Active && connection.spans.len() > 1 {
            let pid = connection.process.map_or(0, |process| process.pid);
            let Tuple { netns, remote, .. } = connection.tuple;
            *open.entry(Failure { netns, remote, pid }).or_default() += 1;
        }
    }
    open
}

fn succeeded_by_family(tally: &Tally, open: &FxHashMap<Failure, u64>) -> FxHashMap<Family, u64> {
    let ended = tally.connects.iter().map(|(failure, connects)| (failure, connects.attempts - connects.failed()));
    let mut by_family = FxHashMap::default();
    for (failure, succeeded) in ended.chain(open.iter().map(|(failure, count)| (failure, *count))) {
        *by_family.entry(Family::of(failure)).or_default() += succeeded;
    }
    by_family
}

fn finding(failure: &Failure, connects: &Connects, attempts: u64, is_fallen_back: bool, facts: &Facts) -> Finding {
    let Connects { refused, timed_out, given_up, .. } = *connects;
    let failed = connects.failed();
    let mut how = Vec::new();
    for (count, what) in [(refused, "refused"), (timed_out, "timed out"), (given_up, "given up without an answer")] {
        if count > 0 {
            how.push(format!("{count} {what}"));
        }
    }
    let mut other: Vec<(&u32, &u64)> = connects.other.iter().collect();
    other.sort_unstable();
    how.extend(other.into_iter().map(|(error, count)| format!("{count} {}", Errno(*error).name().unwrap_or_default())));
    let mut evidence = vec![format!("of {}: {}", counted(attempts, "connect() call"), how.join(", "))];
    if is_fallen_back {
        evidence.push(format!("it does connect to port {} by the other address family", failure.remote.port));
    }
    let is_in_trouble = failed * 2 >= attempts && failed >= MANY && !is_fallen_back;
    Finding {
        process: connects.process,
        remote: Some(failure.remote),
        netns: failure.netns,
        count: failed,
        growth_per_min: per_minute(failed, facts.window_ns),
        evidence,
        ..Finding::new(
            Kind::ConnectFailures,
            if is_in_trouble { Severity::Warning } else { Severity::Info },
            format!(
                "{} cannot connect to {}: {failed} of {attempts} failed",
                who(connects.process, connects.cgroup, facts),
                failure.remote
            ),
        )
        .explained_in(topic(connects))
    }
}

/// By what most of them failed with.
pub(super) fn topic(connects: &Connects) -> &'static str {
    let other = connects.failed() - connects.refused - connects.timed_out;
    if connects.refused >= connects.timed_out.max(other) {
        "connect_refused"
    } else if connects.timed_out >= other {
        "connect_unanswered"
    } else {
        "connect_unreachable"
    }
}
