//! Connects that fail: refused, timed out, unreachable, for each process and destination.

use super::{
    Facts, Finding, Kind, Severity, Tally, counted, per_minute,
    tally::{Connects, Failure},
    who,
};
use crate::core::transition::Errno;

/// Fewer than this is a peer that restarts, or a health check.
const AT_LEAST: u64 = 3;

pub(super) fn detect(tally: &Tally, facts: &Facts) -> Vec<Finding> {
    let mut failing: Vec<(&Failure, &Connects)> =
        tally.connects.iter().filter(|(_, connects)| connects.failed() >= AT_LEAST).collect();
    failing.sort_unstable_by_key(|(failure, _)| **failure);
    failing.into_iter().map(|(failure, connects)| finding(failure, connects, facts)).collect()
}

fn finding(failure: &Failure, connects: &Connects, facts: &Facts) -> Finding {
    let Connects { refused, timed_out, attempts, .. } = *connects;
    let failed = connects.failed();
    let mut how = Vec::new();
    for (count, what) in [(refused, "refused"), (timed_out, "timed out")] {
        if count > 0 {
            how.push(format!("{count} {what}"));
        }
    }
    let mut other: Vec<(&u32, &u64)> = connects.other.iter().collect();
    other.sort_unstable();
    how.extend(other.into_iter().map(|(error, count)| format!("{count} {}", Errno(*error).name().unwrap_or_default())));
    Finding {
        process: connects.process,
        remote: Some(failure.remote),
        netns: failure.netns,
        count: failed,
        growth_per_min: per_minute(failed, facts.window_ns),
        evidence: vec![format!("of {}: {}", counted(attempts, "connect() call"), how.join(", "))],
        ..Finding::new(
            Kind::ConnectFailures,
            // Every second one, and more than a handful: whoever depends on it is in trouble.
            if failed * 2 >= attempts && failed >= 10 { Severity::Warning } else { Severity::Info },
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
