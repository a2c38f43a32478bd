//! A recording, written and read.

use std::{
    hint::black_box,
    io::{self, Write},
    sync::{Arc, Mutex},
};

use criterion::{Criterion, Throughput};
use tracer::{
    core::{tracker::Annotation, transition::Transition},
    output::records::LogRecord,
    recording::{Metadata, Reader, Recorder, VERSION},
};

use crate::{clock, log_records};

/// A file in memory, which its writer leaves behind.
#[derive(Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("one writer").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn metadata() -> Metadata {
    Metadata {
        format: VERSION,
        version: String::new(),
        host: String::new(),
        kernel: String::new(),
        boot_id: String::new(),
        run: String::new(),
        part: 0,
        clock_offset_ns: clock().unix_ns(0),
        started_ns: 0,
        fin_timeout_ns: 60_000_000_000,
        max_connections: 1_000_000,
        filters: String::new(),
    }
}

fn record(to: File, transitions: &[(Transition, Annotation)], shown: &[LogRecord]) {
    let mut recorder = Recorder::new(to, &metadata()).expect("a recorder");
    for ((transition, _), shown) in transitions.iter().zip(shown) {
        recorder.transition(transition, shown).expect("recorded");
    }
    recorder.finish().expect("recorded");
}

pub(crate) fn benches(criterion: &mut Criterion, transitions: &[(Transition, Annotation)]) {
    let shown = log_records(transitions);
    let mut group = criterion.benchmark_group("recording");
    group.throughput(Throughput::Elements(transitions.len() as u64));
    group.bench_function("write", |bencher| {
        bencher.iter(|| record(File::default(), transitions, &shown));
    });
    let file = File::default();
    record(file.clone(), transitions, &shown);
    let bytes = std::mem::take(&mut *file.0.lock().expect("written"));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let mut reader = Reader::new(&bytes[..]).expect("a recording");
            let mut inputs = 0;
            while let Some(input) = reader.read().expect("an input") {
                black_box(input);
                inputs += 1;
            }
            assert_eq!(inputs, transitions.len());
        });
    });
    group.finish();
}
