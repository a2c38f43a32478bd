//! The listening sockets: a passive connection is made by the kernel, in nobody's context, so its listener's owner is
//! the first that is known of whose it is.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::core::{
    connection::{Process, ProcessSource},
    endpoint::{Endpoint, Tuple},
    transition::SocketKey,
};

/// A listener that has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoneListener {
    /// Its network namespace.
    pub netns: u32,
    /// Where it listened.
    pub local: Endpoint,
    /// Whose it was.
    pub process: Option<Process>,
    /// When it closed, CLOCK_MONOTONIC ns.
    pub gone_ns: u64,
}

/// How many of those are remembered: the latest.
const GONE: usize = 1_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Listener {
    local: Endpoint,
    process: Option<Process>,
    /// When an event last told of it, ns.
    heard_ns: u64,
    /// Number of the last snapshot that had it.
    in_snapshot: u32,
}

/// A process as that of the connections that come through its listener.
fn of_listener(process: Process) -> Process {
    Process { source: ProcessSource::Listener, ..process }
}

/// All listeners, found by socket or by port.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    by_key: FxHashMap<SocketKey, (u32, u16)>,
    by_port: FxHashMap<(u32, u16), Vec<(SocketKey, Listener)>>,
    gone: VecDeque<GoneListener>,
}

impl Listeners {
    /// One has closed, at `local` as far as the event knew.
    pub(super) fn close(&mut self, key: SocketKey, tuple: &Tuple, closer: Option<Process>, gone_ns: u64) {
        let known = self.remove(key);
        let local = known.map_or(tuple.local, |known| known.local);
        if local.port == 0 {
            return;
        }
        if self.gone.len() >= GONE {
            self.gone.pop_front();
        }
        let process = closer.or_else(|| known.and_then(|known| known.process));
        self.gone.push_back(GoneListener { netns: tuple.netns, local, process, gone_ns });
    }

    /// The listeners that have closed, the latest last.
    pub(super) fn gone(&self) -> impl Iterator<Item = &GoneListener> {
        self.gone.iter()
    }

    pub(super) fn add(&mut self, key: SocketKey, tuple: &Tuple, process: Option<Process>, heard_ns: u64) {
        let kept = self.remove(key).and_then(|known| known.process);
        let process = process.map(of_listener).or(kept);
        let listener = Listener { local: tuple.local, process, heard_ns, in_snapshot: 0 };
        self.insert(key, tuple.netns, listener);
    }

    /// A dump has this listener. One that was known before it had a cookie is the same if it is at the same place.
    pub(super) fn found(&mut self, key: SocketKey, tuple: &Tuple, holder: Option<Process>, in_snapshot: u32) {
        let there = self.by_port.get(&(tuple.netns, tuple.local.port)).map_or(&[][..], Vec::as_slice);
        let same = |(known, listener): &&(SocketKey, Listener)| {
            known.is_address() && listener.local == tuple.local && listener.in_snapshot != in_snapshot
        };
        let by_address = there.iter().find(same).map(|(known, _)| *known);
        let key = if self.contains(key) { key } else { by_address.unwrap_or(key) };
        let (process, heard_ns) = self.remove(key).map_or((None, 0), |known| (known.process, known.heard_ns));
        let process = process.or(holder.map(of_listener));
        self.insert(key, tuple.netns, Listener { local: tuple.local, process, heard_ns, in_snapshot });
    }

    /// Removes those that a dump does not have though it is complete for their namespace, unless they began to listen
    /// since it started.
    pub(super) fn remove_absent(&mut self, in_snapshot: u32, complete_netns: &[u32], started_ns: u64) {
        let absent = |listener: &Listener| listener.in_snapshot != in_snapshot && listener.heard_ns < started_ns;
        let complete = self.by_port.iter().filter(|((netns, _), _)| complete_netns.contains(netns));
        let there = complete.flat_map(|(_, there)| there);
        let gone: Vec<SocketKey> = there.filter(|(_, listener)| absent(listener)).map(|(key, _)| *key).collect();
        for key in gone {
            self.remove(key);
        }
    }

    fn insert(&mut self, key: SocketKey, netns: u32, listener: Listener) {
        let place = (netns, listener.local.port);
        self.by_key.insert(key, place);
        self.by_port.entry(place).or_default().push((key, listener));
    }

    pub(super) fn remove(&mut self, key: SocketKey) -> Option<Listener> {
        let place = self.by_key.remove(&key)?;
        let there = self.by_port.get_mut(&place)?;
        let at = there.iter().position(|(known, _)| *known == key)?;
        let (_, listener) = there.swap_remove(at);
        if there.is_empty() {
            self.by_port.remove(&place);
        }
        Some(listener)
    }

    pub(super) fn contains(&self, key: SocketKey) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Whether anyone listens on a local port.
    pub(super) fn serves(&self, tuple: &Tuple) -> bool {
        self.is_on(tuple.netns, tuple.local.port)
    }

    pub(super) fn is_on(&self, netns: u32, port: u16) -> bool {
        self.by_port.contains_key(&(netns, port))
    }

    /// Whose listener a connection came through; `None` when several processes listen there (SO_REUSEPORT) and the
    /// kernel's choice cannot be known.
    pub(super) fn owner_for(&self, tuple: &Tuple) -> Option<Process> {
        let there = self.by_port.get(&(tuple.netns, tuple.local.port))?;
        let exact = |listener: &Listener| listener.local.address == tuple.local.address;
        let is_exact = there.iter().any(|(_, listener)| exact(listener));
        let mut fitting = there
            .iter()
            .map(|(_, listener)| listener)
            .filter(|listener| if is_exact { exact(listener) } else { listener.local.address.is_unspecified() });
        let first = fitting.next()?.process?;
        fitting.all(|other| other.process.is_some_and(|process| process.pid == first.pid)).then_some(first)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Endpoint, Option<Process>)> + '_ {
        let there = self.by_port.iter().flat_map(|((netns, _), there)| there.iter().map(move |(_, it)| (*netns, it)));
        there.map(|(netns, listener)| (netns, listener.local, listener.process))
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether both ways to find a listener lead to the same ones, and to nothing else.
    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let there = self.by_port.iter().flat_map(|(place, there)| there.iter().map(move |(key, _)| (place, key)));
        self.by_port.values().all(|there| !there.is_empty())
            && there.clone().count() == self.by_key.len()
            && there.clone().all(|(place, key)| self.by_key.get(key) == Some(place))
    }
}
