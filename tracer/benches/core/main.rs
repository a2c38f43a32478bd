//! What the core costs: per event beside few and many connections, mini-sockets, records of the ring buffer, detectors.
//!
//!     cargo bench -p tracer --bench core

mod decoder;
mod detectors;
mod lives;
mod mini_sockets;
mod tracker;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

criterion_group! {
    name = core;
    // All of them in a minute and a half.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = tracker::benches, mini_sockets::benches, decoder::benches, detectors::benches
}
criterion_main!(core);
