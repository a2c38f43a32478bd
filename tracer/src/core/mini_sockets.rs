//! What the kernel keeps of closed connections: TIME_WAIT and FIN_WAIT2 mini-sockets, which no transition shows.
//!
//! They are derived from the closes and kept true in three ways: a tuple that is in use again has no mini-socket any
//! more; each has an end; and a dump of a namespace replaces what was derived for it.

use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;

use super::{
    connection::{AfterClose, Process},
    endpoint::Tuple,
    snapshot::{Snapshot, SocketKind},
    state::State,
};

/// Life of a TIME_WAIT mini-socket (`TCP_TIMEWAIT_LEN`, include/net/tcp.h), ns. Not configurable.
pub const TIME_WAIT_NS: u64 = 60_000_000_000;

/// How often ended mini-sockets are cleared away.
const SWEEP_NS: u64 = 1_000_000_000;

/// A mini-socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MiniSocket {
    /// TIME_WAIT or FIN_WAIT2.
    pub state: State,
    /// When it came to be as far as is known, CLOCK_MONOTONIC ns.
    pub since_ns: u64,
    /// When the kernel will remove it, CLOCK_MONOTONIC ns, unless something ends it early.
    pub ends_ns: u64,
    /// Who closed the connection; `None` when that was before the tracer.
    pub process: Option<Process>,
}

/// All mini-sockets that should exist now.
#[derive(Debug, Default)]
pub struct MiniSockets {
    by_tuple: FxHashMap<Tuple, MiniSocket>,
    per_netns: FxHashMap<u32, u64>,
    swept_ns: u64,
    capacity: usize,
    not_kept: u64,
}

/// Those that a dump has found so far.
#[derive(Debug, Default)]
pub(super) struct FoundMinis {
    by_tuple: FxHashMap<Tuple, MiniSocket>,
    not_kept: u64,
}

impl FoundMinis {
    /// Takes the mini-sockets of a dump, or of a part of one; `capacity` is how many there may be in all.
    pub(super) fn add(&mut self, snapshot: &Snapshot, capacity: usize) {
        for socket in &snapshot.sockets {
            let SocketKind::Mini { expires_in_ms } = socket.kind else { continue };
            if self.by_tuple.len() >= capacity && !self.by_tuple.contains_key(&socket.tuple) {
                self.not_kept += 1;
                continue;
            }
            let ends_ns = snapshot.ended_ns.saturating_add(u64::from(expires_in_ms) * 1_000_000);
            let since_ns = ends_ns.saturating_sub(TIME_WAIT_NS);
            self.by_tuple.insert(socket.tuple, MiniSocket { state: socket.state, since_ns, ends_ns, process: None });
        }
    }
}

impl MiniSockets {
    /// Keeps `capacity` of them at most.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// A connection closed and left this behind. `fin_wait2_ns` is how long the kernel keeps one in FIN_WAIT2.
    pub fn add(&mut self, tuple: Tuple, after: AfterClose, now_ns: u64, fin_wait2_ns: u64, process: Option<Process>) {
        let (state, life_ns) = match after {
            AfterClose::TimeWait => (State::TIME_WAIT, TIME_WAIT_NS),
            AfterClose::FinWait2 => (State::FIN_WAIT2, fin_wait2_ns),
            AfterClose::None | AfterClose::Unknown => return,
        };
        self.insert(tuple, MiniSocket { state, since_ns: now_ns, ends_ns: now_ns.saturating_add(life_ns), process });
    }

    fn insert(&mut self, tuple: Tuple, mini: MiniSocket) {
        let full = self.by_tuple.len() >= self.capacity;
        match self.by_tuple.entry(tuple) {
            Entry::Occupied(mut known) => {
                known.insert(mini);
            }
            Entry::Vacant(_) if full => self.not_kept += 1,
            Entry::Vacant(place) => {
                place.insert(mini);
                *self.per_netns.entry(tuple.netns).or_default() += 1;
            }
        }
    }

    /// The tuple is in use again, or its mini-socket was reset.
    pub fn remove(&mut self, tuple: &Tuple) {
        if self.by_tuple.remove(tuple).is_some() {
            release(&mut self.per_netns, tuple.netns);
        }
    }

    /// Clears away those that have ended, about once a second of event time.
    pub fn advance(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) < SWEEP_NS {
            return;
        }
        self.swept_ns = now_ns;
        let per_netns = &mut self.per_netns;
        self.by_tuple.retain(|tuple, mini| {
            let stays = mini.ends_ns > now_ns;
            if !stays {
                release(per_netns, tuple.netns);
            }
            stays
        });
    }

    /// Takes a dump's word for the namespaces that it is complete for; who closed a connection is kept.
    pub fn merge(&mut self, snapshot: &Snapshot) {
        let mut found = FoundMinis::default();
        found.add(snapshot, self.capacity);
        self.replace(found, snapshot);
    }

    /// Likewise of a dump that came in parts, of which this is the last one.
    pub(super) fn replace(&mut self, found: FoundMinis, snapshot: &Snapshot) {
        let mut before = std::mem::replace(&mut self.by_tuple, found.by_tuple);
        self.per_netns.clear();
        for (tuple, mini) in &mut self.by_tuple {
            if let Some(known) = before.remove(tuple) {
                mini.process = known.process;
                if known.state == mini.state {
                    mini.since_ns = known.since_ns;
                }
            }
            *self.per_netns.entry(tuple.netns).or_default() += 1;
        }
        self.not_kept += found.not_kept;
        for (tuple, mini) in before {
            // What closed while the dump ran may be in it or not.
            let during = mini.since_ns >= snapshot.started_ns;
            if !snapshot.complete_netns.contains(&tuple.netns) || during {
                self.insert(tuple, mini);
            }
        }
    }

    /// How many there may be.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many there should be in a namespace.
    #[must_use]
    pub fn count_in(&self, netns: u32) -> u64 {
        self.per_netns.get(&netns).copied().unwrap_or(0)
    }

    /// How many there should be in each namespace that has any.
    #[must_use]
    pub fn counts(&self) -> FxHashMap<u32, u64> {
        self.per_netns.clone()
    }

    /// How many found no place here: the picture is a lower bound then.
    #[must_use]
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Tuple, &MiniSocket)> {
        self.by_tuple.iter()
    }
}

fn release(per_netns: &mut FxHashMap<u32, u64>, netns: u32) {
    if let Entry::Occupied(mut count) = per_netns.entry(netns) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        endpoint::{Address, Endpoint},
        snapshot::Socket,
    };

    const SECOND: u64 = 1_000_000_000;

    fn tuple(port: u16) -> Tuple {
        let at = |port| Endpoint::new(Address::v4([127, 0, 0, 1]), port);
        Tuple { netns: 1, local: at(port), remote: at(80) }
    }

    fn minis() -> MiniSockets {
        let mut minis = MiniSockets::new(10);
        minis.add(tuple(1), AfterClose::TimeWait, SECOND, 5 * SECOND, None);
        minis.add(tuple(2), AfterClose::FinWait2, SECOND, 5 * SECOND, None);
        minis.add(tuple(3), AfterClose::None, SECOND, 5 * SECOND, None);
        minis
    }

    #[test]
    fn each_lives_as_long_as_the_kernel_keeps_it() {
        let mut minis = minis();
        assert_eq!(minis.count_in(1), 2);
        minis.advance(7 * SECOND);
        assert_eq!(minis.count_in(1), 1);
        minis.advance(62 * SECOND);
        assert_eq!(minis.count_in(1), 0);
    }

    #[test]
    fn a_tuple_in_use_again_has_none() {
        let mut minis = minis();
        minis.remove(&tuple(1));
        minis.remove(&tuple(1));
        assert_eq!(minis.count_in(1), 1);
    }

    #[test]
    fn a_dump_replaces_the_picture_of_its_namespaces_only() {
        let mut minis = minis();
        let elsewhere = Tuple { netns: 2, ..tuple(1) };
        minis.add(elsewhere, AfterClose::TimeWait, SECOND, 0, None);
        let socket = Socket {
            cookie: 9,
            tuple: tuple(7),
            state: State::TIME_WAIT,
            kind: SocketKind::Mini { expires_in_ms: 1000 },
            inode: 0,
            cgroup: 0,
            uid: 0,
            receive_queue: 0,
            send_queue: 0,
            info: None,
            holder: None,
        };
        let snapshot =
            Snapshot { started_ns: 3 * SECOND, ended_ns: 3 * SECOND, complete_netns: vec![1], sockets: vec![socket] };
        minis.merge(&snapshot);
        assert_eq!((minis.count_in(1), minis.count_in(2)), (1, 1));
        minis.advance(5 * SECOND);
        assert_eq!((minis.count_in(1), minis.count_in(2)), (0, 1));
    }

    #[test]
    fn memory_is_bounded_and_the_rest_is_counted() {
        let mut minis = MiniSockets::new(2);
        for port in 1..=5 {
            minis.add(tuple(port), AfterClose::TimeWait, 0, 0, None);
        }
        assert_eq!((minis.count_in(1), minis.not_kept()), (2, 3));
    }
}
