//! Records of the ring buffer to events.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use tracer::source::kernel::{Known, RECORD_SIZE, decode};
use tracer_ebpf::{FLAG_LOCK_OWNED, KIND_TRANSITION, Record};

const COUNT: u64 = 10_000;

fn record(number: u64) -> Record {
    Record {
        mono_ns: number,
        cookie: number + 1,
        sock: 0xffff_8880_0000_0000 + number * 2432,
        cgroup: 77,
        inode: number,
        bytes_received: 100,
        bytes_acked: 100,
        local_addr: [10; 16],
        remote_addr: [11; 16],
        comm: *b"server\0\0\0\0\0\0\0\0\0\0",
        netns: 4_026_531_840,
        pid: 1000,
        tid: 1000,
        uid: 1000,
        srtt_us8: 400,
        retransmits: 0,
        err: 0,
        sk_flags: 0,
        local_port: 40_000,
        remote_port: 443,
        family: if number.is_multiple_of(4) { 10 } else { 2 },
        kind: KIND_TRANSITION,
        old_state: 1,
        new_state: 4,
        flags: FLAG_LOCK_OWNED,
        shutdown: 0,
        padding: 0,
        previous_port: 0,
        padding_end: 0,
    }
}

fn bytes(record: &Record) -> [u8; RECORD_SIZE] {
    // SAFETY: a Record consists of integers without padding.
    unsafe { std::mem::transmute_copy(record) }
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let records: Vec<u8> = (0..COUNT).flat_map(|number| bytes(&record(number))).collect();
    let known = Known { details: true, cgroups: true };
    let mut group = criterion.benchmark_group("decoder");
    group.throughput(Throughput::Elements(COUNT));
    group.bench_function("transitions", |bencher| {
        bencher.iter(|| {
            for record in records.chunks_exact(RECORD_SIZE) {
                assert!(black_box(decode(black_box(record), known)).is_some());
            }
        });
    });
    group.finish();
}
