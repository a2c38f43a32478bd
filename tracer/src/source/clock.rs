//! The clocks. Events carry CLOCK_MONOTONIC; wall time is derived from it with one offset a run, so that the times of a
//! run never jump against each other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC, ns: the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read_ns(ClockId::CLOCK_MONOTONIC)
}

/// CPU time of the current thread: what something cost, however long it had to wait for a CPU.
#[must_use]
pub fn thread_cpu() -> Duration {
    Duration::from_nanos(read_ns(ClockId::CLOCK_THREAD_CPUTIME_ID))
}

fn read_ns(clock: ClockId) -> u64 {
    // Linux has both clocks, always, and both count up from zero.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Turns monotonic time into wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Wall time at monotonic zero, ns since 1970.
    offset_ns: u64,
}

impl WallClock {
    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Self {
        // The closest of a few readings: the thread may be preempted between the two clocks.
        let offset_ns = (0..5)
            .map(|_| {
                let before = monotonic_ns();
                let wall = read_ns(ClockId::CLOCK_REALTIME);
                let after = monotonic_ns();
                (after - before, wall.saturating_sub(before + (after - before) / 2))
            })
            .min()
            .map_or(0, |(_, offset)| offset);
        Self { offset_ns }
    }

    /// From a known offset, ns.
    #[must_use]
    pub const fn from_offset_ns(offset_ns: u64) -> Self {
        Self { offset_ns }
    }

    /// Wall time of a monotonic moment, ns since 1970.
    #[must_use]
    pub fn unix_ns(self, mono_ns: u64) -> u64 {
        self.offset_ns.saturating_add(mono_ns)
    }

    /// Wall time of a monotonic moment. Moments past the year 9999, which no clock gives but a hostile file may, are
    /// that year's end.
    #[must_use]
    pub fn at(self, mono_ns: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.unix_ns(mono_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_monotonic_time_plus_one_offset() {
        let clock = WallClock::from_offset_ns(1_000);
        assert_eq!(clock.unix_ns(5), 1_005);
        assert_eq!(clock.unix_ns(u64::MAX), u64::MAX);
        assert!(humantime::format_rfc3339_nanos(clock.at(u64::MAX)).to_string().starts_with("2554-"));
    }

    #[test]
    fn now_is_now() {
        let derived = WallClock::now().at(monotonic_ns());
        let apart = SystemTime::now().duration_since(derived).unwrap_or_else(|error| error.duration());
        assert!(apart < Duration::from_secs(5), "{apart:?}");
    }
}
