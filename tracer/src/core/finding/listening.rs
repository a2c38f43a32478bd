//! The listeners of a sample, found by port: a host may have as many sockets as it likes.

use rustc_hash::FxHashMap;

use super::Facts;
use crate::core::{
    endpoint::{Endpoint, Tuple},
    snapshot::Socket,
    state::State,
};

pub(super) struct Listening<'a>(FxHashMap<(u32, u16), Vec<&'a Socket>>);

impl<'a> Listening<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        let mut by_port: FxHashMap<_, Vec<_>> = FxHashMap::default();
        for socket in facts.sockets.iter().filter(|socket| socket.state == State::LISTEN) {
            by_port.entry((socket.tuple.netns, socket.tuple.local.port)).or_default().push(socket);
        }
        Self(by_port)
    }

    fn on_port(&self, netns: u32, port: u16) -> &[&'a Socket] {
        self.0.get(&(netns, port)).map_or(&[], Vec::as_slice)
    }

    /// Whether a listener takes what arrives at this end; anything at all where its address is unspecified.
    pub(super) fn takes(&self, netns: u32, end: Endpoint) -> bool {
        self.on_port(netns, end.port)
            .iter()
            .map(|listener| listener.tuple.local.address)
            .any(|address| end.address.is_unspecified() || address.is_unspecified() || address == end.address)
    }

    /// Those that a connection may have come through: the ones at its very address, else the ones at any. There are
    /// several where processes share the port (SO_REUSEPORT).
    pub(super) fn of_connection(&self, tuple: &Tuple) -> impl Iterator<Item = &'a Socket> {
        let on_port = self.on_port(tuple.netns, tuple.local.port);
        let is_exact = |listener: &&Socket| listener.tuple.local.address == tuple.local.address;
        let any_exact = on_port.iter().any(is_exact);
        let fits = move |listener: &&Socket| {
            if any_exact { is_exact(listener) } else { listener.tuple.local.address.is_unspecified() }
        };
        on_port.iter().copied().filter(fits)
    }
}
