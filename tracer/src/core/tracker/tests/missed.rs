//! Transitions that were missed: what reveals them, and how they are repaired.

use super::*;

/// After `before` and everything up to `revealing` missed: what is repaired, and the connection when it closes.
fn after_a_gap(before: &[Step], revealing: Step, expected: &[(State, State)]) -> Connection {
    let mut bench = Bench::new();
    bench.run(before.iter().copied());
    let known_ns = bench.now_ns;
    let annotation = bench.feed(revealing.after(5 * SECOND));
    assert_eq!(annotation.in_state_ns, None, "when the state began was missed");
    assert_eq!(bench.repaired(), expected);
    for repaired in &bench.effects.repaired {
        assert_eq!(repaired.origin, Origin::Repaired);
        assert_eq!(repaired.mono_ns, bench.now_ns, "the latest that it can have been");
        assert_eq!((repaired.socket.cookie, repaired.tuple), (7, usual()));
        assert_eq!((repaired.task, repaired.details), (Task::default(), None));
        assert_eq!(repaired.owner(), None);
    }
    let Event::Transition(Transition { new, .. }) = revealing.event else { unreachable!() };
    if new != CLOSE {
        bench.feed(p(new, CLOSE));
    }
    let connection = bench.ended();
    assert!(connection.gap);
    let lasted = connection.ended_ns.expect("it ended") - connection.opened_ns.expect("its opening was seen");
    assert_eq!(connection.duration_ns(), lasted);
    let uncertain = connection.spans.iter().find(|span| span.certainty == Certainty::Unknown);
    assert_eq!(uncertain.map(|span| span.ns), Some(5 * SECOND), "since {known_ns}");
    assert!(bench.tracker.is_empty());
    connection
}

#[test]
fn an_opening_that_was_missed_where_all_sockets_are_known_is_repaired_to_its_start() {
    let mut bench = Bench::new();
    bench.merge(MergeKind::StartUp, []);
    bench.run([s(State::ESTABLISHED, State::CLOSE_WAIT)]);
    assert_eq!(
        bench.repaired(),
        [(State::CLOSE, State::SYN_SENT), (State::SYN_SENT, State::ESTABLISHED)],
        "nobody listens on the port, so this side connected"
    );
    let connection = bench.open();
    assert_eq!((connection.opening, connection.opened_ns, connection.gap), (Opening::Active, None, true));
}

#[test]
fn a_missed_passive_opening_is_known_by_its_listener() {
    let mut bench = Bench::new();
    bench.merge(MergeKind::StartUp, []);
    let listener = Tuple { remote: Endpoint::UNKNOWN, ..usual() };
    bench.run([p(State::CLOSE, State::LISTEN).on(1, 0x100).ends(listener)]);
    bench.run([s(State::SYN_RECV, State::ESTABLISHED)]);
    assert_eq!(bench.repaired(), [(State::LISTEN, State::SYN_RECV)]);
    let connection = bench.open();
    assert_eq!((connection.opening, connection.gap), (Opening::Passive, true));
    assert_eq!(connection.process.map(|process| process.pid), Some(APP));
}

#[test]
fn where_not_all_sockets_are_known_nothing_is_claimed_to_have_been_missed() {
    let mut bench = Bench::new();
    bench.run([s(State::ESTABLISHED, State::CLOSE_WAIT)]);
    assert_eq!((bench.repaired(), bench.open().opening), (vec![], Opening::PreExisting));
    let mut bench = Bench::new();
    bench.merge(MergeKind::StartUp, []);
    let wiped = Tuple { local: Endpoint::UNKNOWN, remote: Endpoint::UNKNOWN, ..usual() };
    bench.run([p(State::ESTABLISHED, State::CLOSE).ends(wiped)]);
    assert_eq!(bench.repaired(), [], "a filter may have left this socket out");
}

#[test]
fn the_establishment_is_repaired() {
    let before = [p(CLOSE, SYN_SENT)];
    let connection = after_a_gap(&before, s(ESTABLISHED, CLOSE_WAIT), &[(SYN_SENT, ESTABLISHED)]);
    assert_eq!(story(&connection), (Opening::Active, Closing::ResetSent, AfterClose::None));
    let expected =
        [(SYN_SENT, 5, Certainty::Unknown), (ESTABLISHED, 0, Certainty::Unknown), (CLOSE_WAIT, 1, Certainty::Exact)];
    assert_eq!(spans(&connection), expected);
    let before = [s(LISTEN, SYN_RECV)];
    let connection = after_a_gap(&before, s(ESTABLISHED, CLOSE_WAIT), &[(SYN_RECV, ESTABLISHED)]);
    assert_eq!(connection.opening, Opening::Passive);
}

#[test]
fn several_steps_in_a_row_are_repaired_in_order() {
    let missed = [(SYN_SENT, ESTABLISHED), (ESTABLISHED, CLOSE_WAIT), (CLOSE_WAIT, LAST_ACK)];
    let connection = after_a_gap(&[p(CLOSE, SYN_SENT)], s(LAST_ACK, CLOSE), &missed);
    assert_eq!(story(&connection), (Opening::Active, Closing::Passive, AfterClose::None));
    let missed = [(SYN_SENT, ESTABLISHED), (ESTABLISHED, FIN_WAIT1), (FIN_WAIT1, FIN_WAIT2)];
    let connection = after_a_gap(&[p(CLOSE, SYN_SENT)], s(FIN_WAIT2, CLOSE).fin(), &missed);
    assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::TimeWait));
}

#[test]
fn the_first_fin_is_repaired_on_either_side() {
    let connection = after_a_gap(&active_open(), s(CLOSE_WAIT, LAST_ACK), &[(ESTABLISHED, CLOSE_WAIT)]);
    assert_eq!(connection.opening, Opening::Active);
    after_a_gap(&active_open(), s(FIN_WAIT1, FIN_WAIT2), &[(ESTABLISHED, FIN_WAIT1)]);
    let missed = [(ESTABLISHED, FIN_WAIT1), (FIN_WAIT1, CLOSING)];
    let connection = after_a_gap(&active_open(), s(CLOSING, CLOSE), &missed);
    assert_eq!(connection.closing, Some(Closing::Simultaneous));
}

#[test]
fn the_second_fin_is_repaired() {
    let before = chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]);
    let connection = after_a_gap(&before, s(FIN_WAIT2, CLOSE).fin(), &[(FIN_WAIT1, FIN_WAIT2)]);
    assert_eq!(connection.after_close, AfterClose::TimeWait);
    let before = chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT)]);
    let connection = after_a_gap(&before, s(LAST_ACK, CLOSE).fin(), &[(CLOSE_WAIT, LAST_ACK)]);
    assert_eq!(connection.closing, Some(Closing::Passive));
}

#[test]
fn a_self_transition_reveals_as_well() {
    let before = chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]);
    after_a_gap(&before, p(FIN_WAIT2, FIN_WAIT2), &[(FIN_WAIT1, FIN_WAIT2)]);
}

#[test]
fn a_new_connect_on_the_socket_ends_the_one_before() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51)]));
    bench.run([p(CLOSE, SYN_SENT).ends(tuple(0, 81)).after(5 * SECOND)]);
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::Active, Closing::Unknown, AfterClose::Unknown));
    assert_eq!(connection.ended_ns, Some(bench.now_ns));
    assert_eq!(connection.spans.last().map(|span| span.certainty), Some(Certainty::Unknown));
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
    assert!(connection.gap);
    assert_eq!(bench.repaired(), [(CLOSE_WAIT, CLOSE)]);
    assert_eq!((bench.open().gap, bench.open().opened_ns), (false, Some(bench.now_ns)));
}

#[test]
fn a_handshake_on_an_established_socket_is_that_of_a_later_connection() {
    let later = tuple(40_001, 80);
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [s(SYN_SENT, ESTABLISHED).ends(later)]));
    let connection = bench.ended();
    assert_eq!((connection.closing, connection.tuple), (Some(Closing::Unknown), usual()));
    assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
    let open = bench.open();
    assert_eq!((open.opening, open.opened_ns, open.gap, open.tuple), (Opening::Active, None, true, later));
}

#[test]
fn a_state_that_cannot_come_after_the_known_one_is_that_of_a_later_connection() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT), p(FIN_WAIT1, FIN_WAIT1)]));
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    assert_eq!(bench.repaired(), [(CLOSE_WAIT, CLOSE)]);
    assert_eq!(spans(&bench.open()), [(FIN_WAIT1, 0, Certainty::AtLeast)]);
}

#[test]
fn other_ends_are_those_of_a_later_connection() {
    let later = tuple(40_001, 81);
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT).ends(later)]));
    let connection = bench.ended();
    assert_eq!((connection.closing, connection.tuple), (Some(Closing::Unknown), usual()));
    assert_eq!((bench.open().tuple, bench.open().opening), (later, Opening::PreExisting));
}

#[test]
fn a_listeners_close_on_a_connection_means_that_its_close_was_missed() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(LISTEN, CLOSE)]));
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
}

#[test]
fn a_kill_of_what_is_closed_already_means_that_its_close_was_missed() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(CLOSE, CLOSE).by(77).error(Errno::ECONNABORTED)]));
    assert_eq!(bench.ended().closing, Some(Closing::Unknown));
    assert_eq!(bench.repaired(), [(ESTABLISHED, CLOSE)]);
}

#[test]
fn a_kill_of_what_was_seen_to_close_changes_nothing() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE), p(CLOSE, CLOSE).by(77).after(MICROSECOND)]));
    bench.feed(rst(ResetDirection::Sent, CLOSE));
    assert_eq!((bench.ended().closing, bench.repaired()), (Some(Closing::ResetSent), vec![]));
}

#[test]
fn a_connection_first_heard_of_in_the_middle_was_there_before() {
    let mut bench = Bench::new();
    let annotation = bench.feed(s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51));
    assert_eq!(annotation.in_state_ns, None);
    bench.run([p(CLOSE_WAIT, LAST_ACK).bytes(101, 51).fin(), s(LAST_ACK, CLOSE).bytes(101, 52).fin()]);
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::PreExisting, Closing::Passive, AfterClose::None));
    assert_eq!((connection.opened_ns, connection.gap, bench.repaired()), (None, false, vec![]));
    let expected =
        [(ESTABLISHED, 0, Certainty::AtLeast), (CLOSE_WAIT, 1, Certainty::Exact), (LAST_ACK, 1, Certainty::Exact)];
    assert_eq!(spans(&connection), expected);
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)), "nobody listens there: our SYN");
}

#[test]
fn a_connection_first_heard_of_on_a_served_port_has_no_syn_of_ours() {
    let mut bench = Bench::new();
    bench.feed(listener(p(CLOSE, LISTEN), 1, Endpoint::new(Address::v4([0; 4]), 40_000)));
    bench.feed(s(ESTABLISHED, CLOSE_WAIT).bytes(101, 51));
    assert_eq!(bench.open().bytes_out, Some(51));
}

#[test]
fn a_connection_first_heard_of_in_its_handshake_has_a_gap() {
    for (old, opening) in [(SYN_SENT, Opening::Active), (SYN_RECV, Opening::Passive)] {
        let mut bench = Bench::new();
        bench.run([s(old, ESTABLISHED), p(ESTABLISHED, CLOSE)]);
        let connection = bench.ended();
        assert_eq!(story(&connection), (opening, Closing::ResetSent, AfterClose::None));
        assert_eq!((connection.opened_ns, connection.gap), (None, true));
        assert_eq!(spans(&connection), [(old, 0, Certainty::Unknown), (ESTABLISHED, 1, Certainty::Exact)]);
    }
}

#[test]
fn a_close_alone_is_a_connection_too() {
    let mut bench = Bench::new();
    bench.feed(s(LAST_ACK, CLOSE));
    assert_eq!(story(&bench.ended()), (Opening::PreExisting, Closing::Passive, AfterClose::None));
}

#[test]
fn a_reset_of_a_socket_that_is_not_known_is_nothing() {
    let mut bench = Bench::new();
    bench.feed(rst(ResetDirection::Sent, ESTABLISHED));
    bench.feed(rst(ResetDirection::Received, ESTABLISHED));
    assert!(bench.tracker.is_empty());
}

#[test]
fn states_without_a_name_are_carried_along() {
    let odd = State(77);
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [s(ESTABLISHED, odd), s(odd, CLOSE)]));
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::Active, Closing::Aborted, AfterClose::None));
    assert_eq!(spans(&connection), exactly(&[SYN_SENT, ESTABLISHED, odd]));
    assert_eq!(bench.repaired(), []);
}

#[test]
fn a_state_without_a_name_that_was_reached_unseen_is_repaired_as_it_is() {
    let odd = State(200);
    let connection = after_a_gap(&active_open(), s(odd, CLOSE), &[(ESTABLISHED, odd)]);
    assert_eq!(connection.closing, Some(Closing::Aborted));
}

#[test]
fn more_states_than_a_life_has_lose_their_names_and_not_their_time() {
    let odd = |number: u8| State(100 + number);
    let steps = (0..10).map(|number| s(odd(number), odd(number + 1)));
    let mut bench = Bench::new();
    bench.run(active_open().into_iter().chain([s(ESTABLISHED, odd(0))]).chain(steps));
    bench.feed(s(odd(10), CLOSE));
    let connection = bench.ended();
    assert_eq!(connection.duration_ns(), 13 * SECOND);
    assert_eq!(connection.spans.last().map(|span| span.certainty), Some(Certainty::Unknown));
}

#[test]
fn time_that_runs_backwards_counts_as_none() {
    let mut bench = Bench::new();
    bench.run(active_open());
    bench.now_ns -= 10 * SECOND;
    bench.feed(p(ESTABLISHED, CLOSE));
    let connection = bench.ended();
    assert_eq!(spans(&connection), [(SYN_SENT, 1, Certainty::Exact), (ESTABLISHED, 0, Certainty::Exact)]);
    assert_eq!(connection.ended_ns.zip(connection.opened_ns).map(|(end, start)| end - start), Some(SECOND));
}
