//! Listeners, and whose a passive connection is through them.

use super::*;

const ANY: Address = Address::v4([0; 4]);

/// Who a connection to 10.0.0.1:80 is said to belong to with these listeners there.
fn owner(listeners: &[(Address, u16, u32)]) -> Option<(u32, ProcessSource)> {
    let mut bench = Bench::new();
    for (cookie, (address, port, pid)) in (100..).zip(listeners) {
        bench.feed(listener(p(CLOSE, LISTEN), cookie, Endpoint::new(*address, *port)).by(*pid));
    }
    bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
    whose(&bench.open())
}

#[test]
fn a_passive_connection_is_its_listeners() {
    assert_eq!(owner(&[(address(1), 80, 11)]), Some((11, ProcessSource::Listener)));
    assert_eq!(owner(&[(ANY, 80, 11)]), Some((11, ProcessSource::Listener)));
    assert_eq!(owner(&[(Address::UNSPECIFIED, 80, 11)]), Some((11, ProcessSource::Listener)));
}

#[test]
fn a_listener_elsewhere_has_nothing_to_do_with_it() {
    assert_eq!(owner(&[(address(1), 81, 11)]), None);
    assert_eq!(owner(&[(address(3), 80, 11)]), None);
    assert_eq!(owner(&[]), None);
}

#[test]
fn the_exact_address_goes_before_the_wildcard() {
    assert_eq!(owner(&[(ANY, 80, 11), (address(1), 80, 12)]), Some((12, ProcessSource::Listener)));
    assert_eq!(owner(&[(address(1), 80, 12), (ANY, 80, 11)]), Some((12, ProcessSource::Listener)));
}

#[test]
fn several_processes_on_one_port_leave_it_open() {
    assert_eq!(owner(&[(ANY, 80, 11), (ANY, 80, 12)]), None);
    assert_eq!(owner(&[(address(1), 80, 11), (address(1), 80, 12)]), None);
    assert_eq!(owner(&[(ANY, 80, 11), (ANY, 80, 11)]), Some((11, ProcessSource::Listener)));
}

#[test]
fn before_linux_6_15_a_child_begins_with_the_listeners_address() {
    let mut bench = Bench::new();
    let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
    bench.feed(listener(p(CLOSE, LISTEN), 100, place.local).by(11));
    bench.feed(s(LISTEN, SYN_RECV).ends(place));
    assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
    bench.feed(s(SYN_RECV, ESTABLISHED).ends(tuple(80, 50_000)));
    assert_eq!(bench.open().tuple, tuple(80, 50_000));
}

#[test]
fn one_namespace_does_not_answer_for_another() {
    let mut bench = Bench::new();
    bench.feed(listener(p(CLOSE, LISTEN), 100, Endpoint::new(ANY, 80)));
    bench.feed(s(LISTEN, SYN_RECV).ends(Tuple { netns: 2, ..tuple(80, 50_000) }));
    assert_eq!(whose(&bench.open()), None);
}

#[test]
fn a_listener_that_closed_answers_for_nothing() {
    let mut bench = Bench::new();
    let local = Endpoint::new(ANY, 80);
    bench.feed(listener(p(CLOSE, LISTEN), 100, local).by(11));
    bench.feed(listener(p(LISTEN, CLOSE), 100, local).by(11));
    bench.feed(listener(p(CLOSE, LISTEN), 101, local).by(12));
    bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
    assert_eq!(whose(&bench.open()), Some((12, ProcessSource::Listener)));
}

#[test]
fn a_listener_whose_close_was_missed_answers_for_nothing_once_its_socket_connects() {
    let mut bench = Bench::new();
    bench.feed(listener(p(CLOSE, LISTEN), 100, Endpoint::new(ANY, 80)));
    bench.feed(p(CLOSE, SYN_SENT).on(100, 1));
    assert_eq!(bench.tracker.listener_count(), 0);
}

#[test]
fn a_dump_finds_the_owners_of_listeners_that_were_there_before() {
    let mut bench = Bench::new();
    let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
    bench.merge(MergeKind::StartUp, [Socket { inode: 1011, ..dumped(100, place, LISTEN) }]);
    assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 1));
    bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
    assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
}

#[test]
fn a_dump_does_not_replace_the_owner_that_listen_told() {
    let mut bench = Bench::new();
    let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
    bench.feed(listener(p(CLOSE, LISTEN), 100, place.local).by(11));
    bench.merge(MergeKind::Resync, [Socket { inode: 1012, ..dumped(100, place, LISTEN) }]);
    bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
    assert_eq!(whose(&bench.open()), Some((11, ProcessSource::Listener)));
}

#[test]
fn a_listener_that_a_complete_dump_does_not_have_is_gone() {
    let mut bench = Bench::new();
    bench.feed(listener(p(CLOSE, LISTEN), 100, Endpoint::new(ANY, 80)));
    bench.feed(listener(p(CLOSE, LISTEN), 101, Endpoint::new(ANY, 81)));
    let elsewhere = Tuple { netns: 2, local: Endpoint::new(ANY, 82), remote: Endpoint::UNKNOWN };
    bench.feed(p(CLOSE, LISTEN).on(102, 102).ends(elsewhere));
    let started_ns = bench.now_ns + 1;
    bench.tracker.snapshot_begins(MergeKind::Resync);
    bench.feed(listener(p(CLOSE, LISTEN), 103, Endpoint::new(ANY, 83)));
    let there = Tuple { netns: NETNS, local: Endpoint::new(ANY, 81), remote: Endpoint::UNKNOWN };
    bench.merge_begun(started_ns, [dumped(101, there, LISTEN)]);
    let owned = |port, netns| {
        let ends = Tuple { netns, local: Endpoint::new(ANY, port), remote: Endpoint::UNKNOWN };
        bench.tracker.listeners.owner_for(&ends).is_some()
    };
    let found = [owned(80, NETNS), owned(81, NETNS), owned(82, 2), owned(83, NETNS)];
    assert_eq!(found, [false, true, true, true]);
}

#[test]
fn a_listener_that_closed_while_the_dump_was_taken_is_not_brought_back() {
    let mut bench = Bench::new();
    let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
    bench.feed(listener(p(CLOSE, LISTEN), 100, place.local));
    let started_ns = bench.now_ns + 1;
    bench.tracker.snapshot_begins(MergeKind::StartUp);
    bench.feed(listener(p(LISTEN, CLOSE), 100, place.local));
    bench.merge_begun(started_ns, [dumped(100, place, LISTEN)]);
    assert_eq!(bench.tracker.listener_count(), 0);
}

#[test]
fn a_listener_known_by_its_address_is_not_found_twice() {
    let mut bench = Bench::new();
    let place = Tuple { netns: NETNS, local: Endpoint::new(ANY, 80), remote: Endpoint::UNKNOWN };
    bench.feed(p(CLOSE, LISTEN).at_address(1).ends(place));
    bench.merge(MergeKind::Resync, [dumped(100, place, LISTEN)]);
    assert_eq!(bench.tracker.listener_count(), 1);
    bench.feed(s(LISTEN, SYN_RECV).ends(tuple(80, 50_000)));
    assert_eq!(whose(&bench.open()), Some((APP, ProcessSource::Listener)));
    bench.feed(p(LISTEN, CLOSE).on(100, 1).ends(place));
    assert_eq!(bench.tracker.listener_count(), 0);
}
