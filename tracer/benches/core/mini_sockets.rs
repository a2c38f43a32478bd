//! 100 000 mini-sockets in TIME_WAIT: what comes, what is looked through once a second, what ends, what a dump says.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use tracer::core::{
    connection::AfterClose,
    mini_sockets::{MiniSockets, TIME_WAIT_NS},
    snapshot::{Snapshot, Socket, SocketKind},
    state::State,
};

use crate::lives::tuple;

const COUNT: u64 = 100_000;
const SECOND_NS: u64 = 1_000_000_000;

fn full() -> MiniSockets {
    let mut minis = MiniSockets::new(1_000_000);
    fill(&mut minis);
    minis
}

/// All at the same second.
fn fill(minis: &mut MiniSockets) {
    for number in 0..COUNT {
        minis.add(tuple(number), AfterClose::TimeWait, SECOND_NS + number, TIME_WAIT_NS, None);
    }
}

fn dump() -> Snapshot {
    let socket = |number| Socket {
        cookie: number + 1,
        tuple: tuple(number),
        state: State::TIME_WAIT,
        kind: SocketKind::Mini { expires_in_ms: 40_000 },
        inode: 0,
        cgroup: 0,
        uid: 0,
        receive_queue: 0,
        send_queue: 0,
        info: None,
        holder: None,
    };
    Snapshot {
        started_ns: 20 * SECOND_NS,
        ended_ns: 20 * SECOND_NS,
        complete_netns: vec![tuple(0).netns],
        // Some have gone, some have come.
        sockets: (COUNT / 10..COUNT + COUNT / 10).map(socket).collect(),
    }
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mini_sockets_100000");
    group.throughput(Throughput::Elements(COUNT));
    group.bench_function("add", |bencher| {
        bencher.iter_batched_ref(|| MiniSockets::new(1_000_000), fill, BatchSize::PerIteration);
    });
    group.bench_function("sweep", |bencher| {
        let mut minis = MiniSockets::new(1_000_000);
        for number in 0..COUNT {
            // FIN_WAIT2, so that they may last for as long as the bench does.
            minis.add(tuple(number), AfterClose::FinWait2, SECOND_NS, u64::MAX, None);
        }
        let mut now_ns = SECOND_NS;
        bencher.iter(|| {
            now_ns += SECOND_NS;
            minis.advance(black_box(now_ns));
        });
        assert_eq!(minis.count_in(tuple(0).netns), COUNT);
    });
    group.bench_function("end", |bencher| {
        bencher.iter_batched_ref(full, |minis| minis.advance(100 * SECOND_NS), BatchSize::PerIteration);
    });
    group.bench_function("merge", |bencher| {
        let dump = dump();
        bencher.iter_batched_ref(full, |minis| minis.merge(&dump), BatchSize::PerIteration);
    });
    group.finish();
}
