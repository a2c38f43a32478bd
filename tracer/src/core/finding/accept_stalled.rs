//! Listeners whose completed connections are not accepted.

use super::{Facts, Finding, FoundSocket, Kind, SAMPLE, Severity, came_through, counted, fds_of, holder_of, who};
use crate::core::{
    connection::Certainty,
    snapshot::{Socket, SocketKind},
    state::State,
    tracker::Tracker,
};

/// A connection that waits longer than this for accept() has been forgotten, not merely queued.
const PATIENCE_NS: u64 = 5_000_000_000;

pub(super) fn detect(tracker: &Tracker, facts: &Facts) -> Vec<Finding> {
    let listeners = facts.sockets.iter().filter(|socket| socket.state == State::LISTEN && socket.receive_queue > 0);
    listeners.filter_map(|listener| judge(listener, tracker, facts)).collect()
}

fn judge(listener: &Socket, tracker: &Tracker, facts: &Facts) -> Option<Finding> {
    let (queued, backlog) = (u64::from(listener.receive_queue), u64::from(listener.send_queue));
    let mut waiting = waiting_at(listener, tracker, facts);
    waiting.sort_by_key(|socket| std::cmp::Reverse(socket.age_ns));
    let oldest_ns = waiting.first().map_or(0, |socket| socket.age_ns);
    // The kernel takes one more than the backlog says (sk_acceptq_is_full()).
    let full = queued > backlog;
    if !full && oldest_ns < PATIENCE_NS {
        return None;
    }
    let process = holder_of(facts, listener.inode);
    let overflows = facts.namespaces.get(&listener.tuple.netns).map_or(0, |facts| facts.counters.listen_overflows);
    let mut evidence = vec![format!("accept queue: {queued} of {backlog}{}", if full { ", full" } else { "" })];
    if overflows > 0 {
        evidence.push(format!(
            "{} turned away in this namespace meanwhile (ListenOverflows)",
            counted(overflows, "handshake")
        ));
    }
    Some(Finding {
        process,
        local: Some(listener.tuple.local),
        netns: listener.tuple.netns,
        count: queued,
        oldest_ns,
        oldest_certainty: waiting.first().map_or(Certainty::AtLeast, |socket| socket.age_certainty),
        evidence,
        sockets: waiting.into_iter().take(SAMPLE).collect(),
        ..Finding::new(
            Kind::AcceptStalled,
            if full { Severity::Critical } else { Severity::Warning },
            format!(
                "{} does not accept: {} at {}",
                who(process, listener.cgroup, facts),
                if queued == 1 { "1 connection waits".to_owned() } else { format!("{queued} connections wait") },
                listener.tuple.local
            ),
        )
    })
}

/// Established connections that came through this listener and have no file yet.
fn waiting_at(listener: &Socket, tracker: &Tracker, facts: &Facts) -> Vec<FoundSocket> {
    let at_listener = |socket: &&Socket| {
        socket.kind == SocketKind::Full
            && socket.inode == 0
            && matches!(socket.state, State::ESTABLISHED | State::CLOSE_WAIT)
            && came_through(listener, socket)
    };
    facts
        .sockets
        .iter()
        .filter(at_listener)
        .map(|socket| {
            let since_ns = tracker.opened_ns(socket.cookie);
            FoundSocket {
                cookie: socket.cookie,
                local: socket.tuple.local,
                remote: socket.tuple.remote,
                age_ns: since_ns
                    .map_or_else(|| socket.at_least_old_ns(), |since_ns| facts.now_ns.saturating_sub(since_ns)),
                age_certainty: if since_ns.is_some() { Certainty::Exact } else { Certainty::AtLeast },
                fds: fds_of(facts, socket.inode, None),
            }
        })
        .collect()
}
