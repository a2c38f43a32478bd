//! Who has to go when there is no room for another connection.

use super::{Effects, Tracker};
use crate::core::state::State;

impl Tracker {
    /// Lets one connection go, the next one that is not closing or stuck: those are what a user is looking for.
    pub(super) fn evict(&mut self, effects: &mut Effects) {
        const LOOK_AT: usize = 16;
        // Closed ones only wait for their grace; not every key in the queue still has one.
        while let Some((until, key)) = self.closing.pop_front() {
            self.release_closed(key, until, effects);
            if self.entries.len() < self.limits.max_connections {
                return;
            }
        }
        let capacity = self.entries.capacity().max(1);
        let mut victim = None;
        let mut looked_at = 0;
        for step in 0..capacity {
            let index = (self.eviction_hand + step) % capacity;
            if let Some(entry) = self.entries.get(index) {
                victim = Some((index, entry.socket));
                looked_at += 1;
                if entry.state != State::CLOSE_WAIT || looked_at >= LOOK_AT {
                    break;
                }
            }
        }
        if let Some((index, socket)) = victim {
            self.eviction_hand = index + 1;
            let key = if self.by_key.get(&socket.key()) == Some(&index) { socket.key() } else { socket.address_key() };
            self.forget(key);
            self.counts.evicted += 1;
        }
    }
}
