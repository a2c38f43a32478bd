//! Merges what sock_diag says with what the transitions said: connections that were there before, and the truth after
//! events were lost.
//!
//! A dump comes in parts, for a million sockets take as much room as half of what becomes of them. Order matters: attach,
//! [`Tracker::snapshot_begins`], and then for each part dump, drain what the ring buffer holds by then, and
//! [`Tracker::merge_part`], or [`Tracker::merge`] with the last. Where both know a socket, the later one wins.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Effects, Entry, Place, Tracker, annotate, missed, repair};
use crate::core::{
    connection::Opening,
    endpoint::Tuple,
    mini_sockets::FoundMinis,
    snapshot::{Snapshot, Socket, SocketKind},
    state::State,
    transition::{Context, KernelAddress, Origin, SocketId, SocketKey, Task, Transition},
};

/// A dump under way.
#[derive(Debug)]
pub(super) struct Merging {
    kind: MergeKind,
    pub(super) closed: ClosedMeanwhile,
    minis: FoundMinis,
}

/// Sockets that closed since a snapshot began.
#[derive(Debug, Default)]
pub(super) struct ClosedMeanwhile {
    pub(super) keys: FxHashSet<SocketKey>,
    /// The ends of those that had no cookie: the dump gave them one that no event told.
    tuples: FxHashSet<Tuple>,
}

impl ClosedMeanwhile {
    pub(super) fn insert(&mut self, key: SocketKey, socket: SocketId, tuple: Tuple) {
        self.keys.insert(key);
        if key.is_address() {
            self.keys.insert(socket.key());
            self.tuples.insert(tuple);
        }
    }

    fn contains(&self, key: SocketKey, tuple: &Tuple) -> bool {
        self.keys.contains(&key) || self.tuples.contains(tuple) || self.tuples.contains(&nowhere(tuple))
    }
}

/// The same ends as an event tells them that does not know its namespace.
fn nowhere(tuple: &Tuple) -> Tuple {
    Tuple { netns: 0, ..*tuple }
}

/// What a snapshot is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeKind {
    /// The first one: sockets that no transition told of were there before the tracer.
    StartUp,
    /// A later one, after events were lost: they were missed.
    Resync,
    /// A later one, with which the next file of a recording begins: the first one for whoever reads that file alone.
    Anew,
}

impl MergeKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::StartUp, Self::Resync, Self::Anew];
}

impl Tracker {
    /// A dump is about to be taken: sockets that close from now on are remembered, so that a dump that still has them
    /// does not bring them back.
    pub fn snapshot_begins(&mut self, kind: MergeKind) {
        self.merging = Some(self.begin(kind));
    }

    fn begin(&mut self, kind: MergeKind) -> Merging {
        self.snapshots = self.snapshots.wrapping_add(1);
        Merging { kind, closed: ClosedMeanwhile::default(), minis: FoundMinis::default() }
    }

    /// A dump could not be taken after all, or not to its end.
    pub fn snapshot_failed(&mut self) {
        self.merging = None;
    }

    /// Merges a part of the dump that has begun. Listeners come no later than the connections that they serve.
    pub fn merge_part(&mut self, part: &Snapshot, effects: &mut Effects) {
        self.merging = Some(self.merge_some(part, effects));
    }

    /// Merges the last part, or the only one; what the whole dump does not have is gone.
    pub fn merge(&mut self, rest: &Snapshot, effects: &mut Effects) {
        let merging = self.merge_some(rest, effects);
        if merging.kind != MergeKind::StartUp {
            self.listeners.remove_absent(self.snapshots, &rest.complete_netns, rest.started_ns);
            self.close_absent(rest, effects);
        }
        self.minis.replace(merging.minis, rest);
        self.whole_netns.extend(&rest.complete_netns);
    }

    /// Merges these; returns what is known of the dump by then. Nothing that this closes is for it to bring back.
    fn merge_some(&mut self, snapshot: &Snapshot, effects: &mut Effects) -> Merging {
        let mut merging = self.merging.take().unwrap_or_else(|| self.begin(MergeKind::Resync));
        let Merging { kind, closed, minis } = &mut merging;
        self.now_ns = self.now_ns.max(snapshot.started_ns).max(snapshot.ended_ns);
        self.found_by_ends = None;
        minis.add(snapshot, self.minis.capacity());
        for socket in snapshot.sockets.iter().filter(|socket| socket.state == State::LISTEN) {
            let key = SocketId::from_cookie(socket.cookie).key();
            if !closed.keys.contains(&key) {
                self.listeners.found(key, &socket.tuple, socket.holder, self.snapshots);
            }
        }
        let by_tuple = self.address_keys_by_tuple();
        let connects = |socket: &&Socket| {
            socket.kind == SocketKind::Full && ![State::LISTEN, State::CLOSE].contains(&socket.state)
        };
        for socket in snapshot.sockets.iter().filter(connects) {
            let key = SocketId::from_cookie(socket.cookie).key();
            if closed.contains(key, &socket.tuple) {
                continue;
            }
            // It stays under its address: later events may still not carry the cookie that the dump gave it.
            let by_address = by_tuple.get(&socket.tuple).or_else(|| by_tuple.get(&nowhere(&socket.tuple)));
            let same = |known: &&SocketKey| {
                self.entries.of(**known).is_some_and(|entry| [0, socket.cookie].contains(&entry.socket.cookie))
            };
            let known = if self.entries.contains(key) { None } else { by_address.filter(same) };
            self.merge_socket(known.copied().unwrap_or(key), socket, snapshot, *kind, effects);
        }
        merging
    }

    /// Merges a dump of mini-sockets alone.
    pub fn merge_minis(&mut self, snapshot: &Snapshot) {
        self.minis.merge(snapshot);
    }

    /// Sockets that are known without a cookie; a dump knows the cookie, and the ends are what both have.
    fn address_keys_by_tuple(&self) -> FxHashMap<Tuple, SocketKey> {
        if !self.entries.has_addresses() {
            return FxHashMap::default();
        }
        let unnamed = |entry: &&Entry| entry.close.is_none() && entry.key.is_address() && entry.tuple.is_complete();
        self.entries.iter().map(|(_, entry)| entry).filter(unnamed).map(|entry| (entry.tuple, entry.key)).collect()
    }

    /// The connection that a dump found and that an event without a cookie goes on with. A dump tells no addresses, so
    /// the ends must do; from then on it is found by the address.
    pub(super) fn adopt(&mut self, key: SocketKey, tuple: &Tuple) -> Option<Place> {
        if !key.is_address() || !tuple.is_complete() {
            return None;
        }
        let entries = &self.entries;
        let unaddressed = |entry: &&Entry| entry.close.is_none() && entry.socket.address == KernelAddress(0);
        let found = self.found_by_ends.get_or_insert_with(|| {
            let ends = |entry: &Entry| ((entry.tuple.local, entry.tuple.remote), entry.key);
            entries.iter().map(|(_, entry)| entry).filter(unaddressed).map(ends).collect()
        });
        let from = *found.get(&(tuple.local, tuple.remote))?;
        let entry = entries.of(from).filter(unaddressed)?;
        let same = (entry.tuple.local, entry.tuple.remote) == (tuple.local, tuple.remote)
            && (tuple.netns == 0 || tuple.netns == entry.tuple.netns);
        if !same {
            return None;
        }
        self.entries.rekey(from, key)?;
        self.entries.find(key)
    }

    fn merge_socket(
        &mut self,
        mut key: SocketKey,
        socket: &Socket,
        snapshot: &Snapshot,
        kind: MergeKind,
        effects: &mut Effects,
    ) {
        let served = self.listeners.serves(&socket.tuple);
        let unheard = |entry: &Entry| entry.heard_ns < snapshot.started_ns;
        let over = |entry: &Entry| entry.close.is_some() || entry.is_over(socket.state, &socket.tuple);
        let mut known = self.entries.find(key);
        if let Some(place) = known
            && self.entries.get(place).is_some_and(|entry| unheard(entry) && over(entry))
        {
            // The socket has begun another connection since, unseen.
            self.close_unseen(place, key, snapshot.started_ns, effects);
            self.release_now(key, effects);
            known = None;
            key = SocketId::from_cookie(socket.cookie).key();
        }
        let place = match known {
            Some(place) => place,
            None => {
                let entry = self.found(socket, snapshot, kind, effects);
                self.insert(key, entry, effects)
            }
        };
        let round = self.snapshots;
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        entry.in_snapshot = round;
        if entry.close.is_some() {
            return;
        }
        if entry.socket.cookie == 0 {
            entry.socket.cookie = socket.cookie;
        }
        entry.set_process(socket.holder);
        if entry.opening == Opening::PreExisting && (known.is_none() || kind == MergeKind::StartUp) {
            // When an event told of it first, the listeners were not known yet. Later on they may be gone again.
            entry.assume_syn_sent(!served);
        }
        if known.is_some() && !unheard(entry) {
            return;
        }
        if entry.tuple.netns == 0 {
            entry.tuple.netns = socket.tuple.netns;
        }
        entry.tuple.local.refresh(socket.tuple.local);
        entry.tuple.remote.refresh(socket.tuple.remote);
        if socket.inode != 0 {
            entry.inode = socket.inode;
        }
        if socket.cgroup != 0 {
            entry.cgroup = socket.cgroup;
        }
        if let Some(info) = socket.info {
            entry.count_bytes(info.bytes_received, info.bytes_acked);
        }
        if entry.state != socket.state {
            let revealing = missed(entry, entry.state, socket.state, snapshot.started_ns);
            self.counts.repaired += repair(entry, socket.state, &revealing, effects);
        }
    }

    /// A socket that no transition told of.
    fn found(&mut self, socket: &Socket, snapshot: &Snapshot, kind: MergeKind, effects: &mut Effects) -> Entry {
        let since_ns = snapshot.started_ns.saturating_sub(socket.at_least_in_state_ns());
        let id = SocketId::from_cookie(socket.cookie);
        let mut entry = Entry::new(id, socket.tuple, socket.state, since_ns, Opening::PreExisting);
        entry.set_process(self.listeners.owner_for(&socket.tuple));
        if kind != MergeKind::StartUp {
            entry.gap = true;
            self.counts.repaired += 1;
            effects.repaired.push(Transition {
                mono_ns: snapshot.started_ns,
                socket: id,
                tuple: socket.tuple,
                old: State::CLOSE,
                new: socket.state,
                task: Task::default(),
                context: Context::Unknown,
                details: None,
                origin: Origin::Snapshot,
            });
        }
        entry
    }

    /// A connection that a complete dump does not have, and of which nothing was heard since, has closed unseen.
    fn close_absent(&mut self, snapshot: &Snapshot, effects: &mut Effects) {
        let round = self.snapshots;
        let absent = |entry: &Entry| {
            entry.close.is_none()
                && entry.in_snapshot != round
                && entry.heard_ns < snapshot.started_ns
                && snapshot.complete_netns.contains(&entry.tuple.netns)
        };
        let gone: Vec<(Place, SocketKey)> =
            self.entries.iter().filter(|(_, entry)| absent(entry)).map(|(place, entry)| (place, entry.key)).collect();
        for (place, key) in gone {
            self.close_unseen(place, key, snapshot.started_ns, effects);
        }
    }

    /// What is known of the connection that a repaired transition belongs to.
    #[must_use]
    pub fn annotation(&self, socket: SocketId) -> super::Annotation {
        self.entries
            .of(socket.key())
            .or_else(|| self.entries.of(socket.address_key()))
            .map_or_else(super::Annotation::default, |entry| annotate(entry, None))
    }
}
