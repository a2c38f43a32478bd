//! When the ring buffer is looked into: regularly while events come, and where nothing happens when the kernel says so.

use std::time::Duration;

use tokio::time::Instant;

/// How often the ring buffer is drained while events come: also the longest that a line is late. Where nothing happens the
/// kernel wakes us for the first event.
pub(super) const DRAIN_EVERY: Duration = Duration::from_millis(50);

/// How long after the last event the host counts as quiet: by then nothing waits any more to be handed out or written.
const QUIET_AFTER: Duration = Duration::from_secs(2);

/// When the ring buffer is visited.
#[derive(Debug)]
pub(super) struct Visits {
    /// `None` where the host is quiet.
    pub(super) next: Option<Instant>,
    busy_until: Instant,
    /// How often the kernel has said since the last visit that there is something.
    wakes: u32,
}

impl Visits {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: Some(now), busy_until: now + QUIET_AFTER, wakes: 0 }
    }

    /// The kernel says that there is something; returns whether that is a reason to go and look at once. While events
    /// come the first time is not, the second time the buffer fills up.
    pub(super) fn wake(&mut self) -> bool {
        self.wakes += 1;
        self.next.is_none() || self.wakes > 1
    }

    /// It was visited just now.
    pub(super) fn drained(&mut self, now: Instant, is_busy: bool) {
        if is_busy {
            self.busy_until = now + QUIET_AFTER;
        }
        self.next = (now < self.busy_until).then(|| now + DRAIN_EVERY);
        self.wakes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_host_is_left_alone_until_something_happens() {
        let began = Instant::now();
        let mut visits = Visits::new(began);
        // Busy: regular visits, the first wake-up is one of a trickle, the second says that the buffer fills up.
        visits.drained(began, true);
        assert_eq!(visits.next, Some(began + DRAIN_EVERY));
        assert!(!visits.wake());
        assert!(visits.wake());
        // A while after the last event there are no visits more.
        visits.drained(began + QUIET_AFTER / 2, false);
        assert!(visits.next.is_some());
        visits.drained(began + QUIET_AFTER, false);
        assert_eq!(visits.next, None);
        // The next event is looked at when it comes, and those after it with the visits again.
        assert!(visits.wake());
        visits.drained(began + 2 * QUIET_AFTER, true);
        assert!(visits.next.is_some());
        assert!(!visits.wake());
    }
}
