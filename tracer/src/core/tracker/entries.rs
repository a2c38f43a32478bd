//! The connections, found by the key of their socket.
//!
//! A table of places beside a slab: the key is in the entry and in no second place. With a million connections most of
//! an event's cost is waiting for memory, and four bytes for each connection stay in the processor's cache.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use slab::Slab;

use super::entry::Entry;
use crate::core::transition::SocketKey;

/// Where a connection is; another one may be there once it is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(u32);

/// All connections that are known.
#[derive(Debug, Default)]
pub(super) struct Entries {
    slab: Slab<Entry>,
    by_key: HashTable<Place>,
    /// How many are found by a kernel address.
    by_address: usize,
}

impl Entries {
    /// More than a place can tell are never kept.
    pub(super) const MOST: usize = u32::MAX as usize;

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Whether some are found by a kernel address.
    pub(super) fn has_addresses(&self) -> bool {
        self.by_address > 0
    }

    pub(super) fn find(&self, key: SocketKey) -> Option<Place> {
        self.by_key.find(hash(key), |place| self.slab[place.index()].key == key).copied()
    }

    pub(super) fn contains(&self, key: SocketKey) -> bool {
        self.find(key).is_some()
    }

    pub(super) fn get(&self, place: Place) -> Option<&Entry> {
        self.slab.get(place.index())
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.slab.get_mut(place.index())
    }

    /// The connection that a key leads to.
    pub(super) fn of(&self, key: SocketKey) -> Option<&Entry> {
        self.get(self.find(key)?)
    }

    /// All of them, in the order of their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &Entry)> {
        self.slab.iter().map(|(index, entry)| (Place(index as u32), entry))
    }

    /// All of them, beginning at `from`, where the places are a circle.
    pub(super) fn iter_from(&self, from: Place) -> impl Iterator<Item = (Place, &Entry)> {
        let capacity = self.slab.capacity().max(1);
        let places = (0..capacity).map(move |step| (from.index() + step) % capacity);
        places.filter_map(|index| Some((Place(index as u32), self.slab.get(index)?)))
    }

    /// Adds a connection that is found by `key` from now on. What was found by that before is let go.
    pub(super) fn insert(&mut self, key: SocketKey, mut entry: Entry) -> Place {
        self.remove(key);
        entry.key = key;
        let place = Place(self.slab.insert(entry) as u32);
        self.point(key, place);
        place
    }

    pub(super) fn remove(&mut self, key: SocketKey) -> Option<Entry> {
        let place = self.unpoint(key)?;
        self.slab.try_remove(place.index())
    }

    /// Finds an open connection under another key from now on. A closed one stays: the address is in use again.
    pub(super) fn rekey(&mut self, from: SocketKey, to: SocketKey) -> Option<&mut Entry> {
        let place = self.find(from)?;
        if self.slab[place.index()].close.is_some() || self.contains(to) {
            return None;
        }
        self.unpoint(from);
        self.slab[place.index()].key = to;
        self.point(to, place);
        self.get_mut(place)
    }

    fn point(&mut self, key: SocketKey, place: Place) {
        self.by_address += usize::from(key.is_address());
        let slab = &self.slab;
        self.by_key.insert_unique(hash(key), place, |place| hash(slab[place.index()].key));
    }

    fn unpoint(&mut self, key: SocketKey) -> Option<Place> {
        let slab = &self.slab;
        let found = self.by_key.find_entry(hash(key), |place| slab[place.index()].key == key).ok()?;
        let (place, _) = found.remove();
        self.by_address -= usize::from(key.is_address());
        Some(place)
    }

    /// Whether table, slab and count agree.
    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let addresses = self.slab.iter().filter(|(_, entry)| entry.key.is_address()).count();
        self.by_key.len() == self.slab.len()
            && self.by_address == addresses
            && self.iter().all(|(place, entry)| self.find(entry.key) == Some(place))
    }
}

impl Place {
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    fn index(self) -> usize {
        self.0 as usize
    }
}

fn hash(key: SocketKey) -> u64 {
    FxBuildHasher.hash_one(key)
}
