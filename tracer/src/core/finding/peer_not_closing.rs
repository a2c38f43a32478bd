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

impl Hanging<'_> {
    fn is_orphan(&self) -> bool {
        self.socket.inode == 0
    }

    /// Whether the peer has acknowledged anything since: then it lives, and its program does not read.
    fn is_answered(&self) -> bool {
        let heard = |ms: u32| u64::from(ms).saturating_mul(1_000_000).saturating_add(PATIENCE_NS) < self.age_ns;
        self.socket.state != State::FIN_WAIT2 && self.socket.info.is_some_and(|info| heard(info.last_ack_recv_ms))
    }

    /// The program has closed, nobody answers, and the kernel gives up soon. A public server always has some of these, of
    /// clients that went away.
    fn goes_by_itself(&self) -> bool {
        self.is_orphan() && !self.is_answered()
    }
}

pub(super) fn detect(tracker: &Tracker, facts: &Facts, thresholds: &Thresholds) -> Vec<Finding> {
    let mut groups: BTreeMap<(u32, u32, State), Vec<Hanging<'_>>> = BTreeMap::new();
    let closing = |socket: &&Socket| {
        socket.kind == SocketKind::Full
            && match socket.state {
                State::FIN_WAIT1 | State::LAST_ACK => true,
                // Once the program has closed, it ends after `tcp_fin_timeout`.
                State::FIN_WAIT2 => socket.inode != 0,
                _ => false,
            }
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
    // The FIN counts as one.
    let unsent: u64 = hanging.iter().map(|one| u64::from(one.socket.send_queue.saturating_sub(1))).sum();
    let (what, mut evidence) = if state == State::FIN_WAIT2 {
        (
            "the peer does not close",
            vec!["our FIN is acknowledged, the peer's has not come: it sits in CLOSE_WAIT there".to_owned()],
        )
    } else {
        (
            "our FIN is not acknowledged",
            vec![if unsent == 0 {
                "nothing but the FIN in the send queues".to_owned()
            } else {
                format!("{} in the send queues", counted(unsent, "byte"))
            }],
        )
    };
    let orphans = hanging.iter().filter(|one| one.is_orphan()).count() as u64;
    if orphans > 0 {
        evidence.push(format!("{} closed by the program already", counted(orphans, "socket")));
    }
    let answered = hanging.iter().filter(|one| one.is_answered()).count() as u64;
    if answered > 0 {
        evidence.push(format!("{} whose peer still answers, but takes nothing", counted(answered, "socket")));
    }
    let staying = hanging.iter().filter(|one| !one.goes_by_itself()).count() as u64;
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
            severity_by_count(staying),
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
