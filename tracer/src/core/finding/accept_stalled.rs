//! Listeners whose completed connections are not accepted.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::{Facts, Finding, FoundSocket, Kind, SAMPLE, Severity, counted, holder_of, listening::Listening, who};
use crate::core::{
    connection::Certainty,
    endpoint::{Endpoint, Tuple},
    snapshot::{Socket, SocketKind},
    state::State,
    tracker::Tracker,
};

/// A connection that waits longer than this for accept() has been forgotten, not merely queued.
const PATIENCE_NS: u64 = 5_000_000_000;

/// A queue that is full is drained in less by a server that accepts.
const PATIENCE_WHEN_FULL_NS: u64 = 1_000_000_000;

type Place = (u32, Endpoint);

/// What waits for accept(), by the end that its listener has.
type Waiting<'a> = FxHashMap<Place, Vec<&'a Socket>>;

pub(super) fn detect(tracker: &Tracker, facts: &Facts) -> Vec<Finding> {
    let mut listeners: Vec<&Socket> =
        facts.sockets.iter().filter(|socket| socket.state == State::LISTEN && socket.receive_queue > 0).collect();
    if listeners.is_empty() {
        return Vec::new();
    }
    // Which of the listeners at one end (SO_REUSEPORT) a connection waits for cannot be told: the longest queue is theirs.
    listeners.sort_by_key(|listener| (place(&listener.tuple), Reverse(listener.receive_queue)));
    listeners.dedup_by_key(|listener| place(&listener.tuple));
    let waiting = waiting(facts);
    listeners.into_iter().filter_map(|listener| judge(listener, &waiting, tracker, facts)).collect()
}

fn place(tuple: &Tuple) -> Place {
    (tuple.netns, tuple.local)
}

/// Connections that have no file yet.
fn waiting(facts: &Facts) -> Waiting<'_> {
    let listening = Listening::of(facts);
    let mut waiting = Waiting::default();
    let not_accepted = |socket: &&Socket| {
        socket.kind == SocketKind::Full
            && socket.inode == 0
            && matches!(socket.state, State::ESTABLISHED | State::CLOSE_WAIT)
    };
    for socket in facts.sockets.iter().filter(not_accepted) {
        if let Some(listener) = listening.of_connection(&socket.tuple).next() {
            waiting.entry(place(&listener.tuple)).or_default().push(socket);
        }
    }
    waiting
}

fn judge(listener: &Socket, waiting: &Waiting<'_>, tracker: &Tracker, facts: &Facts) -> Option<Finding> {
    let (queued, backlog) = (u64::from(listener.receive_queue), u64::from(listener.send_queue));
    let waiting = waiting.get(&place(&listener.tuple)).map_or(&[][..], Vec::as_slice);
    let mut waiting: Vec<FoundSocket> = waiting.iter().map(|socket| found(socket, tracker, facts)).collect();
    waiting.sort_by_key(|socket| (Reverse(socket.age_ns), socket.cookie));
    let oldest_ns = waiting.first().map_or(0, |socket| socket.age_ns);
    let overflows = facts.namespaces.get(&listener.tuple.netns).map_or(0, |facts| facts.counters.listen_overflows);
    // The kernel takes one more than the backlog says (sk_acceptq_is_full()).
    let full = queued > backlog;
    let severity = if full && oldest_ns >= PATIENCE_WHEN_FULL_NS {
        Severity::Critical
    } else if oldest_ns >= PATIENCE_NS || (full && overflows > 0) {
        Severity::Warning
    } else {
        return None;
    };
    let process = holder_of(facts, listener.inode);
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
            severity,
            format!(
                "{} does not accept: {} at {}",
                who(process, listener.cgroup, facts),
                if queued == 1 { "1 connection waits".to_owned() } else { format!("{queued} connections wait") },
                listener.tuple.local
            ),
        )
    })
}

fn found(socket: &Socket, tracker: &Tracker, facts: &Facts) -> FoundSocket {
    let since_ns = tracker.opened_ns(socket.cookie);
    FoundSocket {
        cookie: socket.cookie,
        local: socket.tuple.local,
        remote: socket.tuple.remote,
        age_ns: since_ns.map_or_else(|| socket.at_least_old_ns(), |since_ns| facts.now_ns.saturating_sub(since_ns)),
        age_certainty: if since_ns.is_some() { Certainty::Exact } else { Certainty::AtLeast },
        fds: Vec::new(),
    }
}
