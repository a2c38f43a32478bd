//! What a busy healthy host shows, and how its numbers are told apart from trouble.

use super::*;

#[test]
fn what_passes_through_close_wait_is_no_growth() {
    let in_close_wait = |cookie, ms| Socket {
        info: Some(TcpInfo { last_ack_recv_ms: ms, last_data_sent_ms: ms, ..TcpInfo::default() }),
        ..stuck(cookie)
    };
    // One that was forgotten long ago, and 500 that will be closed in a moment.
    let sockets = std::iter::once(stuck(1)).chain((2..502).map(|cookie| in_close_wait(cookie, 3_000)));
    let found = found(&facts(sockets.collect()));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].severity, found[0].count), (Severity::Info, 1));
    assert_eq!((found[0].growth_per_min, found[0].eta_s), (Some(0.0), None));
}

#[test]
fn only_a_steady_leak_has_a_time_until_all_descriptors_are_used() {
    let leaked = |ages_ms: &[u32]| {
        let one = |(cookie, ms): (usize, &u32)| Socket {
            info: Some(TcpInfo { last_ack_recv_ms: *ms, last_data_sent_ms: *ms, ..TcpInfo::default() }),
            ..stuck(cookie as u64 + 1)
        };
        let found = found(&facts(ages_ms.iter().enumerate().map(one).collect()));
        (found[0].severity, found[0].growth_per_min, found[0].eta_s)
    };
    // A backend restarted: 30 connections of its pool at once.
    assert_eq!(leaked(&[65_000; 30]), (Severity::Warning, Some(180.0), None));
    let one_a_second: Vec<u32> = (60..70).map(|second| second * 1000 + 500).collect();
    assert_eq!(leaked(&one_a_second), (Severity::Critical, Some(60.0), Some(900)));
}

#[test]
fn a_server_that_has_yet_to_send_is_not_stuck() {
    assert_eq!(found(&facts(vec![Socket { send_queue: 10_000, ..stuck(1) }])), []);
}

#[test]
fn ages_from_before_the_tracer_have_two_bounds() {
    let evidence = |last_data_recv_ms| {
        let info = TcpInfo { last_data_recv_ms, last_ack_recv_ms: 180_000, ..TcpInfo::default() };
        let socket = Socket { info: Some(TcpInfo { last_data_sent_ms: 180_000, ..info }), ..stuck(1) };
        found(&facts(vec![socket]))[0].evidence[1].clone()
    };
    assert!(evidence(11_520_000).contains("between 3 min 0 s and 3 h 12 min"), "{}", evidence(11_520_000));
    assert!(evidence(180_004).contains("for 3 min 0 s"), "{}", evidence(180_004));
}

#[test]
fn those_who_share_a_socket_are_named() {
    let mut facts = facts(vec![stuck(1)]);
    let holder = |pid| Holder { pid, comm: Comm::from("worker"), fd: 3 };
    facts.holders.insert(501, (20..28).map(holder).collect());
    let told = |facts: &Facts| found(facts)[0].evidence.iter().find(|line| line.contains("shared")).cloned();
    let five = "worker[20], worker[21], worker[22], worker[23], worker[24]";
    assert_eq!(told(&facts), Some(format!("1 socket shared by {five}, 3 more")));
    facts.holders.insert(501, vec![holder(20), Holder { fd: 4, ..holder(20) }]);
    assert_eq!(told(&facts), None, "one process with two descriptors");
}

#[test]
fn ports_that_connect_may_take_over_are_not_used_up() {
    let tracker = with_time_wait(15_000);
    let judge = |time_wait_reuse| {
        let mut facts = facts(vec![]);
        facts.namespaces.get_mut(&1).expect("the namespace").ports.time_wait_reuse = time_wait_reuse;
        detect(&tracker, &Tally::default(), &facts, &Thresholds::default())
    };
    assert_eq!(judge(1), []);
    assert_eq!(judge(2).len(), 1, "on loopback only");
}

#[test]
fn a_rate_is_taken_over_the_time_that_time_wait_lasts() {
    let facts = Facts { window_ns: 600 * SECOND, ..facts(vec![]) };
    let found = detect(&with_time_wait(18_000), &Tally::default(), &facts, &Thresholds::default());
    assert_eq!(found[0].growth_per_min, Some(18_000.0));
}

#[test]
fn connects_without_a_port_are_told_once_for_each_destination() {
    let mut tracker = Tracker::new(Limits::default());
    let mini = |number: u16, last| Socket {
        tuple: Tuple { local: Endpoint::new(Address::v4([10, 0, 0, last]), 33_000 + number), ..tuple(0, 5432) },
        state: State::TIME_WAIT,
        kind: SocketKind::Mini { expires_in_ms: 30_000 },
        inode: 0,
        ..stuck(u64::from(number))
    };
    let sockets = (0..100).map(|number| mini(number, 1)).chain([mini(1, 2)]).collect();
    let snapshot = Snapshot { started_ns: NOW, ended_ns: NOW, complete_netns: vec![1], sockets };
    tracker.snapshot_begins(MergeKind::StartUp);
    tracker.merge(&snapshot, &mut Effects::default());
    let mut tally = Tally::default();
    tally.count(&ended(Closing::NoLocalPort, CONNECTING));
    let found = detect(&tracker, &tally, &facts(vec![]), &Thresholds::default());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].severity, found[0].count), (Severity::Critical, 100));
}

#[test]
fn health_checks_that_carry_no_data_are_no_warning() {
    let reset = Connection { bytes_in: Some(0), bytes_out: Some(0), ..ended(Closing::ResetReceived, ESTABLISHED) };
    let found = found_after(vec![reset; 50]);
    assert_eq!((found[0].kind, found[0].severity, found[0].count), (Kind::Resets, Severity::Info, 50));
    assert!(found[0].evidence[1].starts_with("50 of them carried no data"), "{:?}", found[0].evidence);
}

#[test]
fn a_proxy_that_resets_what_it_is_done_with_is_no_warning() {
    let after = |closing, cause, bytes_out| {
        let reset = Connection {
            bytes_in: Some(300),
            bytes_out: Some(bytes_out),
            reset_cause: cause,
            ..ended(closing, ESTABLISHED)
        };
        found_after(vec![reset; 50])[0].severity
    };
    assert_eq!(after(Closing::ResetSent, Some(ResetCause::Linger), 80), Severity::Info);
    assert_eq!(after(Closing::ResetReceived, None, 80), Severity::Info, "and its peer");
    assert_eq!(after(Closing::ResetReceived, None, 0), Severity::Warning, "clients that wait no longer");
    assert_eq!(after(Closing::ResetSent, Some(ResetCause::UnreadData), 80), Severity::Warning);
}

#[test]
fn what_all_resets_have_in_common_is_not_judged_by_a_sample() {
    let reset = ended(Closing::ResetReceived, ESTABLISHED);
    let from_elsewhere = Connection { tuple: tuple(40_001, 5433), ..reset.clone() };
    let found = found_after(std::iter::repeat_n(reset, 30).chain([from_elsewhere]));
    assert_eq!((found[0].local, found[0].remote), (Some(tuple(0, 0).local), Some(tuple(0, 0).remote)));
}

#[test]
fn a_second_address_of_the_other_family_that_works_is_no_trouble() {
    let to = |address| Tuple { remote: Endpoint::new(address, 5432), ..tuple(40_000, 5432) };
    let refused = Connection { tuple: to(Address::v6([1; 16])), ..ended(Closing::Refused, CONNECTING) };
    let after = |works| {
        let works = Connection { tuple: to(works), ..ended(Closing::Passive, ESTABLISHED) };
        let found = found_after(std::iter::repeat_n(refused.clone(), 30).chain(vec![works; 30]));
        assert_eq!(found[0].kind, Kind::ConnectFailures);
        (found[0].severity, found[0].evidence.len())
    };
    assert_eq!(after(Address::v4([10, 0, 0, 9])), (Severity::Info, 2));
    assert_eq!(after(Address::v6([2; 16])), (Severity::Warning, 1), "another server with the same port");
    assert_eq!(after(Address::v6([1; 16])), (Severity::Warning, 1), "half of the attempts");
}

#[test]
fn who_gives_up_after_a_while_has_failed_to_connect() {
    let given_up = |ns| Connection {
        spans: vec![Span { state: State::SYN_SENT, ns, certainty: Certainty::Exact }],
        ..ended(Closing::Aborted, CONNECTING)
    };
    assert_eq!(found_after(vec![given_up(SECOND / 4); 30]), [], "another address was faster");
    let found = found_after(vec![given_up(3 * SECOND); 30]);
    assert_eq!((found[0].kind, found[0].severity), (Kind::ConnectFailures, Severity::Warning));
    assert_eq!(found[0].evidence, ["of 30 connect() calls: 30 given up without an answer"]);
}

#[test]
fn connections_still_open_count_as_connects_that_succeeded() {
    let mut tracker = Tracker::new(Limits::default());
    let task = Task { pid: 10, comm: Comm::from("app"), ..Task::default() };
    for cookie in 1..=100 {
        for (old, new) in [(State::CLOSE, State::SYN_SENT), (State::SYN_SENT, State::ESTABLISHED)] {
            let transition = Transition {
                mono_ns: NOW - SECOND,
                socket: SocketId::from_cookie(cookie),
                tuple: tuple(40_000 + cookie as u16, 5432),
                old,
                new,
                task,
                context: Context::Process,
                details: None,
                origin: Origin::Kernel,
            };
            tracker.transition(&transition, &mut Effects::default());
        }
    }
    let mut tally = Tally::default();
    (0..20).for_each(|_| tally.count(&ended(Closing::Refused, CONNECTING)));
    let found = detect(&tracker, &tally, &facts(vec![]), &Thresholds::default());
    assert_eq!((found[0].severity, &*found[0].evidence[0]), (Severity::Info, "of 120 connect() calls: 20 refused"));
}

/// Of three that hang for 61 s.
fn hanging(state: State, inode: u64, last_ack_recv_ms: u32) -> Option<Finding> {
    let mut tracker = Tracker::new(Limits::default());
    let info = TcpInfo { last_ack_recv_ms, last_data_recv_ms: 61_000, ..TcpInfo::default() };
    let one = |cookie| Socket { state, inode, send_queue: 1, info: Some(info), ..stuck(cookie) };
    let sockets: Vec<Socket> = (1..=3).map(one).collect();
    let began_ns = NOW - 61 * SECOND;
    let snapshot =
        Snapshot { started_ns: began_ns, ended_ns: began_ns, complete_netns: vec![1], sockets: sockets.clone() };
    tracker.snapshot_begins(MergeKind::StartUp);
    tracker.merge(&snapshot, &mut Effects::default());
    detect(&tracker, &Tally::default(), &facts(sockets), &Thresholds::default()).pop()
}

#[test]
fn peers_that_went_away_are_no_warning_but_those_that_do_not_read_are() {
    let went_away = hanging(State::FIN_WAIT1, 0, 61_000).expect("a finding");
    assert_eq!(
        (went_away.severity, &*went_away.evidence[0]),
        (Severity::Info, "nothing but the FIN in the send queues")
    );
    let severity = |state, inode, last_ack| hanging(state, inode, last_ack).map(|finding| finding.severity);
    assert_eq!(severity(State::LAST_ACK, 0, 61_000), Some(Severity::Info));
    assert_eq!(severity(State::LAST_ACK, 0, 100), Some(Severity::Warning));
    assert_eq!(severity(State::FIN_WAIT1, 9, 61_000), Some(Severity::Warning));
    assert_eq!(severity(State::FIN_WAIT2, 9, 61_000), Some(Severity::Warning));
    assert_eq!(severity(State::FIN_WAIT2, 0, 61_000), None, "tcp_fin_timeout ends it");
}

#[test]
fn a_peer_that_has_not_closed_since_before_the_tracer_is_found_at_once() {
    let info = TcpInfo { last_ack_recv_ms: 90_000, last_data_recv_ms: 90_000, ..TcpInfo::default() };
    let found = found(&facts(vec![Socket { state: State::FIN_WAIT2, info: Some(info), ..stuck(1) }]));
    assert_eq!((found[0].kind, found[0].oldest_ns), (Kind::PeerNotClosing, 90 * SECOND));
}

#[test]
fn listeners_that_share_a_port_are_judged_together() {
    let waiting = Socket {
        inode: 0,
        state: State::ESTABLISHED,
        info: Some(TcpInfo { last_ack_recv_ms: 6_000, ..TcpInfo::default() }),
        ..stuck(2)
    };
    let busy = Socket { inode: 900, ..listener(1, 128) };
    let found = found(&facts(vec![busy, listener(5, 128), waiting]));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].count, 5);
}

/// Listeners of process 20 that were there for a moment.
fn after_listeners_at(ports: &[u16], sockets: Vec<Socket>) -> Vec<Finding> {
    let mut tracker = Tracker::new(Limits::default());
    for port in ports {
        for (old, new) in [(State::CLOSE, State::LISTEN), (State::LISTEN, State::CLOSE)] {
            let local = Endpoint { port: *port, ..tuple(0, 0).local };
            let transition = Transition {
                mono_ns: NOW - SECOND,
                socket: SocketId::from_cookie(1000 + u64::from(*port)),
                tuple: Tuple { local, remote: Endpoint::UNKNOWN, ..tuple(0, 0) },
                old,
                new,
                task: Task { pid: 20, comm: Comm::from("ftpd"), ..Task::default() },
                context: Context::Process,
                details: None,
                origin: Origin::Kernel,
            };
            tracker.transition(&transition, &mut Effects::default());
        }
    }
    detect(&tracker, &Tally::default(), &facts(sockets), &Thresholds::default())
}

#[test]
fn ports_for_one_use_each_are_not_blocked() {
    let left = |port| Socket { tuple: tuple(port, 9), state: State::ESTABLISHED, ..stuck(u64::from(port)) };
    let ports = [21, 22, 23, 24];
    let all = || ports.iter().map(|port| left(*port)).collect::<Vec<_>>();
    assert_eq!(after_listeners_at(&ports[..3], all()).len(), 3);
    assert_eq!(after_listeners_at(&ports, all()), []);
}

#[test]
fn a_new_listener_at_any_address_takes_the_place_of_one_at_a_certain_address() {
    let left = Socket { tuple: tuple(80, 9), state: State::ESTABLISHED, ..stuck(7) };
    assert_eq!(after_listeners_at(&[80], vec![left]).len(), 1);
    assert_eq!(after_listeners_at(&[80], vec![left, listener(0, 128)]), []);
}

#[test]
fn a_descriptor_that_was_used_again_is_as_old_as_its_last_end() {
    let refused = |age| Connection {
        file_left: Some(501),
        ended_ns: Some(NOW - age * SECOND),
        ..ended(Closing::Refused, CONNECTING)
    };
    let mut tally = Tally::default();
    tally.count(&refused(300));
    let facts = Facts { sockets: vec![], ..facts(vec![stuck(1)]) };
    let judge = |tally: &Tally| detect(&Tracker::new(Limits::default()), tally, &facts, &Thresholds::default());
    assert_eq!(judge(&tally)[0].oldest_ns, 300 * SECOND);
    tally.count(&refused(1));
    assert_eq!(judge(&tally), []);
}

#[test]
fn a_switched_off_table_is_not_nearly_full() {
    let mut facts = facts(vec![]);
    let namespace = NamespaceFacts { mini_sockets: Some(0), time_wait_max: Some(0), ..NamespaceFacts::default() };
    facts.namespaces.insert(1, namespace);
    assert_eq!(found(&facts), []);
}
