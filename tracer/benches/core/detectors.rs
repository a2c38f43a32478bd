//! All detectors over a host with 100 000 connections: one in ten is stuck in CLOSE_WAIT, 50 000 more are in TIME_WAIT.

use std::hint::black_box;

use criterion::Criterion;
use tracer::core::{
    finding::{Facts, Holder, NamespaceFacts, Tally, Thresholds, detect},
    snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
    state::State,
    tracker::{Effects, Limits, MergeKind, Tracker},
    transition::Comm,
};

use crate::lives::{ACTIVE, step, tuple};

const OPEN: u64 = 100_000;
const ENDED: u64 = 50_000;
const SECOND_NS: u64 = 1_000_000_000;

fn socket(number: u64) -> Socket {
    Socket {
        cookie: number + 1,
        tuple: tuple(number),
        state: if number.is_multiple_of(10) { State::CLOSE_WAIT } else { State::ESTABLISHED },
        kind: SocketKind::Full,
        inode: 1_000_000 + number,
        cgroup: 77,
        uid: 1000,
        receive_queue: 0,
        send_queue: 0,
        info: Some(TcpInfo { last_data_sent_ms: 100_000, last_ack_recv_ms: 100_000, ..TcpInfo::default() }),
        holder: None,
    }
}

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut tracker = Tracker::new(Limits::default());
    let mut tally = Tally::default();
    let mut effects = Effects::default();
    let mut dump = Snapshot {
        started_ns: SECOND_NS,
        ended_ns: SECOND_NS,
        complete_netns: vec![tuple(0).netns],
        sockets: (0..OPEN).map(socket).collect(),
    };
    tracker.snapshot_begins(MergeKind::StartUp);
    tracker.merge(&dump, &mut effects);
    for number in OPEN..OPEN + ENDED {
        for (at, way) in (0..).zip(ACTIVE) {
            tracker.transition(&step(number + 1, tuple(number), way, SECOND_NS + number * 10_000 + at), &mut effects);
        }
    }
    tracker.flush(&mut effects);
    for connection in effects.ended.drain(..) {
        tally.count(&connection);
    }
    let holder =
        |number: u64| Holder { pid: 1000 + (number % 50) as u32, comm: Comm::from("server"), fd: number as i32 };
    let facts = Facts {
        now_ns: 5 * SECOND_NS,
        window_ns: 5 * SECOND_NS,
        sockets: std::mem::take(&mut dump.sockets),
        holders: (0..OPEN).map(|number| (1_000_000 + number, vec![holder(number)])).collect(),
        namespaces: [(tuple(0).netns, NamespaceFacts::default())].into_iter().collect(),
        ..Facts::default()
    };
    criterion.bench_function("detectors/100000_connections", |bencher| {
        bencher.iter(|| black_box(detect(&tracker, &tally, &facts, &Thresholds::default())));
    });
    assert!(!detect(&tracker, &tally, &facts, &Thresholds::default()).is_empty());
}
