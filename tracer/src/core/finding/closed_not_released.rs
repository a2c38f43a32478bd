//! Sockets in CLOSE whose descriptor is still open: the peer's RST, a timeout or a kill ended the connection, and the
//! program has not noticed, or does not close. sock_diag, ss and netstat cannot list them; lsof prints "can't identify
//! protocol".

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    DescriptorUsage, Facts, Finding, FoundSocket, Kind, SAMPLE, Severity, Tally, Thresholds, common_end, counted,
    fds_of, holder_of, severity_by_count, tally::FileLeft, who,
};
use crate::core::connection::{Certainty, Process};

pub(super) fn detect(tally: &Tally, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut groups: BTreeMap<(u32, u32), (Process, Vec<&FileLeft>)> = BTreeMap::new();
    let in_use: FxHashSet<u64> = facts.sockets.iter().map(|socket| socket.inode).collect();
    // The same socket may have connected again since, and failed again: what counts is its last end.
    let last: FxHashMap<u64, &FileLeft> = tally.files_left.iter().map(|left| (left.inode, left)).collect();
    for left in &tally.files_left {
        let age_ns = facts.now_ns.saturating_sub(left.closed_ns);
        let is_last = last.get(&left.inode).is_some_and(|last| std::ptr::eq(*last, left));
        if age_ns < thresholds.close_wait_age_ns || in_use.contains(&left.inode) || !is_last {
            continue;
        }
        if let Some(process) = holder_of(facts, left.inode) {
            groups.entry((left.tuple.netns, process.pid)).or_insert((process, Vec::new())).1.push(left);
        }
    }
    groups.into_iter().map(|((netns, _), (process, left))| finding(netns, process, &left, facts)).collect()
}

fn finding(netns: u32, process: Process, left: &[&FileLeft], facts: &Facts) -> Finding {
    let count = left.len() as u64;
    let usage = facts.descriptors.get(&process.pid).copied();
    let mut endings: BTreeMap<&str, u64> = BTreeMap::new();
    for one in left {
        *endings.entry(one.closing.name()).or_default() += 1;
    }
    let endings: Vec<String> = endings.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let mut evidence = vec![format!("their connections ended: {}; the descriptors are still open", endings.join(", "))];
    evidence.extend(usage.map(DescriptorUsage::in_words));
    Finding {
        process: Some(process),
        local: common_end(left.iter().map(|one| one.tuple.local)),
        remote: common_end(left.iter().map(|one| one.tuple.remote)),
        netns,
        count,
        oldest_ns: left.first().map_or(0, |one| facts.now_ns.saturating_sub(one.closed_ns)),
        oldest_certainty: Certainty::Exact,
        evidence,
        remedy: "the program must close() a connection after any error: look at its handling of ECONNRESET and \
                 ETIMEDOUT, and let idle connections be polled so that it notices"
            .to_owned(),
        sockets: left
            .iter()
            .take(SAMPLE)
            .map(|one| FoundSocket {
                cookie: one.cookie,
                local: one.tuple.local,
                remote: one.tuple.remote,
                age_ns: facts.now_ns.saturating_sub(one.closed_ns),
                age_certainty: Certainty::Exact,
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
                who(Some(process), left.first().map_or(0, |one| one.cgroup), facts),
                counted(count, "descriptor")
            ),
        )
    }
}
