//! Who has to go when there is no room.

use super::*;

fn bench(max_connections: usize) -> Bench {
    Bench::with(Limits { max_connections, ..Limits::default() })
}

fn port(port: u16) -> Step {
    p(CLOSE, SYN_SENT).on(u64::from(port), u64::from(port)).ends(tuple(port, 80))
}

fn refused(port: u16) -> Step {
    let step = s(SYN_SENT, CLOSE).error(Errno::ECONNREFUSED);
    step.on(u64::from(port), u64::from(port)).ends(tuple(port, 80))
}

#[test]
fn beyond_the_limit_one_goes_for_each_new_one_and_is_counted() {
    let mut bench = bench(3);
    for number in 1..=10 {
        bench.feed(port(number));
        assert!(bench.tracker.len() <= 3);
    }
    assert_eq!(bench.tracker.counts(), Counts { repaired: 0, evicted: 7 });
    assert_eq!(bench.all_ended(), [], "nothing is known of how they ended");
    let mut left: Vec<u16> =
        bench.tracker.open_connections(bench.now_ns).map(|connection| connection.tuple.local.port).collect();
    left.sort_unstable();
    assert!(left.contains(&10), "the newest is there: {left:?}");
}

#[test]
fn one_in_close_wait_is_kept_before_others() {
    let mut bench = bench(4);
    bench.feed(port(1));
    let stuck = |step: Step| step.on(1, 1).ends(tuple(1, 80));
    bench.feed(stuck(s(SYN_SENT, ESTABLISHED)));
    bench.feed(stuck(s(ESTABLISHED, CLOSE_WAIT)));
    for number in 2..=50 {
        bench.feed(port(number));
    }
    assert_eq!(bench.tracker.open_in(CLOSE_WAIT, bench.now_ns).count(), 1);
    assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (4, 46));
}

#[test]
fn when_all_are_in_close_wait_one_goes_nevertheless() {
    let mut bench = bench(2);
    for number in 1..=5 {
        let cookie = u64::from(number);
        bench.feed(s(ESTABLISHED, CLOSE_WAIT).on(cookie, cookie).ends(tuple(number, 80)));
    }
    assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (2, 3));
}

#[test]
fn closed_ones_make_room_first_and_are_handed_out() {
    let mut bench = bench(2);
    bench.feed(port(1));
    bench.feed(port(2));
    bench.feed(refused(1));
    bench.feed(port(3).after(MICROSECOND));
    assert_eq!(bench.tracker.counts().evicted, 0);
    assert_eq!(only(std::mem::take(&mut bench.effects.ended)).closing, Some(Closing::Refused));
    assert_eq!(bench.tracker.len(), 2);
}

#[test]
fn a_socket_that_reconnected_while_it_waited_makes_no_room_of_its_own() {
    let mut bench = bench(2);
    bench.feed(port(1));
    bench.feed(port(2));
    bench.feed(refused(1));
    bench.feed(port(1).after(MICROSECOND));
    bench.feed(port(3).after(MICROSECOND));
    assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (2, 1));
}

#[test]
fn an_evicted_connection_that_is_heard_of_again_was_there_before() {
    let mut bench = bench(1);
    bench.feed(port(1));
    bench.feed(port(2));
    bench.feed(s(ESTABLISHED, CLOSE_WAIT).on(1, 1).ends(tuple(1, 80)));
    assert_eq!((bench.open().opening, bench.open().gap), (Opening::PreExisting, false));
    assert_eq!(bench.tracker.len(), 1);
}

#[test]
fn a_dump_keeps_the_limit_too() {
    let mut bench = bench(3);
    bench.merge(MergeKind::StartUp, (1..=10).map(|number| dumped(u64::from(number), tuple(number, 80), ESTABLISHED)));
    assert_eq!((bench.tracker.len(), bench.tracker.counts().evicted), (3, 7));
}

#[test]
fn those_known_by_address_are_let_go_as_well() {
    let mut bench = bench(2);
    for number in 1..=5 {
        bench.feed(port(number).at_address(u64::from(number)));
    }
    assert_eq!(bench.tracker.len(), 2);
    assert!(bench.tracker.entries.is_consistent());
    assert!(bench.tracker.entries.iter().all(|(_, entry)| entry.key.is_address()));
}
