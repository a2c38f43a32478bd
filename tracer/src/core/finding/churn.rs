//! Many short connections between the same two ends that could be one kept alive.

use super::{
    Facts, Finding, Kind, SHORTEST_GROWTH_WINDOW_NS, Severity, Tally, per_minute,
    ports::reuses_time_wait,
    tally::{Pair, Short},
    who,
};
use crate::core::mini_sockets::TIME_WAIT_NS;

/// From this rate on, connections a second, keeping one alive is worth it.
const RATE: u64 = 20;

pub(super) fn detect(tally: &Tally, facts: &Facts) -> Vec<Finding> {
    if facts.window_ns < SHORTEST_GROWTH_WINDOW_NS {
        return Vec::new();
    }
    let rate =
        |count: u64| u64::try_from(u128::from(count) * 1_000_000_000 / u128::from(facts.window_ns)).unwrap_or(u64::MAX);
    let mut busy: Vec<(&Pair, &Short)> = tally.short.iter().filter(|(_, short)| rate(short.count) >= RATE).collect();
    busy.sort_unstable_by_key(|(pair, _)| **pair);
    busy.into_iter()
        .map(|(pair, short)| {
            let rate = rate(short.count);
            let mean_ns = short.duration_ns / short.count.max(1);
            Finding {
                process: short.process,
                remote: Some(pair.remote),
                netns: pair.netns,
                count: short.count,
                growth_per_min: per_minute(short.count, facts.window_ns),
                evidence: vec![format!(
                    "{rate} a second, each {:.1} ms and {} bytes on average; this side closes them",
                    mean_ns as f64 / 1e6,
                    short.bytes / short.count.max(1)
                )],
                ..Finding::new(
                    Kind::Churn,
                    if runs_out_of_ports(pair, rate, facts) { Severity::Warning } else { Severity::Info },
                    format!(
                        "{} opens {} short connections to {}",
                        who(short.process, short.cgroup, facts),
                        short.count,
                        pair.remote
                    ),
                )
            }
        })
        .collect()
}

/// Whether this rate leaves more sockets in TIME_WAIT than there are ports, if it goes on.
fn runs_out_of_ports(pair: &Pair, rate: u64, facts: &Facts) -> bool {
    let Some(namespace) = facts.namespaces.get(&pair.netns) else {
        return false;
    };
    let left_behind = rate.saturating_mul(TIME_WAIT_NS / 1_000_000_000);
    left_behind > namespace.ports.available() && !reuses_time_wait(&namespace.ports, pair.local, pair.remote.address)
}
