//! Sockets in CLOSE whose descriptor is still open: the peer's RST, a timeout or a kill ended the connection, and the
//! program has not noticed, or does not close. sock_diag, ss and netstat cannot list them; lsof prints "can't identify
//! protocol".

use std::collections::BTreeMap;

use super::{
    DescriptorUsage, Facts, Finding, FoundSocket, Kind, SAMPLE, Severity, Tally, Thresholds, common_end, counted,
    fds_of, severity_by_count, tally::FileLeft, who,
};
use crate::core::connection::{Certainty, Process, ProcessSource};

pub(super) fn detect(tally: &Tally, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut groups: BTreeMap<(u32, u32), (Process, Vec<&FileLeft>)> = BTreeMap::new();
    for left in &tally.files_left {
        let age_ns = facts.now_ns.saturating_sub(left.closed_ns);
        // The same socket may have connected again.
        let in_use = facts.sockets.iter().any(|socket| socket.inode == left.inode);
        if age_ns < thresholds.close_wait_age_ns || in_use {
            continue;
        }
        if let Some(holder) = facts.holders.get(&left.inode).and_then(|holders| holders.first()) {
            let process = Process { pid: holder.pid, comm: holder.comm, source: ProcessSource::Holder };
            let (_, members) = groups.entry((left.tuple.netns, holder.pid)).or_insert((process, Vec::new()));
            if !members.iter().any(|known| known.inode == left.inode) {
                members.push(left);
            }
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
