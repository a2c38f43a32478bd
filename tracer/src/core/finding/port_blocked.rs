//! A listener is gone and sockets remain on its port: a restart without SO_REUSEADDR gets EADDRINUSE until they are gone.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Facts, Finding, Kind, Severity, counted, listening::Listening};
use crate::core::{
    connection::Certainty,
    endpoint::{Address, Endpoint, Tuple},
    snapshot::SocketKind,
    state::State,
    tracker::{GoneListener, Tracker},
};

/// A process that gave up more ports than this has them for one use each, as for the data of FTP: nobody will want one
/// of them again.
const FOR_USE_AGAIN: usize = 3;

type Port = (u32, u16);

/// What is on the ports, by the address that it has.
#[derive(Default)]
struct OnPort {
    open: Vec<Address>,
    /// With the time until it is gone, ns.
    minis: Vec<(Address, u64)>,
}

pub(super) fn detect(tracker: &Tracker, facts: &Facts) -> Vec<Finding> {
    let gone = gone(tracker);
    if gone.is_empty() {
        return Vec::new();
    }
    let listening = Listening::of(facts);
    let on_ports = on_ports(&gone, tracker, facts);
    let left = gone.into_iter().filter(|listener| {
        !tracker.listens_on(listener.netns, listener.local.port) && !listening.takes(listener.netns, listener.local)
    });
    left.filter_map(|listener| judge(listener, on_ports.get(&(listener.netns, listener.local.port))?, facts)).collect()
}

/// The listeners that were given up, each place once.
fn gone(tracker: &Tracker) -> Vec<&GoneListener> {
    let places: FxHashMap<(u32, Endpoint), &GoneListener> =
        tracker.gone_listeners().map(|listener| ((listener.netns, listener.local), listener)).collect();
    let owner = |listener: &GoneListener| Some((listener.netns, listener.process?.pid));
    let mut owned: FxHashMap<(u32, u32), usize> = FxHashMap::default();
    for owner in places.values().filter_map(|listener| owner(listener)) {
        *owned.entry(owner).or_default() += 1;
    }
    let mut gone: Vec<&GoneListener> = places
        .into_values()
        .filter(|listener| owner(listener).is_none_or(|owner| owned[&owner] <= FOR_USE_AGAIN))
        .collect();
    gone.sort_unstable_by_key(|listener| (listener.netns, listener.local));
    gone
}

fn on_ports(gone: &[&GoneListener], tracker: &Tracker, facts: &Facts) -> FxHashMap<Port, OnPort> {
    let ports: FxHashSet<Port> = gone.iter().map(|listener| (listener.netns, listener.local.port)).collect();
    let port = |tuple: &Tuple| Some((tuple.netns, tuple.local.port)).filter(|port| ports.contains(port));
    let mut on_ports: FxHashMap<Port, OnPort> = FxHashMap::default();
    for socket in &facts.sockets {
        if socket.kind == SocketKind::Full
            && socket.state != State::LISTEN
            && let Some(port) = port(&socket.tuple)
        {
            on_ports.entry(port).or_default().open.push(socket.tuple.local.address);
        }
    }
    for (tuple, mini) in tracker.mini_sockets().iter().filter(|(_, mini)| mini.ends_ns > facts.now_ns) {
        if let Some(port) = port(tuple) {
            on_ports.entry(port).or_default().minis.push((tuple.local.address, mini.ends_ns - facts.now_ns));
        }
    }
    on_ports
}

fn judge(gone: &GoneListener, on_port: &OnPort, facts: &Facts) -> Option<Finding> {
    let GoneListener { netns, local, .. } = *gone;
    let in_the_way = |address: &Address| local.address.is_unspecified() || *address == local.address;
    let open = on_port.open.iter().filter(|address| in_the_way(address)).count() as u64;
    let minis = on_port.minis.iter().filter(|(address, _)| in_the_way(address));
    let minis: Vec<u64> = minis.map(|(_, left_ns)| *left_ns).collect();
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
