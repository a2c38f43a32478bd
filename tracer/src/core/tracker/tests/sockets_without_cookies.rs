//! Sockets that the kernel has given no cookie (yet), known by their address.

use super::*;

#[test]
fn an_address_is_used_again_by_the_next_connection() {
    let mut bench = Bench::new();
    for port in [80, 81] {
        bench.run([
            p(CLOSE, SYN_SENT).at_address(1).ends(tuple(0, port)).after(MICROSECOND),
            s(SYN_SENT, ESTABLISHED).at_address(1).ends(tuple(40_000, port)),
            p(ESTABLISHED, CLOSE).at_address(1).ends(tuple(40_000, port)),
        ]);
    }
    let ended = bench.all_ended();
    let ports: Vec<u16> = ended.iter().map(|connection| connection.tuple.remote.port).collect();
    assert_eq!(ports, [80, 81]);
    assert_eq!(bench.repaired(), []);
    assert!(bench.tracker.is_empty());
    assert!(bench.tracker.entries.is_consistent() && !bench.tracker.entries.has_addresses());
}

#[test]
fn an_address_used_again_by_a_child_of_a_listener_means_that_a_close_was_missed() {
    let mut bench = Bench::new();
    bench.run([
        p(CLOSE, SYN_SENT).at_address(1),
        s(SYN_SENT, ESTABLISHED).at_address(1),
        s(LISTEN, SYN_RECV).at_address(1).ends(tuple(8080, 50_000)),
    ]);
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
    assert_eq!((bench.open().opening, bench.open().gap), (Opening::Passive, false));
}

#[test]
fn an_address_used_again_by_a_listener_means_that_a_close_was_missed() {
    let mut bench = Bench::new();
    bench.run([p(CLOSE, SYN_SENT).at_address(1), p(CLOSE, LISTEN).at_address(1).ends(tuple(80, 0))]);
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 1));
}

#[test]
fn a_cookie_that_comes_later_keeps_the_connection() {
    let mut bench = Bench::new();
    bench.run([
        p(CLOSE, SYN_SENT).at_address(1),
        s(SYN_SENT, ESTABLISHED).at_address(1),
        s(ESTABLISHED, CLOSE_WAIT).on(9, 1),
        p(CLOSE_WAIT, LAST_ACK).on(9, 1),
        s(LAST_ACK, CLOSE).on(9, 1),
    ]);
    assert!(bench.tracker.entries.is_consistent() && !bench.tracker.entries.has_addresses());
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::Active, Closing::Passive, AfterClose::None));
    assert_eq!(connection.socket.cookie, 9);
    assert_eq!(bench.repaired(), []);
}

#[test]
fn a_cookie_that_comes_with_the_close_keeps_the_connection() {
    let mut bench = Bench::new();
    bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, CLOSE).on(9, 1).error(Errno::ECONNREFUSED)]);
    assert_eq!((bench.ended().opening, bench.repaired()), (Opening::Active, vec![]));
    assert!(bench.tracker.is_empty());
}

#[test]
fn a_cookie_on_a_reused_address_does_not_take_the_closed_connection_over() {
    let mut bench = Bench::new();
    bench.run([
        p(CLOSE, SYN_SENT).at_address(1),
        s(SYN_SENT, CLOSE).at_address(1).error(Errno::ECONNREFUSED),
        p(CLOSE, SYN_SENT).on(9, 1).after(MICROSECOND),
        s(SYN_SENT, ESTABLISHED).on(9, 1),
    ]);
    assert_eq!(bench.ended().closing, Some(Closing::Refused));
    assert_eq!((bench.open().socket.cookie, bench.repaired()), (9, vec![]));
}

#[test]
fn a_rst_finds_the_connection_by_its_address() {
    let mut bench = Bench::new();
    bench.run([
        bare(CLOSE, SYN_SENT).at_address(1),
        rst(ResetDirection::Received, SYN_SENT).on(9, 1),
        bare(SYN_SENT, CLOSE).at_address(1),
    ]);
    assert_eq!(bench.ended().closing, Some(Closing::Refused));
}

#[test]
fn a_connection_that_a_dump_gave_a_cookie_is_still_found_by_its_address() {
    for cookie in [0, 9] {
        let mut bench = Bench::new();
        bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, ESTABLISHED).at_address(1)]);
        bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
        assert_eq!(bench.open().socket.cookie, 9, "the dump told it");
        bench.feed(p(ESTABLISHED, CLOSE).on(cookie, 1));
        assert_eq!(bench.ended().opening, Opening::Active);
        assert_eq!(bench.repaired(), []);
        assert!(bench.tracker.is_empty());
    }
}

#[test]
fn another_cookie_at_the_same_ends_is_another_connection() {
    let mut bench = Bench::new();
    bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, ESTABLISHED).at_address(1)]);
    bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
    bench.merge(MergeKind::Resync, [dumped(10, usual(), ESTABLISHED)]);
    assert_eq!(bench.ended().socket.cookie, 9);
    assert_eq!(bench.open().socket.cookie, 10);
}

#[test]
fn a_later_connection_at_the_same_ends_is_found_by_what_the_dump_tells() {
    let mut bench = Bench::new();
    let before = [p(CLOSE, SYN_SENT), s(SYN_SENT, ESTABLISHED), p(ESTABLISHED, FIN_WAIT1)];
    bench.run(before.map(|step| step.at_address(1)));
    bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    bench.feed(p(ESTABLISHED, CLOSE).at_address(1));
    assert_eq!((bench.ended().socket.cookie, bench.tracker.len()), (9, 0));
}

#[test]
fn a_dump_finds_the_connection_of_an_event_that_could_not_tell_its_namespace() {
    let nowhere = Tuple { netns: 0, ..usual() };
    let mut bench = Bench::new();
    bench.run([
        bare(CLOSE, SYN_SENT).at_address(1).ends(nowhere),
        bare(SYN_SENT, ESTABLISHED).at_address(1).ends(nowhere),
    ]);
    bench.merge(MergeKind::Resync, [dumped(9, usual(), ESTABLISHED)]);
    assert_eq!((bench.open().socket.cookie, bench.open().tuple), (9, usual()));
    bench.feed(bare(ESTABLISHED, CLOSE).at_address(1).ends(nowhere));
    assert_eq!(bench.ended().opening, Opening::Active);
    assert_eq!(bench.repaired(), []);
}

#[test]
fn an_event_without_a_cookie_finds_what_a_dump_found_by_its_ends() {
    for netns in [NETNS, 0] {
        let ends = Tuple { netns, ..usual() };
        let mut bench = Bench::new();
        bench.merge(
            MergeKind::StartUp,
            [dumped(8, tuple(1, 2), ESTABLISHED), Socket { inode: 1012, ..dumped(9, usual(), CLOSE_WAIT) }],
        );
        bench.feed(bare(CLOSE_WAIT, LAST_ACK).at_address(1).ends(ends));
        bench.feed(bare(LAST_ACK, CLOSE).at_address(1).ends(ends));
        let connection = bench.ended();
        assert_eq!(story(&connection), (Opening::PreExisting, Closing::Passive, AfterClose::None));
        assert_eq!((connection.socket.cookie, connection.tuple), (9, usual()));
        assert_eq!((bench.open().socket.cookie, bench.repaired()), (8, vec![]));
    }
}

#[test]
fn one_that_closed_while_the_dump_was_taken_is_not_brought_back() {
    let mut bench = Bench::new();
    bench.run([p(CLOSE, SYN_SENT).at_address(1), s(SYN_SENT, ESTABLISHED).at_address(1)]);
    let started_ns = bench.now_ns + 1;
    bench.tracker.snapshot_begins(MergeKind::Resync);
    bench.feed(p(ESTABLISHED, CLOSE).at_address(1));
    bench.ended();
    bench.merge_begun(started_ns, [dumped(9, usual(), ESTABLISHED)]);
    assert!(bench.tracker.is_empty());
    assert_eq!(bench.repaired(), []);
}

#[test]
fn a_listener_whose_cookie_came_later_is_removed_by_either() {
    let mut bench = Bench::new();
    let place = tuple(80, 0);
    bench.feed(p(CLOSE, LISTEN).at_address(1).ends(place));
    bench.feed(p(LISTEN, CLOSE).on(9, 1).ends(place));
    assert_eq!(bench.tracker.listener_count(), 0);
}
