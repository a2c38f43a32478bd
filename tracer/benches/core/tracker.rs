//! The tracker per event, beside 1000, 100 000 and 1 000 000 live connections.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use tracer::core::{
    endpoint::Tuple,
    state::State,
    tracker::{Effects, Limits, Tracker},
};

use crate::lives::{ACTIVE, PASSIVE, mirrored, step, tuple};

const LIVE: [u64; 3] = [1_000, 100_000, 1_000_000];

/// Between one connection and the next, or one event and the next.
const PACE_NS: u64 = 10_000;

/// Numbers from here on are for connections that come and go.
const COMING_AND_GOING: u64 = 100_000_000;

pub(crate) fn benches(criterion: &mut Criterion) {
    churn(criterion);
    anywhere(criterion);
}

/// A tracker, its time and its output.
struct Bench {
    tracker: Tracker,
    effects: Effects,
    now_ns: u64,
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { max_connections: 4_000_000, ..Limits::default() };
        Self { tracker: Tracker::new(limits), effects: Effects::default(), now_ns: 1_000_000_000 }
    }

    fn feed(&mut self, cookie: u64, tuple: Tuple, way: (State, State)) {
        black_box(self.tracker.transition(&step(cookie, tuple, way, self.now_ns), &mut self.effects));
        black_box(self.effects.ended.drain(..).count());
    }

    /// With so many connections that are established and stay so.
    fn with_live(live: u64) -> Self {
        let mut bench = Self::new();
        for number in 0..live {
            bench.now_ns += PACE_NS;
            for way in &ACTIVE[..2] {
                bench.feed(number + 1, tuple(number), *way);
            }
        }
        bench
    }
}

/// Connections that open and close, both ends of each, beside those that stay: what a busy host does.
fn churn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tracker_churn_beside");
    group.throughput(Throughput::Elements((ACTIVE.len() + PASSIVE.len()) as u64));
    for live in LIVE {
        let mut bench = Bench::with_live(live);
        let mut count = 0;
        group.bench_function(BenchmarkId::from_parameter(live), |bencher| {
            bencher.iter(|| {
                bench.now_ns += PACE_NS;
                let cookie = COMING_AND_GOING + 2 * count;
                let tuple = tuple(COMING_AND_GOING + count % 28_000);
                for at in 0..ACTIVE.len() {
                    bench.feed(cookie, tuple, ACTIVE[at]);
                    bench.feed(cookie + 1, mirrored(tuple), PASSIVE[at]);
                }
                count += 1;
            });
        });
    }
    group.finish();
}

/// The next event is of any of the connections: the worst that can be for the caches.
fn anywhere(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tracker_anywhere_among");
    group.throughput(Throughput::Elements(1));
    for live in LIVE {
        let mut bench = Bench::new();
        let mut events = vec![0_u32; live as usize];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let number = ((u128::from(random) * u128::from(live)) >> 64) as u64;
            let count = u64::from(events[number as usize]);
            events[number as usize] += 1;
            let (life, at) = (count / ACTIVE.len() as u64, count as usize % ACTIVE.len());
            let (tuple, way) = if number.is_multiple_of(2) {
                (tuple(number), ACTIVE[at])
            } else {
                (mirrored(tuple(number)), PASSIVE[at])
            };
            bench.now_ns += PACE_NS;
            bench.feed(1 + number + life * live, tuple, way);
        };
        // Until each has been somewhere.
        for _ in 0..5 * live {
            next();
        }
        group.bench_function(BenchmarkId::from_parameter(live), |bencher| bencher.iter(&mut next));
    }
    group.finish();
}
