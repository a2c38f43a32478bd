//! Connections that end in a RST: whose doing, and why where that is known.

use super::{
    Facts, Finding, FoundSocket, Kind, Severity, Tally, counted, per_minute,
    tally::{ResetKind, Resets},
    who,
};
use crate::core::connection::{Certainty, ResetCause};

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
    let (what, remedy) = in_words(kind);
    let mut evidence = vec![format!("{count} of {} that ended meanwhile", counted(ended, "connection"))];
    if resets.empty > 0 {
        evidence.push(format!("{} of them carried no data, as health checks do", resets.empty));
    }
    Finding {
        process: resets.process,
        local: resets.local,
        remote: resets.remote,
        netns: kind.netns,
        count,
        growth_per_min: per_minute(count, facts.window_ns),
        evidence,
        remedy: remedy.to_owned(),
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
            // Where nothing was said, nothing is lost.
            if (count - resets.empty) * 2 >= ended.max(2 * AT_LEAST) { Severity::Warning } else { Severity::Info },
            format!("{}: {} {what}", who(resets.process, resets.cgroup, facts), counted(count, "connection")),
        )
    }
}

fn in_words(kind: &ResetKind) -> (&'static str, &'static str) {
    match (kind.killed, kind.cause) {
        (true, _) => (
            "killed by another process (SOCK_DESTROY)",
            "somebody runs ss -K or the like on this host: a firewall agent, or a proxy that moves connections",
        ),
        (_, None) => (
            "reset by the peer",
            "the peer's program closes with unread data or SO_LINGER 0, crashed, or a firewall or load balancer between cut \
             the connection off",
        ),
        (_, Some(ResetCause::Linger)) => (
            "reset by us: SO_LINGER is set",
            "with a linger time of 0, close() throws away what was not sent yet: meant for aborts only",
        ),
        (_, Some(ResetCause::UnreadData)) => (
            "reset by us: closed with unread data",
            "the program closes before it has read all: read to the end (or shutdown() and drain) before close(), else the \
             peer may lose the answer",
        ),
        (_, Some(ResetCause::DataAfterClose)) => (
            "reset by us: data came after close()",
            "the peer was still sending when the program here closed: agree on who ends the conversation",
        ),
        (_, Some(ResetCause::ListenerClosed)) => (
            "reset by us: the listener was closed before they were accepted",
            "drain the accept queue before closing the listener, or hand it over",
        ),
        (_, Some(ResetCause::Unknown)) => ("reset by us", "the reason is not known"),
    }
}
