//! The last minutes of a trace, second by second, by the trace's own time.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::core::{endpoint::Endpoint, state::State};

/// Seconds that are kept.
pub const KEPT: usize = 600;

/// How many sockets are in each state, by the state's number; states without a name are not counted.
pub type ByState = [u32; 16];

const SECOND_NS: u64 = 1_000_000_000;

/// What happened in a second, and how many sockets there were at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Connections that were established.
    pub opens: u32,
    /// Connections that ended after that.
    pub closes: u32,
    /// Those of them that a RST ended.
    pub resets: u32,
    /// Connects that failed.
    pub failures: u32,
    /// Sockets in each state.
    pub states: ByState,
}

/// The last seconds; the latest one is not over.
#[derive(Clone, Debug, Default)]
pub struct History {
    seconds: VecDeque<Second>,
    /// Number of the latest second.
    latest: u64,
}

impl History {
    /// Nothing is missing up to `now_ns`: sockets stay where they were as long as nothing else is told.
    pub fn advance(&mut self, now_ns: u64) {
        let now = now_ns / SECOND_NS;
        let Some(last) = self.seconds.back() else {
            self.seconds.push_back(Second::default());
            self.latest = now;
            return;
        };
        let quiet = Second { states: last.states, ..Second::default() };
        // Whatever time is claimed to have passed, no more is kept.
        for _ in 0..now.saturating_sub(self.latest).min(KEPT as u64) {
            if self.seconds.len() >= KEPT {
                self.seconds.pop_front();
            }
            self.seconds.push_back(quiet);
        }
        self.latest = self.latest.max(now);
    }

    /// The second of that time, to count in; what is late counts in the latest.
    pub fn at(&mut self, now_ns: u64) -> &mut Second {
        self.advance(now_ns);
        let last = self.seconds.len() - 1;
        &mut self.seconds[last]
    }

    /// All that is kept, the latest last.
    #[must_use]
    pub fn seconds(&self) -> Vec<Second> {
        self.seconds.iter().copied().collect()
    }
}

/// One value for each of `columns`, the latest last, over the last `span` seconds; `None` where there was no trace yet.
/// The second that is not over is left out.
pub fn columns(
    seconds: &[Second],
    span: usize,
    columns: usize,
    value: impl Fn(&Second) -> u32,
    join: impl Fn(&[u32]) -> u32,
) -> Vec<Option<u32>> {
    let whole = &seconds[..seconds.len().saturating_sub(1)];
    let each = span.div_ceil(columns.max(1)).max(1);
    let mut joined: Vec<Option<u32>> = whole
        .rchunks(each)
        .take(columns)
        .map(|chunk| Some(join(&chunk.iter().map(&value).collect::<Vec<_>>())))
        .collect();
    joined.resize(columns, None);
    joined.reverse();
    joined
}

/// How many there were in each of the last complete seconds, on average; 0 before the first.
#[must_use]
pub fn rate(seconds: &[Second], over: usize, value: impl Fn(&Second) -> u32) -> f64 {
    let whole = &seconds[..seconds.len().saturating_sub(1)];
    let last = &whole[whole.len().saturating_sub(over)..];
    if last.is_empty() {
        return 0.0;
    }
    last.iter().map(|second| f64::from(value(second))).sum::<f64>() / last.len() as f64
}

/// The place of a state in [`ByState`].
#[must_use]
pub fn place(state: State) -> Option<usize> {
    state.name().map(|_| usize::from(state.0))
}

/// Seconds that the rate of a listener is taken over.
const LATELY: u64 = 10;

/// Listeners that are counted at most.
const LISTENERS: usize = 20_000;

/// Connections that came in lately through each listener.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    by_listener: FxHashMap<(u32, u16), Lately>,
}

/// Counts of the last seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    counts: [u32; LATELY as usize],
    latest: u64,
}

impl Lately {
    fn advance(&mut self, now: u64) {
        for second in (self.latest + 1..=now).rev().take(LATELY as usize) {
            self.counts[(second % LATELY) as usize] = 0;
        }
        self.latest = self.latest.max(now);
    }
}

impl Arrivals {
    /// One has come in.
    pub fn count(&mut self, netns: u32, local: Endpoint, now_ns: u64) {
        let key = (netns, local.port);
        if self.by_listener.len() >= LISTENERS && !self.by_listener.contains_key(&key) {
            return;
        }
        let lately = self.by_listener.entry(key).or_default();
        lately.advance(now_ns / SECOND_NS);
        lately.counts[(lately.latest % LATELY) as usize] += 1;
    }

    /// How many a second, of the listeners on a port. The second that is not over is left out.
    #[must_use]
    pub fn rate(&self, netns: u32, port: u16, now_ns: u64) -> f64 {
        let Some(mut lately) = self.by_listener.get(&(netns, port)).copied() else {
            return 0.0;
        };
        lately.advance(now_ns / SECOND_NS);
        let under_way = lately.counts[(lately.latest % LATELY) as usize];
        f64::from(lately.counts.iter().sum::<u32>() - under_way) / (LATELY - 1) as f64
    }

    /// Forgets listeners that nothing came in through lately.
    pub fn tidy(&mut self, now_ns: u64) {
        let now = now_ns / SECOND_NS;
        self.by_listener.retain(|_, lately| now.saturating_sub(lately.latest) < LATELY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::endpoint::Address;

    const S: u64 = SECOND_NS;

    #[test]
    fn what_happens_counts_in_its_second_and_states_stay() {
        let mut history = History::default();
        history.at(10 * S).opens += 1;
        history.at(10 * S).states[1] = 7;
        history.at(12 * S).opens += 2;
        history.at(11 * S).opens += 1;
        let seconds = history.seconds();
        assert_eq!(seconds.iter().map(|second| second.opens).collect::<Vec<_>>(), [1, 0, 3]);
        assert_eq!(seconds.iter().map(|second| second.states[1]).collect::<Vec<_>>(), [7, 7, 7]);
        assert_eq!(rate(&seconds, 5, |second| second.opens), 0.5);
    }

    #[test]
    fn memory_is_bounded_whatever_time_passes() {
        let mut history = History::default();
        for now_ns in [0, 5 * S, u64::MAX, 3 * S, u64::MAX] {
            history.at(now_ns).closes += 1;
        }
        assert_eq!(history.seconds().len(), KEPT);
    }

    #[test]
    fn columns_end_now_and_begin_with_nothing() {
        let mut history = History::default();
        for second in 0..6 {
            history.at(second * S).opens = second as u32;
        }
        let sum = |counts: &[u32]| counts.iter().sum();
        let columns = columns(&history.seconds(), 8, 4, |second| second.opens, sum);
        assert_eq!(columns, [None, Some(0), Some(3), Some(7)]);
    }

    #[test]
    fn arrivals_are_those_of_the_last_seconds() {
        let mut arrivals = Arrivals::default();
        let local = Endpoint::new(Address::v4([127, 0, 0, 1]), 80);
        for second in 0..9 {
            (0..3).for_each(|_| arrivals.count(1, local, second * S));
        }
        assert_eq!(arrivals.rate(1, 80, 9 * S), 3.0);
        assert_eq!(arrivals.rate(1, 80, 12 * S), 2.0);
        assert_eq!(arrivals.rate(1, 80, u64::MAX), 0.0);
        assert_eq!(arrivals.rate(2, 80, 9 * S), 0.0);
        arrivals.tidy(60 * S);
        assert!(arrivals.by_listener.is_empty());
    }
}
