//! What each output costs: records of a log and of connections in every format, and a recording written and read.
//!
//!     taskset -c 1 cargo bench -p tracer --bench outputs
//!
//! On one CPU it is the cost of both threads, the one that makes records and the one that encodes and writes them.

#[path = "../core/lives.rs"]
mod lives;
mod recordings;

use std::{io, sync::Arc, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tracer::{
    core::{
        connection::Connection,
        tracker::{Annotation, Effects, Limits, Tracker},
        transition::Transition,
    },
    output::{
        Format, Row, Writer,
        records::{ConnectionRecord, LogRecord},
    },
    source::clock::WallClock,
};

use self::lives::{ACTIVE, PASSIVE, mirrored, step, tuple};

/// Some batches.
const COUNT: u64 = 200_000;

const FORMATS: [(&str, Format); 5] = [
    ("table", Format::Table),
    ("jsonl", Format::Jsonl),
    ("csv", Format::Csv),
    ("arrow", Format::Arrow),
    ("parquet", Format::Parquet),
];

fn clock() -> WallClock {
    WallClock::from_offset_ns(1_780_000_000_000_000_000)
}

/// What happens and what the tracker makes of it, both ends of connections one after the other, 10 µs apart.
fn traced() -> (Vec<(Transition, Annotation)>, Vec<Connection>) {
    let mut tracker = Tracker::new(Limits::default());
    let mut effects = Effects::default();
    let mut transitions = Vec::new();
    let mut number = 0;
    while transitions.len() < COUNT as usize {
        let tuple = tuple(number);
        for at in 0..ACTIVE.len() {
            for (cookie, tuple, way) in
                [(2 * number, tuple, ACTIVE[at]), (2 * number + 1, mirrored(tuple), PASSIVE[at])]
            {
                let transition = step(1 + cookie, tuple, way, 1_000_000_000 + transitions.len() as u64 * 10_000);
                transitions.push((transition, tracker.transition(&transition, &mut effects)));
            }
        }
        number += 1;
    }
    tracker.flush(&mut effects);
    (transitions, effects.ended)
}

fn log_records(transitions: &[(Transition, Annotation)]) -> Vec<LogRecord> {
    let cgroup: Arc<str> = Arc::from("/system.slice/server.service");
    let record = |(transition, annotation): &(Transition, Annotation)| {
        LogRecord::new(transition, annotation, Some(Arc::clone(&cgroup)), clock())
    };
    transitions.iter().map(record).collect()
}

fn formats<R: Row>(criterion: &mut Criterion, name: &str, records: &[R]) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(records.len() as u64));
    for (name, format) in FORMATS {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_batched(
                || Writer::new(format, io::sink()).expect("a writer"),
                |mut writer| {
                    for record in records {
                        writer.write(record).expect("written");
                    }
                    writer.finish().expect("written")
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn benches(criterion: &mut Criterion) {
    let (transitions, connections) = traced();
    formats(criterion, "log", &log_records(&transitions));
    let record = |connection| ConnectionRecord::new(connection, None, clock());
    let records: Vec<ConnectionRecord> = connections.iter().map(record).collect();
    formats(criterion, "connections", &records);
    recordings::benches(criterion, &transitions);
}

criterion_group! {
    name = outputs;
    // All of them in a minute.
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = benches
}
criterion_main!(outputs);
