//! Which destinations take how many local ports.
//!
//! A connection needs a local port that no other one to the same destination (address and port) has, and after an
//! active close TIME_WAIT keeps it for 60 s more. Where connect() may take over ports in TIME_WAIT (`tcp_tw_reuse`), those
//! that are older than a second are not in its way.

use rustc_hash::FxHashMap;

use super::{NamespaceFacts, PortSettings};
use crate::core::{
    endpoint::{Address, Endpoint, Tuple},
    mini_sockets::MiniSocket,
    state::State,
    tracker::Tracker,
};

/// How long a port has to be in TIME_WAIT before connect() takes it over (`tcp_tw_reuse_delay`), ns.
const REUSE_DELAY_NS: u64 = 1_000_000_000;

/// What a local port is needed for: connections from one address to one address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Network namespace.
    pub netns: u32,
    /// This host's address.
    pub local: Address,
    /// The peer's end.
    pub remote: Endpoint,
}

impl Destination {
    /// Of a connection.
    #[must_use]
    pub fn of(tuple: &Tuple) -> Self {
        Self { netns: tuple.netns, local: tuple.local.address, remote: tuple.remote }
    }
}

/// What takes ports. Small: a busy server has one of these for each of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// In TIME_WAIT.
    pub time_wait: u64,
    /// Those of them that connect() may not take over.
    pub time_wait_kept: u64,
    /// What orphans have left in FIN_WAIT2.
    pub fin_wait2: u64,
    /// Open connections.
    pub open: u64,
    /// Those of all of these that came in through a listener: its port is none that connect() chooses.
    pub served: u64,
}

impl Use {
    /// Ports that connect() cannot have.
    #[must_use]
    pub fn ports(self) -> u64 {
        self.time_wait_kept + self.fin_wait2 + self.open
    }
}

/// Whether connect() from one address to another may take over a port in TIME_WAIT (`tcp_twsk_unique()`).
#[must_use]
pub fn reuses_time_wait(settings: &PortSettings, local: Address, remote: Address) -> bool {
    match settings.time_wait_reuse {
        0 => false,
        1 => true,
        _ => local.ip().is_loopback() || remote.ip().is_loopback(),
    }
}

/// The minis that are there.
pub fn minis(tracker: &Tracker, now_ns: u64) -> impl Iterator<Item = (&Tuple, &MiniSocket)> {
    tracker.mini_sockets().iter().filter(move |(_, mini)| mini.ends_ns > now_ns)
}

/// The ports that each destination takes; that of a connection which came in is its client.
#[must_use]
pub fn uses(
    tracker: &Tracker,
    namespaces: &FxHashMap<u32, NamespaceFacts>,
    now_ns: u64,
) -> FxHashMap<Destination, Use> {
    let mut uses: FxHashMap<Destination, Use> = FxHashMap::default();
    let is_served = |tuple: &Tuple| u64::from(tracker.listens_on(tuple.netns, tuple.local.port));
    for (tuple, mini) in minis(tracker, now_ns) {
        let usage = uses.entry(Destination::of(tuple)).or_default();
        usage.served += is_served(tuple);
        if mini.state == State::TIME_WAIT {
            let settings = namespaces.get(&tuple.netns).map(|facts| &facts.ports);
            let reusable = now_ns.saturating_sub(mini.since_ns) >= REUSE_DELAY_NS
                && settings.is_some_and(|ports| reuses_time_wait(ports, tuple.local.address, tuple.remote.address));
            usage.time_wait += 1;
            usage.time_wait_kept += u64::from(!reusable);
        } else {
            usage.fin_wait2 += 1;
        }
    }
    for tuple in tracker.open_tuples().filter(Tuple::is_complete) {
        let usage = uses.entry(Destination::of(&tuple)).or_default();
        usage.served += is_served(&tuple);
        usage.open += 1;
    }
    uses
}
