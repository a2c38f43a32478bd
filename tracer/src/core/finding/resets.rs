//! Connections that end in a RST: whose doing, and why where that is known.

use super::{
    Facts, Finding, FoundSocket, Kind, Severity, Tally, counted, per_minute,
    tally::{ResetKind, Resets},
    who,
};
use crate::core::connection::{Certainty, Closing, ResetCause};

/// Below this many, and this share of a process's connections, resets are everyday life: clients that go away.
const AT_LEAST: u64 = 10;
const SHARE_PERCENT: u64 = 5;

pub(super) fn detect(tally: &Tally, facts: &Facts) -> Vec<Finding> {
    let worth_telling = |kind: &ResetKind, resets: &Resets| {
        let ended = tally.ended.get(&(kind.netns, kind.pid)).copied().unwrap_or(0);
        resets.count >= AT_LEAST && resets.count * 100 >= ended * SHARE_PERCENT
    };
    let mut found: Vec<(&ResetKind, &Resets)> =
        tally.resets.iter().filter(|(kind, resets)| worth_telling(kind, resets)).collect();
    found.sort_unstable_by_key(|(kind, _)| **kind);
    found.into_iter().map(|(kind, resets)| finding(kind, resets, tally, facts)).collect()
}

fn finding(kind: &ResetKind, resets: &Resets, tally: &Tally, facts: &Facts) -> Finding {
    let count = resets.count;
    let ended = tally.ended.get(&(kind.netns, kind.pid)).copied().unwrap_or(count);
    let what = in_words(kind);
    let mut evidence = vec![format!("{count} of {} that ended meanwhile", counted(ended, "connection"))];
    if resets.empty > 0 {
        evidence.push(format!("{} of them carried no data, as health checks do", resets.empty));
    }
    if resets.exchanged > 0 {
        evidence.push(format!(
            "{} of them after data went both ways, as proxies end what they are done with",
            resets.exchanged
        ));
    }
    let in_trouble = count.saturating_sub(resets.empty).saturating_sub(resets.exchanged);
    Finding {
        process: resets.process,
        local: resets.local,
        remote: resets.remote,
        netns: kind.netns,
        count,
        growth_per_min: per_minute(count, facts.window_ns),
        evidence,
        sockets: resets
            .sample
            .iter()
            .map(|tuple| FoundSocket {
                cookie: 0,
                local: tuple.local,
                remote: tuple.remote,
                age_ns: 0,
                age_certainty: Certainty::Unknown,
                fds: Vec::new(),
            })
            .collect(),
        ..Finding::new(
            Kind::Resets,
            // Where nothing was said, or all, nothing is lost.
            if in_trouble * 2 >= ended.max(2 * AT_LEAST) { Severity::Warning } else { Severity::Info },
            format!("{}: {} {what}", who(resets.process, resets.cgroup, facts), counted(count, "connection")),
        )
        .explained_in(topic(kind.killed, kind.cause))
    }
}

fn in_words(kind: &ResetKind) -> &'static str {
    match (kind.killed, kind.cause) {
        (true, _) => "killed by another process (SOCK_DESTROY)",
        (_, None) => "reset by the peer",
        (_, Some(ResetCause::Linger)) => "reset by us: SO_LINGER is set",
        (_, Some(ResetCause::UnreadData)) => "reset by us: closed with unread data",
        (_, Some(ResetCause::DataAfterClose)) => "reset by us: data came after close()",
        (_, Some(ResetCause::ListenerClosed)) => "reset by us: the listener was closed before they were accepted",
        (_, Some(ResetCause::Unknown)) => "reset by us",
    }
}

pub(super) fn topic(killed: bool, cause: Option<ResetCause>) -> &'static str {
    if killed { Closing::Killed.name() } else { cause.map_or("reset_by_peer", ResetCause::name) }
}
