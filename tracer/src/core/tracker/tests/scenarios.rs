//! The rows of docs/kernel.md ("Transitions by scenario"), one test each, and what can go wrong around them.

use super::*;

#[test]
fn listening_is_no_connection() {
    let mut bench = Bench::new();
    let local = Endpoint::new(address(1), 80);
    let annotation = bench.feed(listener(p(CLOSE, LISTEN), 1, local));
    assert_eq!(annotation.process.map(|process| process.pid), Some(APP));
    assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 1));
    bench.feed(listener(p(LISTEN, CLOSE), 1, local));
    assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 0));
    assert_eq!(bench.all_ended(), []);
}

#[test]
fn an_active_close_leaves_a_time_wait_once_the_peers_fin_came() {
    let close = [
        p(ESTABLISHED, FIN_WAIT1).bytes(100, 51).inode(500),
        s(FIN_WAIT1, FIN_WAIT2).bytes(100, 52),
        s(FIN_WAIT2, CLOSE).bytes(101, 52).fin(),
    ];
    let connection = life(chain(active_open(), close));
    assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::TimeWait));
    assert_eq!(spans(&connection), exactly(&[SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2]));
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
    assert_eq!(whose(&connection), Some((APP, ProcessSource::Opener)));
    assert_eq!(connection.tuple, usual());
    assert_eq!(connection.inode, 500);
    assert_eq!(connection.opened_ns, Some(101 * SECOND));
    assert_eq!(connection.ended_ns, Some(105 * SECOND));
}

#[test]
fn fin_and_ack_in_one_segment_are_an_active_close_too() {
    let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).fin().after(MICROSECOND)];
    let connection = life(chain(active_open(), close));
    assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::TimeWait));
}

#[test]
fn an_orphan_in_fin_wait_2_becomes_a_mini_socket_that_the_close_does_not_mean() {
    let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).after(MICROSECOND)];
    let mut bench = Bench::with(Limits { fin_timeout_ns: 20 * SECOND, ..Limits::default() });
    bench.run(chain(active_open(), close));
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::FinWait2));
    let mini = bench.tracker.mini_sockets().iter().next().map(|(tuple, mini)| (*tuple, *mini));
    let (tuple, mini) = mini.expect("a mini-socket");
    assert_eq!((tuple, mini.state, mini.ends_ns), (usual(), FIN_WAIT2, bench.now_ns + 20 * SECOND));
    assert_eq!(mini.process.map(|process| process.pid), Some(APP));
}

#[test]
fn an_orphan_spends_what_exceeds_a_minute_as_a_full_socket_and_then_as_a_mini_socket() {
    let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).after(30 * SECOND)];
    let mut bench = Bench::with(Limits { fin_timeout_ns: 90 * SECOND, ..Limits::default() });
    bench.run(chain(active_open(), close));
    let connection = bench.ended();
    assert_eq!(connection.after_close, AfterClose::FinWait2);
    assert_eq!(connection.spans.last().map(|span| span.ns), Some(30 * SECOND));
    let ends: Vec<u64> = bench.tracker.mini_sockets().iter().map(|(_, mini)| mini.ends_ns).collect();
    assert_eq!(ends, [bench.now_ns + 30 * SECOND]);
}

#[test]
fn a_passive_close_leaves_nothing() {
    let close = [
        s(ESTABLISHED, CLOSE_WAIT).bytes(101, 0).inode(500),
        p(CLOSE_WAIT, LAST_ACK).bytes(101, 50).fin(),
        s(LAST_ACK, CLOSE).bytes(101, 51).fin(),
    ];
    let connection = life(chain(passive_open(), close));
    assert_eq!(story(&connection), (Opening::Passive, Closing::Passive, AfterClose::None));
    assert_eq!(spans(&connection), exactly(&[SYN_RECV, ESTABLISHED, CLOSE_WAIT, LAST_ACK]));
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(100), Some(50)));
    assert_eq!(whose(&connection), Some((APP, ProcessSource::Closer)));
    assert_eq!(connection.inode, 500);
}

#[test]
fn the_last_ack_may_come_while_the_process_runs() {
    let close = [s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK), p(LAST_ACK, CLOSE).fin()];
    assert_eq!(life(chain(passive_open(), close)).closing, Some(Closing::Passive));
}

#[test]
fn crossed_fins_are_a_simultaneous_close() {
    let close = [
        p(ESTABLISHED, FIN_WAIT1).bytes(10, 21),
        s(FIN_WAIT1, CLOSING).bytes(11, 21).fin(),
        s(CLOSING, CLOSE).bytes(11, 22).fin(),
    ];
    let connection = life(chain(active_open(), close));
    assert_eq!(story(&connection), (Opening::Active, Closing::Simultaneous, AfterClose::TimeWait));
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(10), Some(20)));
}

#[test]
fn crossed_syns_are_a_simultaneous_open() {
    let steps = [
        p(CLOSE, SYN_SENT),
        s(SYN_SENT, SYN_RECV),
        s(SYN_RECV, ESTABLISHED).bytes(0, 1),
        p(ESTABLISHED, CLOSE).bytes(10, 21),
    ];
    let connection = life(steps);
    assert_eq!(connection.opening, Opening::Simultaneous);
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(10), Some(20)));
    assert_eq!(spans(&connection), exactly(&[SYN_SENT, SYN_RECV, ESTABLISHED]));
}

#[test]
fn data_before_established_is_fast_open() {
    let with_data = s(SYN_RECV, ESTABLISHED).bytes(5, 0);
    let connection = life([s(LISTEN, SYN_RECV), with_data, p(ESTABLISHED, CLOSE)]);
    assert_eq!(connection.opening, Opening::FastOpen);
    let accepted = p(SYN_RECV, FIN_WAIT1).inode(500);
    let connection = life([s(LISTEN, SYN_RECV), accepted, s(FIN_WAIT1, CLOSE).error(Errno::ETIMEDOUT)]);
    assert_eq!(connection.opening, Opening::FastOpen);
    assert_eq!(whose(&connection), Some((APP, ProcessSource::Closer)));
}

#[test]
fn a_refused_connect_is_refused_in_either_context() {
    for refused in [s(SYN_SENT, CLOSE), p(SYN_SENT, CLOSE)] {
        let reset = rst(ResetDirection::Received, SYN_SENT);
        let connection = life([p(CLOSE, SYN_SENT), reset, refused.error(Errno::ECONNREFUSED)]);
        assert_eq!(story(&connection), (Opening::Active, Closing::Refused, AfterClose::None));
        assert_eq!(connection.error, Errno::ECONNREFUSED);
        assert_eq!(whose(&connection), Some((APP, ProcessSource::Opener)));
    }
}

#[test]
fn a_refused_connect_is_told_by_its_rst_where_the_error_cannot_be_read() {
    let connection = life([bare(CLOSE, SYN_SENT), rst(ResetDirection::Received, SYN_SENT), bare(SYN_SENT, CLOSE)]);
    assert_eq!(connection.closing, Some(Closing::Refused));
    assert_eq!((connection.bytes_in, connection.bytes_out), (None, None));
}

#[test]
fn a_connect_without_answer_times_out() {
    let connection = life([p(CLOSE, SYN_SENT), s(SYN_SENT, CLOSE).error(Errno::ETIMEDOUT).after(127 * SECOND)]);
    assert_eq!(story(&connection), (Opening::Active, Closing::TimedOut, AfterClose::None));
    assert_eq!(spans(&connection), [(SYN_SENT, 127, Certainty::Exact)]);
}

#[test]
fn close_while_connecting_is_given_up() {
    let connection = life([p(CLOSE, SYN_SENT).ends(tuple(0, 80)), p(SYN_SENT, CLOSE)]);
    assert_eq!(story(&connection), (Opening::Active, Closing::Aborted, AfterClose::None));
}

#[test]
fn an_unreachable_peer_is_given_up_with_its_error() {
    let unreachable = Errno(113);
    let connection = life([p(CLOSE, SYN_SENT), s(SYN_SENT, CLOSE).error(unreachable)]);
    assert_eq!((connection.closing, connection.error), (Some(Closing::Aborted), unreachable));
}

#[test]
fn a_second_connect_that_finds_no_port_is_not_what_ended_the_first() {
    let stale = |step: Step| step.error(Errno::ECONNRESET);
    let connect = |previous_port| {
        stale(p(CLOSE, SYN_SENT)).ends(tuple(0, 80)).detail(|details| details.previous_port = previous_port)
    };
    let mut bench = Bench::new();
    bench.run([connect(40_000)]);
    let annotation = bench.feed(stale(p(SYN_SENT, CLOSE)).ends(tuple(40_000, 80)));
    assert!(annotation.no_port);
    let connection = bench.ended();
    assert_eq!((connection.closing, connection.error), (Some(Closing::NoLocalPort), Errno::NONE));
    assert_eq!(connection.tuple.local.port, 0);
    // Another port, or a RST: it did find one.
    bench.run([connect(39_999), stale(p(SYN_SENT, CLOSE)).ends(tuple(40_000, 80))]);
    assert_ne!(bench.ended().closing, Some(Closing::NoLocalPort));
    bench.run([connect(40_000), rst(ResetDirection::Received, SYN_SENT)]);
    bench.run([stale(p(SYN_SENT, CLOSE)).ends(tuple(40_000, 80))]);
    assert_eq!(bench.ended().closing, Some(Closing::Refused));
}

#[test]
fn a_local_port_that_stays_0_was_not_to_be_had() {
    let without = tuple(0, 80);
    let connection = life([p(CLOSE, SYN_SENT).ends(without), p(SYN_SENT, CLOSE).ends(without).after(MICROSECOND)]);
    assert_eq!(story(&connection), (Opening::Active, Closing::NoLocalPort, AfterClose::None));
    assert_eq!(connection.tuple, without);
}

#[test]
fn close_after_shutdown_names_the_closer_and_changes_no_state() {
    let steps = [
        p(ESTABLISHED, FIN_WAIT1).by(11),
        s(FIN_WAIT1, FIN_WAIT2),
        p(FIN_WAIT2, FIN_WAIT2).by(12),
        s(FIN_WAIT2, CLOSE).fin(),
    ];
    let mut bench = Bench::new();
    bench.run(chain(passive_open(), steps));
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::Passive, Closing::Active, AfterClose::TimeWait));
    assert_eq!(whose(&connection), Some((12, ProcessSource::Closer)));
    let states = [(SYN_RECV, 1), (ESTABLISHED, 1), (FIN_WAIT1, 1), (FIN_WAIT2, 2)];
    assert_eq!(spans(&connection), states.map(|(state, seconds)| (state, seconds, Certainty::Exact)));
    assert!(!connection.gap);
}

#[test]
fn the_time_at_a_self_transition_is_that_in_the_state_so_far() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(ESTABLISHED, FIN_WAIT1)]));
    assert_eq!(bench.feed(p(FIN_WAIT1, FIN_WAIT1)).in_state_ns, Some(SECOND));
    assert_eq!(bench.feed(s(FIN_WAIT1, FIN_WAIT2)).in_state_ns, Some(2 * SECOND));
}

#[test]
fn close_with_unread_data_or_linger_0_sends_a_rst() {
    for from in [ESTABLISHED, CLOSE_WAIT] {
        let mut steps = active_open().to_vec();
        if from == CLOSE_WAIT {
            steps.push(s(ESTABLISHED, CLOSE_WAIT));
        }
        steps.push(p(from, CLOSE));
        let connection = life(steps.clone());
        assert_eq!(story(&connection), (Opening::Active, Closing::ResetSent, AfterClose::None), "from {from}");
        steps.push(rst(ResetDirection::Sent, CLOSE));
        assert_eq!(life(steps).closing, Some(Closing::ResetSent), "from {from}, RST seen");
    }
}

#[test]
fn linger_0_in_fin_wait_2_is_told_by_the_rst_that_follows() {
    let mut bench = Bench::new();
    let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), p(FIN_WAIT2, CLOSE)];
    bench.run(chain(active_open(), close));
    assert_eq!(bench.minis(), 1);
    bench.feed(rst(ResetDirection::Sent, CLOSE));
    assert_eq!(bench.minis(), 0);
    assert_eq!(story(&bench.ended()), (Opening::Active, Closing::ResetSent, AfterClose::None));
}

#[test]
fn a_rst_long_after_the_close_explains_nothing() {
    let mut bench = Bench::new();
    let close = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), s(FIN_WAIT2, CLOSE).fin()];
    bench.run(chain(active_open(), close));
    bench.feed(rst(ResetDirection::Sent, CLOSE).after(RESET_GRACE_NS + 1));
    assert_eq!(story(&bench.ended()), (Opening::Active, Closing::Active, AfterClose::TimeWait));
    assert_eq!(bench.minis(), 1);
}

#[test]
fn a_record_waits_for_a_rst_and_no_longer() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [p(ESTABLISHED, CLOSE)]));
    let closed_ns = bench.now_ns;
    bench.tracker.advance(closed_ns + RESET_GRACE_NS - 1, &mut bench.effects);
    assert_eq!(bench.effects.ended.len(), 0);
    bench.tracker.advance(closed_ns + RESET_GRACE_NS, &mut bench.effects);
    assert_eq!(bench.effects.ended.len(), 1);
    assert!(bench.tracker.is_empty());
}

#[test]
fn disconnect_and_connect_again_are_two_connections_of_one_socket() {
    let again = tuple(40_001, 81);
    let steps = [
        p(ESTABLISHED, CLOSE).ends(Tuple { netns: NETNS, ..tuple(0, 0) }),
        p(CLOSE, SYN_SENT).ends(tuple(0, 81)).after(MICROSECOND),
        s(SYN_SENT, ESTABLISHED).ends(again),
        s(ESTABLISHED, CLOSE_WAIT).ends(again),
        p(CLOSE_WAIT, LAST_ACK).ends(again),
        s(LAST_ACK, CLOSE).ends(again),
    ];
    let mut bench = Bench::new();
    bench.run(chain(active_open(), steps));
    let ended = bench.all_ended();
    let [first, second] = &ended[..] else { panic!("two connections: {ended:#?}") };
    assert_eq!(story(first), (Opening::Active, Closing::ResetSent, AfterClose::None));
    assert_eq!(story(second), (Opening::Active, Closing::Passive, AfterClose::None));
    assert_eq!((first.tuple, second.tuple), (usual(), again));
    assert_eq!((first.socket.cookie, second.socket.cookie), (7, 7));
    assert_eq!(bench.repaired(), []);
}

#[test]
fn the_peers_rst_ends_a_connection_from_any_state() {
    let ways: [(&[Step], State, Errno); 6] = [
        (&[], ESTABLISHED, Errno::ECONNRESET),
        (&[s(ESTABLISHED, CLOSE_WAIT)], CLOSE_WAIT, Errno::EPIPE),
        (&[p(ESTABLISHED, FIN_WAIT1)], FIN_WAIT1, Errno::ECONNRESET),
        (&[p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2)], FIN_WAIT2, Errno::ECONNRESET),
        (&[p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, CLOSING)], CLOSING, Errno::ECONNRESET),
        (&[s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK)], LAST_ACK, Errno::ECONNRESET),
    ];
    for (way, from, error) in ways {
        let until = active_open().into_iter().chain(way.iter().copied());
        let told_by_error = until.clone().chain([s(from, CLOSE).error(error).inode(500)]);
        let connection = life(told_by_error);
        let expected = (Opening::Active, Closing::ResetReceived, AfterClose::None);
        assert_eq!((story(&connection), connection.error), (expected, error), "from {from}");
        assert_eq!(connection.inode, 500, "its file may still be open");
        let reset = rst(ResetDirection::Received, from);
        let told_by_rst = until.chain([reset, bare(from, CLOSE).after(MICROSECOND)]);
        assert_eq!(story(&life(told_by_rst)), expected, "from {from}, without BTF");
    }
}

#[test]
fn data_after_close_is_an_abort_by_this_host() {
    let steps = [
        p(ESTABLISHED, FIN_WAIT1),
        s(FIN_WAIT1, FIN_WAIT2),
        rst(ResetDirection::Received, FIN_WAIT2),
        s(FIN_WAIT2, CLOSE).error(Errno::ECONNRESET).after(MICROSECOND),
        rst(ResetDirection::Sent, CLOSE),
    ];
    let connection = life(chain(active_open(), steps));
    assert_eq!(story(&connection), (Opening::Active, Closing::ResetSent, AfterClose::None));
    assert_eq!(connection.error, Errno::ECONNRESET);
}

#[test]
fn a_keepalive_that_is_not_answered_is_a_timeout_though_a_rst_is_sent_before() {
    for from in [ESTABLISHED, CLOSE_WAIT] {
        let mut steps = active_open().to_vec();
        if from == CLOSE_WAIT {
            steps.push(s(ESTABLISHED, CLOSE_WAIT));
        }
        let reset = rst(ResetDirection::Sent, from).after(SECOND);
        steps.extend([reset, s(from, CLOSE).error(Errno::ETIMEDOUT).after(MICROSECOND)]);
        assert_eq!(story(&life(steps)), (Opening::Active, Closing::TimedOut, AfterClose::None), "from {from}");
    }
}

#[test]
fn retransmissions_that_are_not_answered_are_a_timeout() {
    let timeout = Errno::ETIMEDOUT;
    let established = life(chain(active_open(), [s(ESTABLISHED, CLOSE).error(timeout)]));
    assert_eq!(story(&established), (Opening::Active, Closing::TimedOut, AfterClose::None));
    let orphan = [p(ESTABLISHED, FIN_WAIT1).bytes(0, 11), s(FIN_WAIT1, CLOSE).error(timeout).bytes(0, 11)];
    let orphan = life(chain(active_open(), orphan));
    assert_eq!(story(&orphan), (Opening::Active, Closing::TimedOut, AfterClose::None));
    assert_eq!(orphan.bytes_out, Some(10), "the FIN was not acknowledged");
}

#[test]
fn fin_wait_1_straight_to_close_is_an_abort() {
    let connection = life(chain(active_open(), [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, CLOSE)]));
    assert_eq!(story(&connection), (Opening::Active, Closing::Aborted, AfterClose::None));
}

#[test]
fn a_killed_connection_is_not_its_killers() {
    let killed = p(ESTABLISHED, CLOSE).by(77).error(Errno::ECONNABORTED);
    let connection = life(chain(passive_open(), [killed, rst(ResetDirection::Sent, CLOSE)]));
    assert_eq!(story(&connection), (Opening::Passive, Closing::Killed, AfterClose::None));
    assert_eq!(whose(&connection), None);
}

#[test]
fn a_killed_listener_closes_twice_and_is_gone() {
    let mut bench = Bench::new();
    let local = Endpoint::new(address(1), 80);
    bench.run([
        listener(p(CLOSE, LISTEN), 1, local),
        listener(p(LISTEN, CLOSE), 1, local).by(77).error(Errno::ECONNABORTED),
        listener(p(CLOSE, CLOSE), 1, local).by(77).error(Errno::ECONNABORTED),
    ]);
    assert_eq!((bench.tracker.len(), bench.tracker.listener_count()), (0, 0));
    assert_eq!(bench.all_ended(), []);
}

#[test]
fn a_listener_that_closes_resets_the_children_that_nobody_accepted() {
    let mut bench = Bench::new();
    let local = Endpoint::new(address(1), 40_000);
    bench.feed(listener(p(CLOSE, LISTEN), 1, local));
    bench.run(passive_open());
    bench.feed(listener(p(LISTEN, CLOSE), 1, local));
    bench.feed(p(ESTABLISHED, CLOSE).after(MICROSECOND));
    bench.feed(rst(ResetDirection::Sent, CLOSE));
    let connection = bench.ended();
    assert_eq!(story(&connection), (Opening::Passive, Closing::ResetSent, AfterClose::None));
    assert_eq!(connection.inode, 0);
    assert_eq!(whose(&connection), Some((APP, ProcessSource::Closer)));
}

#[test]
fn a_shared_descriptor_is_closed_by_the_last_who_has_it() {
    let steps = [s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK).by(12), s(LAST_ACK, CLOSE)];
    assert_eq!(whose(&life(chain(passive_open(), steps))), Some((12, ProcessSource::Closer)));
    let steps = [s(ESTABLISHED, CLOSE_WAIT), p(CLOSE_WAIT, LAST_ACK).by(12), s(LAST_ACK, CLOSE)];
    let connection = life(chain(active_open(), steps));
    assert_eq!(whose(&connection), Some((APP, ProcessSource::Opener)), "who opened it is kept");
}

#[test]
fn nobody_is_named_for_an_mptcp_subflow() {
    let subflow = |step: Step| step.detail(|details| details.mptcp = true);
    let steps = [p(ESTABLISHED, FIN_WAIT1), s(FIN_WAIT1, FIN_WAIT2), p(FIN_WAIT2, CLOSE).fin()];
    let connection = life(chain(passive_open(), steps).into_iter().map(subflow));
    assert_eq!(whose(&connection), None);
}

#[test]
fn without_btf_an_active_close_does_not_tell_what_it_leaves() {
    let steps = [
        bare(CLOSE, SYN_SENT),
        bare(SYN_SENT, ESTABLISHED),
        bare(ESTABLISHED, FIN_WAIT1),
        bare(FIN_WAIT1, FIN_WAIT2),
        bare(FIN_WAIT2, CLOSE),
    ];
    let connection = life(steps);
    assert_eq!(story(&connection), (Opening::Active, Closing::Active, AfterClose::Unknown));
    assert_eq!(whose(&connection), Some((BYSTANDER, ProcessSource::Opener)), "connect() is in its caller, always");
    assert_eq!((connection.bytes_in, connection.bytes_out), (None, None));
}

#[test]
fn without_btf_an_abort_is_told_by_the_rst_that_follows() {
    let until = [bare(CLOSE, SYN_SENT), bare(SYN_SENT, ESTABLISHED), bare(ESTABLISHED, CLOSE)];
    assert_eq!(life(until).closing, Some(Closing::Aborted));
    assert_eq!(life(chain(until, [rst(ResetDirection::Sent, CLOSE)])).closing, Some(Closing::ResetSent));
}

#[test]
fn an_accepted_connection_is_its_closers_and_not_the_bystanders() {
    let mut bench = Bench::new();
    bench.run(passive_open());
    assert_eq!(whose(&bench.open()), None);
    bench.feed(s(ESTABLISHED, CLOSE_WAIT).inode(500));
    assert_eq!(whose(&bench.open()), None);
    bench.feed(p(CLOSE_WAIT, LAST_ACK).by(12));
    assert_eq!(whose(&bench.open()), Some((12, ProcessSource::Closer)));
}

#[test]
fn an_open_connection_is_in_its_last_state_at_least_so_long() {
    let mut bench = Bench::new();
    bench.run(chain(active_open(), [s(ESTABLISHED, CLOSE_WAIT).bytes(11, 21).inode(500)]));
    bench.now_ns += 9 * SECOND;
    let connection = bench.open();
    let expected =
        [(SYN_SENT, 1, Certainty::Exact), (ESTABLISHED, 1, Certainty::Exact), (CLOSE_WAIT, 9, Certainty::AtLeast)];
    assert_eq!(spans(&connection), expected);
    assert_eq!((connection.ended_ns, connection.closing), (None, None));
    assert_eq!((connection.bytes_in, connection.bytes_out), (Some(10), Some(20)));
    assert_eq!(bench.tracker.open_in(CLOSE_WAIT, bench.now_ns).count(), 1);
    assert_eq!(bench.tracker.open_in(ESTABLISHED, bench.now_ns).count(), 0);
}
