//! Connections whose end hangs on the other side: FIN_WAIT2 (the peer does not close: the leak is there), FIN_WAIT1 and
//! LAST_ACK (our FIN is not acknowledged: the peer is gone, or does not read).

use std::collections::BTreeMap;

use super::{
    Facts, Finding, FoundSocket, Kind, SAMPLE, Thresholds, common_end, counted, fds_of, holder_of, severity_by_count,
    who,
};
use crate::core::{
    connection::{Certainty, Process},
    snapshot::{Socket, SocketKind},
    state::State,
    tracker::Tracker,
};

/// Whatever the threshold: a FIN waits this long for a delayed ACK or a retransmission on any healthy host.
const PATIENCE_NS: u64 = 1_000_000_000;

struct Hanging<'a> {
    socket: &'a Socket,
    process: Option<Process>,
    age_ns: u64,
    age_certainty: Certainty,
}

pub(super) fn detect(tracker: &Tracker, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut groups: BTreeMap<(u32, u32, State), Vec<Hanging<'_>>> = BTreeMap::new();
    let closing = |socket: &&Socket| {
        socket.kind == SocketKind::Full && matches!(socket.state, State::FIN_WAIT1 | State::FIN_WAIT2 | State::LAST_ACK)
    };
    for socket in facts.sockets.iter().filter(closing) {
        let known = tracker.find(socket.cookie, facts.now_ns);
        let span =
            known.as_ref().and_then(|connection| connection.spans.last()).filter(|span| span.state == socket.state);
        let (age_ns, age_certainty) = span.map_or((socket.at_least_in_state_ns(), Certainty::AtLeast), |span| {
            let seen = known.as_ref().is_some_and(|connection| connection.spans.len() > 1 && !connection.gap);
            (span.ns.max(socket.at_least_in_state_ns()), if seen { Certainty::Exact } else { Certainty::AtLeast })
        });
        // A half-close on which the peer still sends is at work.
        let is_half_close = socket.state == State::FIN_WAIT2;
        let quiet_ns = socket
            .info
            .filter(|_| is_half_close)
            .map_or(u64::MAX, |info| u64::from(info.last_data_recv_ms) * 1_000_000);
        if age_ns.min(quiet_ns) >= thresholds.close_wait_age_ns.max(PATIENCE_NS) {
            let process = holder_of(facts, socket.inode).or_else(|| known.and_then(|connection| connection.process));
            let pid = process.map_or(0, |process| process.pid);
            let group = groups.entry((socket.tuple.netns, pid, socket.state)).or_default();
            group.push(Hanging { socket, process, age_ns, age_certainty });
        }
    }
    groups.into_iter().map(|((netns, _, state), hanging)| finding(netns, state, hanging, facts)).collect()
}

fn finding(netns: u32, state: State, mut hanging: Vec<Hanging<'_>>, facts: &Facts) -> Finding {
    hanging.sort_by_key(|one| std::cmp::Reverse(one.age_ns));
    let count = hanging.len() as u64;
    let oldest = &hanging[0];
    let unsent: u64 = hanging.iter().map(|one| u64::from(one.socket.send_queue)).sum();
    let (what, mut evidence) = if state == State::FIN_WAIT2 {
        (
            "the peer does not close",
            vec!["our FIN is acknowledged, the peer's has not come: it sits in CLOSE_WAIT there".to_owned()],
        )
    } else {
        ("our FIN is not acknowledged", vec![format!("{} in the send queues", counted(unsent, "byte"))])
    };
    let orphans = hanging.iter().filter(|one| one.socket.inode == 0).count() as u64;
    if orphans > 0 {
        evidence.push(format!("{} closed by the program already", counted(orphans, "socket")));
    }
    Finding {
        process: oldest.process,
        local: common_end(hanging.iter().map(|one| one.socket.tuple.local)),
        remote: common_end(hanging.iter().map(|one| one.socket.tuple.remote)),
        netns,
        count,
        oldest_ns: oldest.age_ns,
        oldest_certainty: oldest.age_certainty,
        evidence,
        sockets: hanging
            .iter()
            .take(SAMPLE)
            .map(|one| FoundSocket {
                cookie: one.socket.cookie,
                local: one.socket.tuple.local,
                remote: one.socket.tuple.remote,
                age_ns: one.age_ns,
                age_certainty: one.age_certainty,
                fds: fds_of(facts, one.socket.inode, one.process.map(|process| process.pid)),
            })
            .collect(),
        ..Finding::new(
            Kind::PeerNotClosing,
            severity_by_count(count),
            format!(
                "{} has {} in {state}: {what}",
                who(oldest.process, oldest.socket.cgroup, facts),
                counted(count, "socket")
            ),
        )
        .explained_in(topic(state))
    }
}

pub(super) fn topic(state: State) -> &'static str {
    if state == State::FIN_WAIT2 { "peer_keeps_open" } else { "fin_not_acknowledged" }
}
