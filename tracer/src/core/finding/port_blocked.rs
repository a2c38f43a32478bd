//! A listener is gone and sockets remain on its port: a restart without SO_REUSEADDR gets EADDRINUSE until they are gone.

use rustc_hash::FxHashMap;

use super::{Facts, Finding, Kind, Severity, counted};
use crate::core::{
    connection::Certainty,
    endpoint::Endpoint,
    snapshot::{Socket, SocketKind},
    state::State,
    tracker::{GoneListener, Tracker},
};

pub(super) fn detect(tracker: &Tracker, facts: &Facts) -> Vec<Finding> {
    let mut gone: FxHashMap<(u32, Endpoint), &GoneListener> = FxHashMap::default();
    for listener in tracker.gone_listeners() {
        gone.insert((listener.netns, listener.local), listener);
    }
    let mut gone: Vec<_> = gone.into_iter().collect();
    gone.sort_unstable_by_key(|(place, _)| *place);
    gone.into_iter().filter_map(|((netns, local), listener)| judge(netns, local, listener, tracker, facts)).collect()
}

fn judge(netns: u32, local: Endpoint, gone: &GoneListener, tracker: &Tracker, facts: &Facts) -> Option<Finding> {
    let on_port = |other: Endpoint| {
        other.port == local.port && (local.address.is_unspecified() || other.address == local.address)
    };
    let listens =
        |socket: &Socket| socket.state == State::LISTEN && socket.tuple.netns == netns && on_port(socket.tuple.local);
    if facts.sockets.iter().any(listens) {
        return None;
    }
    let open = facts
        .sockets
        .iter()
        .filter(|socket| socket.kind == SocketKind::Full && socket.tuple.netns == netns && on_port(socket.tuple.local));
    let open = open.count() as u64;
    let minis: Vec<u64> = tracker
        .mini_sockets()
        .iter()
        .filter(|(tuple, mini)| tuple.netns == netns && on_port(tuple.local) && mini.ends_ns > facts.now_ns)
        .map(|(_, mini)| mini.ends_ns - facts.now_ns)
        .collect();
    let count = open + minis.len() as u64;
    if count == 0 {
        return None;
    }
    let last_ns = minis.iter().copied().max().unwrap_or(0);
    let until = if open > 0 {
        format!("until {} closed", if open == 1 { "it is" } else { "they are" })
    } else {
        format!("for {} s more", last_ns.div_ceil(1_000_000_000))
    };
    Some(Finding {
        process: gone.process,
        local: Some(local),
        netns,
        count,
        oldest_ns: facts.now_ns.saturating_sub(gone.gone_ns),
        oldest_certainty: Certainty::Exact,
        eta_s: (open == 0).then(|| last_ns.div_ceil(1_000_000_000)),
        evidence: vec![format!(
            "{} open, {} in TIME_WAIT or FIN_WAIT2 on the port; nobody listens there",
            open,
            minis.len()
        )],
        ..Finding::new(
            Kind::PortBlocked,
            Severity::Info,
            format!(
                "{local}: the listener is gone, {} left; without SO_REUSEADDR a restart gets EADDRINUSE {until}",
                counted(count, "socket")
            ),
        )
    })
}
