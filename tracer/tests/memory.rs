//! What the tracker takes of memory: for each connection, while it grows, and after many have come and gone. Counted at
//! the allocator, so the same on every machine.

#[path = "../benches/core/lives.rs"]
mod lives;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use lives::{ACTIVE, PASSIVE, mirrored, step, tuple};
use tracer::core::tracker::{Effects, Limits, Tracker};

/// Bytes that are allocated, and the most that ever were since the last look.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is the system allocator's; the counters change nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's obligations are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    /// The system moves pages, not bytes, where a block is large: there are never two of it.
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        grow(size);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn grow(size: usize) {
    let allocated = ALLOCATED.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(allocated, Ordering::Relaxed);
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MILLION: u64 = 1_000_000;

/// So far apart that a minute has as many as a busy host makes.
const PACE_NS: u64 = 4_000_000;

fn feed(tracker: &mut Tracker, effects: &mut Effects, number: u64, ways: usize, mono_ns: u64) {
    for at in 0..ways {
        tracker.transition(&step(2 * number + 1, tuple(number), ACTIVE[at], mono_ns), effects);
        tracker.transition(&step(2 * number + 2, mirrored(tuple(number)), PASSIVE[at], mono_ns), effects);
        effects.ended.clear();
    }
}

/// One test, for the counters are of the whole process.
#[test]
fn a_connection_takes_no_more_than_300_bytes_and_leaves_none() {
    let mut effects = Effects::default();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let mut tracker = Tracker::new(Limits::default());
    for number in 0..MILLION / 2 {
        feed(&mut tracker, &mut effects, number, 2, number);
    }
    assert_eq!(tracker.len() as u64, MILLION);
    let each = (ALLOCATED.load(Ordering::Relaxed) - before) as f64 / MILLION as f64;
    let each_at_most = (PEAK.load(Ordering::Relaxed) - before) as f64 / MILLION as f64;
    println!("{each} bytes for each of {MILLION} connections, at most {each_at_most}");
    assert!(each <= 300.0, "{each} bytes for each connection");
    assert!(each_at_most <= 300.0, "{each_at_most} bytes for each connection while they became so many");

    drop(tracker);
    let mut tracker = Tracker::new(Limits::default());
    let mut after = [0; 5];
    for (round, after) in (0..).zip(&mut after) {
        for number in round * 20_000..(round + 1) * 20_000 {
            feed(&mut tracker, &mut effects, number, ACTIVE.len(), number * PACE_NS);
        }
        *after = ALLOCATED.load(Ordering::Relaxed);
    }
    // A minute of TIME_WAIT is reached in the first round.
    assert!(after.iter().all(|allocated| *allocated == after[0]), "it grows: {after:?}");
}
