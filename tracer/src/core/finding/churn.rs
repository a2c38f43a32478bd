//! Many short connections between the same two ends that could be one kept alive.

use super::{
    Facts, Finding, Kind, Severity, Tally, per_minute,
    tally::{Pair, Short},
    who,
};
/// From this rate on, connections a second, keeping one alive is worth it.
const RATE: u64 = 20;
/// From this rate on TIME_WAIT may use up the ports (28 232 ports / 60 s, and some room).
const HIGH_RATE: u64 = 300;

pub(super) fn detect(tally: &Tally, facts: &Facts) -> Vec<Finding> {
    let seconds = facts.window_ns / 1_000_000_000;
    if seconds < 5 {
        return Vec::new();
    }
    let mut busy: Vec<(&Pair, &Short)> =
        tally.short.iter().filter(|(_, short)| short.count >= RATE * seconds).collect();
    busy.sort_unstable_by_key(|(pair, _)| **pair);
    busy.into_iter()
        .map(|(pair, short)| {
            let rate = short.count / seconds;
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
                    if rate >= HIGH_RATE { Severity::Warning } else { Severity::Info },
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
