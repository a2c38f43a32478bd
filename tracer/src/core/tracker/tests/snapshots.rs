//! What a dump adds, corrects and ends.

use super::*;

#[test]
fn a_connection_that_no_event_told_of_was_there_before() {
    let mut bench = Bench::new();
    let info = TcpInfo { bytes_acked: 51, bytes_received: 100, ..TcpInfo::default() };
    let socket = Socket { inode: 1012, cgroup: 3, info: Some(info), ..dumped(9, usual(), ESTABLISHED) };
    bench.merge(MergeKind::StartUp, [socket]);
    bench.now_ns += 4 * SECOND;
    let connection = bench.open();
    assert_eq!((connection.opening, connection.opened_ns, connection.gap), (Opening::PreExisting, None, false));
    assert_eq!(spans(&connection), [(ESTABLISHED, 4, Certainty::AtLeast)]);
    assert_eq!((connection.inode, connection.cgroup), (1012, 3));
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
    assert_eq!(whose(&connection), Some((12, ProcessSource::Holder)));
    assert_eq!(bench.repaired(), []);
}

#[test]
fn it_goes_on_with_the_events_that_follow() {
    let mut bench = Bench::new();
    bench.merge(MergeKind::StartUp, [Socket { inode: 1012, ..dumped(7, usual(), ESTABLISHED) }]);
    assert_eq!(bench.feed(s(ESTABLISHED, CLOSE_WAIT)).in_state_ns, None);
    assert_eq!(bench.feed(p(CLOSE_WAIT, LAST_ACK).by(13)).in_state_ns, Some(SECOND));
    bench.feed(s(LAST_ACK, CLOSE));
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::PreExisting, Closing::Passive, AfterClose::None));
    let expected =
        [(ESTABLISHED, 1, Certainty::AtLeast), (CLOSE_WAIT, 1, Certainty::Exact), (LAST_ACK, 1, Certainty::Exact)];
    assert_eq!(spans(&connection), expected);
    assert_eq!(whose(&connection), Some((13, ProcessSource::Closer)), "who closed it is better known");
}

#[test]
fn the_last_ack_is_a_lower_bound_for_the_age_of_a_close_wait() {
    let mut bench = Bench::new();
    let info = TcpInfo { last_ack_recv_ms: 90_000, ..TcpInfo::default() };
    let socket = Socket { inode: 1012, info: Some(info), ..dumped(9, usual(), CLOSE_WAIT) };
    bench.merge(MergeKind::StartUp, [socket]);
    let connection = bench.open();
    assert_eq!(spans(&connection), [(CLOSE_WAIT, 90, Certainty::AtLeast)]);
    assert_eq!(connection.inode, 1012);
}

#[test]
fn a_connection_through_a_listener_that_nobody_accepted_is_the_listeners() {
    let mut bench = Bench::new();
    let place = Tuple { netns: NETNS, local: Endpoint::new(address(1), 40_000), remote: Endpoint::UNKNOWN };
    let info = TcpInfo { bytes_acked: 50, ..TcpInfo::default() };
    let sockets = [
        Socket { info: Some(info), ..dumped(9, usual(), ESTABLISHED) },
        Socket { inode: 1011, ..dumped(8, place, LISTEN) },
    ];
    bench.merge(MergeKind::StartUp, sockets);
    assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
    assert_eq!(bench.open().bytes_out, Some(50), "our SYN was none");
    bench.merge(MergeKind::Resync, [sockets[0]]);
    assert_eq!(bench.tracker.listener_count(), 0);
    assert_eq!(bench.open().bytes_out, Some(50), "which the end of its listener does not change");
}

#[test]
fn minis_and_requests_are_no_connections() {
    let mut bench = Bench::new();
    let mini = SocketKind::Mini { expires_in_ms: 30_000 };
    let sockets = [
        Socket { kind: mini, ..dumped(9, usual(), State::TIME_WAIT) },
        Socket { kind: SocketKind::Request, ..dumped(8, tuple(80, 50_000), SYN_RECV) },
    ];
    bench.merge(MergeKind::StartUp, sockets);
    assert!(bench.tracker.is_empty());
    assert_eq!(bench.minis(), 1);
}

#[test]
fn a_later_event_wins_over_the_dump() {
    let mut bench = Bench::new();
    let started_ns = bench.now_ns;
    bench.tracker.snapshot_begins(MergeKind::StartUp);
    bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT)]));
    let socket = Socket { inode: 1012, ..dumped(7, usual(), ESTABLISHED) };
    bench.merge_begun(started_ns, [socket]);
    let connection = bench.open();
    assert_eq!(connection.spans.last().map(|span| span.state), Some(CLOSE_WAIT));
    assert_eq!((connection.gap, bench.repaired()), (false, vec![]));
}

#[test]
fn a_dump_tells_of_a_connection_that_was_heard_of_meanwhile_what_no_event_can() {
    let mut bench = Bench::new();
    let started_ns = bench.now_ns;
    bench.tracker.snapshot_begins(MergeKind::StartUp);
    bench.feed(s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51));
    let place = Tuple { netns: NETNS, local: Endpoint::new(address(1), 40_000), remote: Endpoint::UNKNOWN };
    let sockets = [dumped(8, place, LISTEN), Socket { inode: 1012, ..dumped(7, usual(), CLOSE_WAIT) }];
    bench.merge_begun(started_ns, sockets);
    let connection = bench.open();
    assert_eq!(whose(&connection), Some((12, ProcessSource::Holder)));
    assert_eq!(connection.bytes_out, Some(51), "it came through the listener: our SYN was none");
}

#[test]
fn what_closed_while_the_dump_was_taken_is_not_brought_back() {
    for grace_over in [false, true] {
        let mut bench = Bench::new();
        bench.run(active_open());
        let started_ns = bench.now_ns + 1;
        bench.tracker.snapshot_begins(MergeKind::Resync);
        bench.feed(p(ESTABLISHED, CLOSE));
        if grace_over {
            bench.tracker.flush(&mut bench.effects);
        }
        bench.merge_begun(started_ns, [dumped(7, usual(), ESTABLISHED)]);
        bench.tracker.flush(&mut bench.effects);
        assert!(bench.tracker.is_empty());
        assert_eq!((bench.ended().gap, bench.repaired()), (false, vec![]));
    }
}

#[test]
fn a_dump_that_failed_is_forgotten() {
    let mut bench = Bench::new();
    bench.run(active_open());
    bench.tracker.snapshot_begins(MergeKind::Resync);
    bench.tracker.snapshot_failed();
    bench.feed(p(ESTABLISHED, CLOSE));
    assert!(bench.tracker.merging.is_none());
}

#[test]
fn a_resync_repairs_a_state_that_differs() {
    let mut bench = Bench::new();
    bench.run(active_open());
    let info = TcpInfo { bytes_acked: 51, bytes_received: 101, ..TcpInfo::default() };
    bench.merge(MergeKind::Resync, [Socket { inode: 1012, info: Some(info), ..dumped(7, usual(), LAST_ACK) }]);
    assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE_WAIT), (CLOSE_WAIT, LAST_ACK)]);
    let connection = bench.open();
    assert!(connection.gap);
    let expected = [
        (SYN_SENT, 1, Certainty::Exact),
        (ESTABLISHED, 1, Certainty::Unknown),
        (CLOSE_WAIT, 0, Certainty::Unknown),
        (LAST_ACK, 0, Certainty::Unknown),
    ];
    assert_eq!(spans(&connection), expected);
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
    bench.feed(s(LAST_ACK, CLOSE));
    assert_eq!(bench.ended().closing, Some(Closing::Passive));
}

#[test]
fn a_resync_marks_what_it_finds_as_missed() {
    let mut bench = Bench::new();
    bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
    assert_eq!(bench.repaired(), [(CLOSE, ESTABLISHED)]);
    assert_eq!(bench.effects.repaired[0].origin, Origin::Snapshot);
    assert_eq!((bench.open().gap, bench.open().opened_ns), (true, None));
}

#[test]
fn a_resync_ends_what_is_gone_in_complete_namespaces_only() {
    let mut bench = Bench::new();
    let elsewhere = Tuple { netns: 2, ..usual() };
    bench.run(active_open());
    bench.run(active_open().map(|step| step.on(8, 8).ends(elsewhere)));
    bench.merge(MergeKind::Resync, []);
    assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::Active, Closing::Unknown, AfterClose::Unknown));
    assert_eq!((connection.tuple, connection.ended_ns), (usual(), Some(bench.now_ns)));
    assert_eq!(bench.open().tuple, elsewhere);
}

#[test]
fn a_first_dump_ends_nothing() {
    let mut bench = Bench::new();
    bench.run(active_open());
    bench.merge(MergeKind::StartUp, []);
    assert!(!bench.open().gap);
}

#[test]
fn what_opened_while_the_dump_was_taken_is_not_ended() {
    let mut bench = Bench::new();
    let started_ns = bench.now_ns + 1;
    bench.tracker.snapshot_begins(MergeKind::Resync);
    bench.run(active_open());
    bench.merge_begun(started_ns, []);
    assert_eq!((bench.open().gap, bench.repaired()), (false, vec![]));
}

#[test]
fn a_socket_found_twice_is_one_connection() {
    let mut bench = Bench::new();
    for kind in [MergeKind::StartUp, MergeKind::Resync, MergeKind::Resync] {
        bench.merge(kind, [dumped(9, usual(), ESTABLISHED)]);
    }
    assert_eq!((bench.open().gap, bench.repaired()), (false, vec![]));
    bench.merge(MergeKind::Resync, []);
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
}

#[test]
fn a_resync_tells_a_later_connection_of_the_socket_from_the_one_before() {
    let later = tuple(40_001, 81);
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT)]));
    bench.merge(MergeKind::Resync, [dumped(7, later, ESTABLISHED)]);
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    assert_eq!(bench.repaired(), [(CLOSE_WAIT, CLOSE), (CLOSE, ESTABLISHED)]);
    assert_eq!((bench.open().tuple, bench.open().gap), (later, true));
}

#[test]
fn a_resync_finds_what_connected_again_after_a_close_that_was_seen() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE)]));
    let started_ns = bench.now_ns + 1;
    bench.tracker.snapshot_begins(MergeKind::Resync);
    bench.merge_begun(started_ns, [dumped(7, usual(), SYN_SENT)]);
    assert_eq!(bench.ended().closing, Some(Closing::ResetSent));
    assert_eq!(bench.repaired(), [(CLOSE, SYN_SENT)]);
    assert_eq!(bench.open().spans.last().map(|span| span.state), Some(SYN_SENT));
}

#[test]
fn a_dump_never_brings_a_closed_state() {
    let mut bench = Bench::new();
    bench.run(active_open());
    bench.merge(MergeKind::Resync, [dumped(7, usual(), CLOSE), dumped(8, tuple(1, 2), CLOSE)]);
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    assert!(bench.tracker.is_empty());
}
