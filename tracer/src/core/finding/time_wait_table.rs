//! The table of mini-sockets against its bound (`tcp_max_tw_buckets`): beyond it TIME_WAIT is skipped, and old segments
//! may reach a new connection with the same ends.

use super::{Facts, Finding, Kind, NamespaceFacts, Severity, counted};

pub(super) fn detect(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        facts.namespaces.iter().filter_map(|(netns, namespace)| judge(*netns, namespace)).collect();
    found.sort_by_key(|finding| finding.netns);
    found
}

fn judge(netns: u32, namespace: &NamespaceFacts) -> Option<Finding> {
    let (count, max) = (namespace.mini_sockets?, namespace.time_wait_max?);
    let overflows = namespace.counters.time_wait_overflows;
    let nearly_full = count > 0 && count.saturating_mul(10) >= max.saturating_mul(8);
    if overflows == 0 && !nearly_full {
        return None;
    }
    let mut evidence = vec![format!("{count} of tcp_max_tw_buckets = {max}")];
    if overflows > 0 {
        evidence.push(format!(
            "{} closed without TIME_WAIT meanwhile (TCPTimeWaitOverflow)",
            counted(overflows, "connection")
        ));
    }
    Some(Finding {
        netns,
        count,
        evidence,
        ..Finding::new(
            Kind::TimeWaitTable,
            // Nobody fails for want of a place: what is lost is the protection against late segments.
            if overflows > 0 { Severity::Warning } else { Severity::Info },
            format!("the TIME_WAIT table is {}: {count} of {max}", if overflows > 0 { "full" } else { "nearly full" }),
        )
    })
}
