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
        let mut victim = None;
        for (looked_at, (place, entry)) in (1..).zip(self.entries.iter_from(self.eviction_hand)) {
            victim = Some((place, entry.key));
            if entry.state != State::CLOSE_WAIT || looked_at >= LOOK_AT {
                break;
            }
        }
        if let Some((place, key)) = victim {
            self.eviction_hand = place.next();
            self.entries.remove(key);
            self.counts.evicted += 1;
        }
    }
}
