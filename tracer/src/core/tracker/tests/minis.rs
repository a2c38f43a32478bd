//! What is left after the close, as the tracker keeps it.

use super::*;

/// Leaves a TIME_WAIT on the usual ends.
fn time_wait() -> Bench {
    let mut bench = Bench::new();
    let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).fin()];
    bench.run(chain(active_open(), close));
    assert_eq!(bench.minis(), 1);
    bench
}

#[test]
fn a_time_wait_lasts_a_minute() {
    let mut bench = time_wait();
    bench.tracker.advance(bench.now_ns + TIME_WAIT_NS - 1, &mut bench.effects);
    assert_eq!(bench.minis(), 1);
    bench.tracker.advance(bench.now_ns + TIME_WAIT_NS + SECOND, &mut bench.effects);
    assert_eq!(bench.minis(), 0);
}

#[test]
fn connecting_from_its_port_again_takes_it_away_once_the_port_is_known() {
    let mut bench = time_wait();
    bench.feed(p(CLOSE, SYN_SENT).on(8, 8).ends(tuple(0, 80)));
    assert_eq!(bench.minis(), 1);
    bench.feed(s(SYN_SENT, ESTABLISHED).on(8, 8));
    assert_eq!(bench.minis(), 0);
}

#[test]
fn connecting_from_a_bound_port_takes_it_away_at_once() {
    let mut bench = time_wait();
    bench.feed(p(CLOSE, SYN_SENT).on(8, 8));
    assert_eq!(bench.minis(), 0);
}

#[test]
fn an_acceptable_syn_takes_it_away() {
    let mut bench = time_wait();
    bench.feed(s(LISTEN, SYN_RECV).on(8, 8));
    assert_eq!(bench.minis(), 0);
}

#[test]
fn an_acceptable_syn_takes_it_away_where_its_peer_is_known_only_later() {
    let mut bench = time_wait();
    bench.feed(s(LISTEN, SYN_RECV).on(8, 8).ends(tuple(40_000, 0)));
    assert_eq!(bench.minis(), 1);
    bench.feed(s(SYN_RECV, ESTABLISHED).on(8, 8));
    assert_eq!(bench.minis(), 0);
}

#[test]
fn other_ends_leave_it_alone() {
    let mut bench = time_wait();
    bench.feed(p(CLOSE, SYN_SENT).on(8, 8).ends(tuple(40_001, 80)));
    bench.feed(p(CLOSE, SYN_SENT).on(9, 9).ends(Tuple { netns: 2, ..usual() }));
    assert_eq!(bench.minis(), 1);
}

#[test]
fn a_rst_that_it_sends_takes_it_away_and_one_that_it_gets_may_not() {
    let mut bench = time_wait();
    bench.feed(rst(ResetDirection::Received, State::TIME_WAIT).after(SECOND));
    assert_eq!(bench.minis(), 1);
    bench.feed(rst(ResetDirection::Sent, State::TIME_WAIT));
    assert_eq!(bench.minis(), 0);
    assert_eq!(bench.ended().closing, Some(Closing::Active), "the connection had ended before");
}

#[test]
fn an_abort_leaves_none() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE)]));
    assert_eq!(bench.minis(), 0);
}

#[test]
fn a_close_that_was_missed_leaves_what_only_a_dump_can_tell() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]));
    let mini = SocketKind::Mini { expires_in_ms: 30_000 };
    bench.merge(MergeKind::Resync, [Socket { kind: mini, ..dumped(7, usual(), State::TIME_WAIT) }]);
    assert_eq!(story(&bench.ended()), (Opening::Active, Closing::Unknown, AfterClose::Unknown));
    assert_eq!(bench.minis(), 1);
}

#[test]
fn a_dump_of_minis_alone_leaves_connections_alone() {
    let mut bench = time_wait();
    bench.run(active_open().map(|step| step.on(8, 8).ends(tuple(40_001, 80))));
    bench.now_ns += TIME_WAIT_NS;
    let snapshot =
        Snapshot { started_ns: bench.now_ns, ended_ns: bench.now_ns, complete_netns: vec![NETNS], sockets: Vec::new() };
    bench.tracker.merge_minis(&snapshot);
    assert_eq!((bench.minis(), bench.open().gap), (0, false));
}
