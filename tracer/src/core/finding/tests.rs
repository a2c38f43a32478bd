//! Findings from hand-made facts.

mod any_input;
mod healthy;

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::*;
use crate::core::{
    connection::{AfterClose, Closing, Connection, Opening, ResetCause, Span},
    endpoint::{Address, Tuple},
    snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
    state::State,
    tracker::{Effects, Limits, MergeKind},
    transition::{Comm, Context, Errno, Origin, SocketId, Task, Transition},
};

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000 * SECOND;

fn tuple(local_port: u16, remote_port: u16) -> Tuple {
    let at = |port| Endpoint::new(Address::v4([10, 0, 0, 1]), port);
    Tuple { netns: 1, local: at(local_port), remote: at(remote_port) }
}

/// A socket in CLOSE_WAIT for two minutes, held by process 10, whose EOF was read.
fn stuck(cookie: u64) -> Socket {
    Socket {
        cookie,
        tuple: tuple(80, 1000 + cookie as u16),
        state: State::CLOSE_WAIT,
        kind: SocketKind::Full,
        inode: 500 + cookie,
        cgroup: 0,
        uid: 0,
        receive_queue: 0,
        send_queue: 0,
        info: Some(TcpInfo { last_ack_recv_ms: 120_000, last_data_sent_ms: 120_000, ..TcpInfo::default() }),
        holder: None,
    }
}

fn facts(sockets: Vec<Socket>) -> Facts {
    let holder = |socket: &Socket| Holder { pid: 10, comm: Comm::from("leaky"), fd: socket.cookie as i32 };
    Facts {
        now_ns: NOW,
        window_ns: 10 * SECOND,
        holders: sockets.iter().map(|socket| (socket.inode, vec![holder(socket)])).collect(),
        sockets,
        descriptors: FxHashMap::from_iter([(10, DescriptorUsage { used: 100, limit: Some(1000) })]),
        namespaces: FxHashMap::from_iter([(1, NamespaceFacts::default())]),
        cgroups: FxHashMap::default(),
        closed: Vec::new(),
        unreadable_processes: 0,
    }
}

fn found(facts: &Facts) -> Vec<Finding> {
    detect(&Tracker::new(Limits::default()), &Tally::default(), facts, &Thresholds::default())
}

#[test]
fn sockets_of_one_process_and_cause_are_one_finding() {
    let mut sockets: Vec<Socket> = (1..=4).map(stuck).collect();
    sockets[3].receive_queue = 1;
    let found = found(&facts(sockets));
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].cause, found[0].count), (Some(Cause::EofReadNotClosed), 3));
    assert_eq!((found[1].cause, found[1].count), (Some(Cause::FinUnread), 1));
    assert_eq!(found[0].process.map(|process| process.pid), Some(10));
    assert_eq!(found[0].oldest_ns, 120 * SECOND);
    assert_eq!(found[0].oldest_certainty, Certainty::AtLeast);
    assert_eq!(found[0].sockets[0].fds, [1]);
}

#[test]
fn the_queue_and_the_inode_tell_the_cause() {
    let cause = |inode, receive_queue| {
        let socket = Socket { inode, receive_queue, ..stuck(1) };
        found(&facts(vec![socket]))[0].cause
    };
    assert_eq!(cause(0, 0), Some(Cause::NeverAccepted));
    assert_eq!(cause(0, 5), Some(Cause::NeverAccepted));
    assert_eq!(cause(9, 0), Some(Cause::EofReadNotClosed));
    assert_eq!(cause(9, 1), Some(Cause::FinUnread));
    assert_eq!(cause(9, 2), Some(Cause::DataUnread));
}

#[test]
fn what_is_read_with_the_last_data_may_be_an_end_that_nobody_has_seen() {
    let told = |infos: &[(u64, u32)]| {
        let of = |(cookie, (bytes_received, last_data_recv_ms)): (u64, (u64, u32))| {
            let known = stuck(cookie);
            Socket {
                info: Some(TcpInfo { bytes_received, last_data_recv_ms, ..known.info.expect("its info") }),
                ..known
            }
        };
        let sockets = (1..).zip(infos.iter().copied()).map(of).collect();
        found(&facts(sockets))[0].evidence[0].clone()
    };
    const FIN: u64 = 1;
    let read = "the receive queues are empty, the FIN was read";
    assert_eq!(told(&[(5 + FIN, 500_000), (FIN, 120_000)]), read);
    let maybe = "maybe by the read() that returned the last data";
    assert_eq!(told(&[(5 + FIN, 120_040)]), format!("{read}: {maybe}"));
    assert_eq!(told(&[(5 + FIN, 120_040), (5 + FIN, 500_000)]), format!("{read}: of 1 {maybe}"));
}

#[test]
fn a_half_closed_connection_that_still_sends_is_no_leak() {
    let mut sending = stuck(1);
    sending.info = Some(TcpInfo { last_ack_recv_ms: 120_000, last_data_sent_ms: 5, ..TcpInfo::default() });
    assert_eq!(found(&facts(vec![sending])), []);
}

#[test]
fn young_sockets_are_not_stuck() {
    let mut young = stuck(1);
    young.info = Some(TcpInfo { last_ack_recv_ms: 59_000, last_data_sent_ms: 120_000, ..TcpInfo::default() });
    assert_eq!(found(&facts(vec![young])), []);
}

#[test]
fn nearly_used_up_descriptors_are_critical() {
    let mut facts = facts(vec![stuck(1)]);
    assert_eq!(found(&facts)[0].severity, Severity::Info);
    facts.descriptors.insert(10, DescriptorUsage { used: 9, limit: Some(10) });
    assert_eq!(found(&facts)[0].severity, Severity::Critical);
    facts.descriptors.insert(10, DescriptorUsage { used: 9, limit: None });
    assert_eq!(found(&facts)[0].severity, Severity::Info);
    facts.descriptors.insert(10, DescriptorUsage { used: 900, limit: Some(1000) });
    assert_eq!(found(&facts)[0].severity, Severity::Info, "it is honest work that uses them");
    facts.sockets[0].inode = 0;
    facts.sockets.push(listener(1, 128));
    assert_eq!(found(&facts)[0].severity, Severity::Critical, "without descriptors there is no accept()");
}

/// A tracker that knows of this many TIME_WAIT sockets to one destination.
fn with_time_wait(count: u16) -> Tracker {
    let mut tracker = Tracker::new(Limits::default());
    let mini = |number: u16| Socket {
        tuple: tuple(33_000 + number, 5432),
        state: State::TIME_WAIT,
        kind: SocketKind::Mini { expires_in_ms: 30_000 },
        inode: 0,
        info: None,
        ..stuck(u64::from(number))
    };
    let snapshot =
        Snapshot { started_ns: NOW, ended_ns: NOW, complete_netns: vec![1], sockets: (0..count).map(mini).collect() };
    tracker.snapshot_begins(MergeKind::StartUp);
    tracker.merge(&snapshot, &mut Effects::default());
    tracker
}

#[test]
fn a_destination_is_measured_against_the_port_range() {
    let judge = |count| detect(&with_time_wait(count), &Tally::default(), &facts(vec![]), &Thresholds::default());
    assert_eq!(judge(14_000), []);
    let found = judge(15_000);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].severity, found[0].count), (Kind::TimeWaitPorts, Severity::Warning, 15_000));
    assert_eq!(found[0].remote, Some(tuple(0, 5432).remote));
    assert_eq!(judge(26_000)[0].severity, Severity::Critical);
}

#[test]
fn reserved_ports_are_not_available() {
    let settings = PortSettings {
        range: PortRange { first: 1000, last: 1099 },
        reserved: vec![PortRange { first: 1090, last: 2000 }, PortRange { first: 1095, last: 1096 }],
        time_wait_reuse: 0,
    };
    assert_eq!(settings.available(), 90);
    assert_eq!(PortSettings::default().available(), 28_232);
}

#[test]
fn connects_that_found_no_port_are_critical_whatever_is_left() {
    let mut tally = Tally::default();
    let connection = ended(Closing::NoLocalPort, &[State::SYN_SENT]);
    tally.count(&connection);
    tally.count(&connection);
    let tracker = Tracker::new(Limits::default());
    let found = detect(&tracker, &tally, &facts(vec![]), &Thresholds::default());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].severity, Severity::Critical);
    assert!(found[0].evidence.iter().any(|line| line.starts_with("2 connect() calls")), "{:?}", found[0].evidence);
}

/// A connection of process 10 to port 5432 that went through these states, 10 ms each, and has just ended.
fn ended(closing: Closing, states: &[State]) -> Connection {
    let span = |state: &State| Span { state: *state, ns: SECOND / 100, certainty: Certainty::Exact };
    Connection {
        socket: SocketId::from_cookie(1),
        tuple: tuple(if closing == Closing::NoLocalPort { 0 } else { 40_000 }, 5432),
        opened_ns: Some(NOW - SECOND),
        ended_ns: Some(NOW),
        opening: Opening::Active,
        closing: Some(closing),
        error: Errno::NONE,
        reset_cause: None,
        file_left: None,
        after_close: AfterClose::None,
        spans: states.iter().map(span).collect(),
        bytes_in: Some(10),
        bytes_out: Some(20),
        process: Some(Process { pid: 10, comm: Comm::from("app"), source: ProcessSource::Opener }),
        cgroup: 7,
        inode: 0,
        gap: false,
    }
}

/// What is found when these connections have ended within the window of ten seconds.
fn found_after(connections: impl IntoIterator<Item = Connection>) -> Vec<Finding> {
    let mut tally = Tally::default();
    for connection in connections {
        tally.count(&connection);
    }
    detect(&Tracker::new(Limits::default()), &tally, &facts(vec![]), &Thresholds::default())
}

const CONNECTING: &[State] = &[State::SYN_SENT];
const ESTABLISHED: &[State] = &[State::SYN_SENT, State::ESTABLISHED];

#[test]
fn a_handful_of_failed_connects_is_told_and_many_are_a_warning() {
    let refused = |count| vec![ended(Closing::Refused, CONNECTING); count];
    assert_eq!(found_after(refused(2)), []);
    let few = &found_after(refused(3))[0];
    assert_eq!((few.kind, few.severity, few.count), (Kind::ConnectFailures, Severity::Info, 3));
    let many = &found_after(refused(30))[0];
    assert_eq!((many.severity, many.growth_per_min), (Severity::Warning, Some(180.0)));
    assert_eq!(many.remote, Some(tuple(0, 5432).remote));
    assert_eq!(many.evidence, ["of 30 connect() calls: 30 refused"]);
}

#[test]
fn a_connection_that_was_established_is_no_failed_connect() {
    assert_eq!(found_after(vec![ended(Closing::TimedOut, ESTABLISHED); 9]), []);
}

#[test]
fn resets_are_told_by_whom_and_why_when_they_are_more_than_everyday_life() {
    let reset = |closing, cause| Connection { reset_cause: cause, ..ended(closing, ESTABLISHED) };
    assert_eq!(found_after(vec![reset(Closing::ResetReceived, None); 9]), []);
    let unread = reset(Closing::ResetSent, Some(ResetCause::UnreadData));
    let found = found_after(vec![unread.clone(); 10]);
    assert_eq!((found[0].kind, found[0].severity, found[0].count), (Kind::Resets, Severity::Warning, 10));
    assert!(found[0].title.contains("unread data"), "{}", found[0].title);
    // Ten of many thousands are clients that went away.
    let healthy = vec![ended(Closing::Passive, ESTABLISHED); 1000];
    assert_eq!(found_after(healthy.into_iter().chain(vec![unread; 10])), []);
}

#[test]
fn many_short_connections_to_one_destination_are_churn() {
    let short = |count| vec![ended(Closing::Active, ESTABLISHED); count];
    assert_eq!(found_after(short(199)), []);
    let found = found_after(short(200));
    assert_eq!((found[0].kind, found[0].severity, found[0].count), (Kind::Churn, Severity::Info, 200));
    // 28 232 ports, and TIME_WAIT keeps each for a minute.
    assert_eq!(found_after(short(4700))[0].severity, Severity::Info);
    assert_eq!(found_after(short(4710))[0].severity, Severity::Warning);
    let long = Connection {
        spans: vec![Span { state: State::ESTABLISHED, ns: 2 * SECOND, certainty: Certainty::Exact }],
        ..ended(Closing::Active, ESTABLISHED)
    };
    assert_eq!(found_after(vec![long; 3000]), []);
}

#[test]
fn a_descriptor_of_a_connection_that_is_over_is_found_by_its_inode() {
    let reset = Connection {
        file_left: Some(501),
        ended_ns: Some(NOW - 61 * SECOND),
        ..ended(Closing::ResetReceived, ESTABLISHED)
    };
    let mut tally = Tally::default();
    tally.count(&reset);
    let mut facts = facts(vec![stuck(1)]);
    facts.sockets.clear();
    let tracker = Tracker::new(Limits::default());
    let judge = |facts: &Facts| detect(&tracker, &tally, facts, &Thresholds::default());
    let found = judge(&facts);
    assert_eq!((found[0].kind, found[0].count), (Kind::ClosedNotReleased, 1));
    assert_eq!(found[0].oldest_ns, 61 * SECOND);
    assert_eq!(found[0].sockets[0].fds, [1]);
    // The program has closed it, or uses it for another connection.
    facts.sockets.push(Socket { inode: 501, state: State::ESTABLISHED, ..stuck(1) });
    assert_eq!(judge(&facts), []);
    facts.sockets.clear();
    facts.holders.clear();
    assert_eq!(judge(&facts), []);
}

/// A socket that was over before, of process 10, and that a look some time later still found.
fn closed(cookie: u64, quiet_ns: u64) -> ClosedSocket {
    let tuple = Tuple { remote: Endpoint::UNKNOWN, ..tuple(4000 + cookie as u16, 0) };
    let mut socket = ClosedSocket { inode: 500 + cookie, cookie, tuple, quiet_ns, closed_for_ns: 0 };
    socket.was_unlisted_for(SECOND / 2);
    socket
}

fn facts_with(closed: Vec<ClosedSocket>) -> Facts {
    let holders = facts((1..=9).map(stuck).collect()).holders;
    Facts { closed, holders, ..facts(vec![]) }
}

#[test]
fn what_was_over_before_the_tracer_is_found_when_it_has_been_quiet_for_long() {
    let found = found(&facts_with((1..=4).map(|n| closed(n, (58 + n) * SECOND)).collect()));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].severity, found[0].count), (Kind::ClosedNotReleased, Severity::Warning, 3));
    assert_eq!((found[0].oldest_ns, found[0].oldest_certainty), (SECOND / 2, Certainty::AtLeast));
    assert_eq!(found[0].local, Some(Endpoint { port: 0, ..tuple(0, 0).local }));
    assert_eq!(found[0].remote, None);
    assert_eq!(found[0].sockets.iter().map(|socket| socket.fds[0]).collect::<Vec<_>>(), [4, 3, 2]);
    assert!(found[0].evidence.iter().any(|line| line.contains("for 1m to 1m 2s")), "{:?}", found[0].evidence);
}

#[test]
fn what_was_heard_of_since_was_not_in_close_by_then() {
    let mut socket = closed(1, 3 * SECOND);
    socket.was_unlisted_for(4 * SECOND);
    assert_eq!(socket.closed_for_ns, SECOND / 2, "it may have connected and closed since");
    socket.was_unlisted_for(2 * SECOND);
    assert_eq!(socket.closed_for_ns, 2 * SECOND);
}

#[test]
fn a_socket_that_was_seen_to_close_is_counted_once() {
    let ended = |file_left, ago| Connection {
        file_left: Some(file_left),
        ended_ns: Some(NOW - ago * SECOND),
        ..ended(Closing::ResetReceived, ESTABLISHED)
    };
    let mut tally = Tally::default();
    tally.count(&ended(501, 70));
    // Its connection was quiet for long before it was reset a second ago.
    tally.count(&ended(502, 1));
    // Closed, connected again, and closed again.
    tally.count(&ended(503, 70));
    tally.count(&ended(503, 2));
    let facts = facts_with((1..=4).map(|n| closed(n, 100 * SECOND)).collect());
    let found = detect(&Tracker::new(Limits::default()), &tally, &facts, &Thresholds::default());
    assert_eq!((found.len(), found[0].count), (1, 2));
    let told: Vec<_> = found[0].sockets.iter().map(|socket| (socket.fds[0], socket.age_certainty)).collect();
    assert_eq!(told, [(4, Certainty::AtLeast), (1, Certainty::Exact)]);
    assert_eq!((found[0].oldest_ns, found[0].oldest_certainty), (70 * SECOND, Certainty::Exact));
    assert!(found[0].evidence[0].contains("1 before the tracer looked, 1 reset_received"), "{:?}", found[0].evidence);
}

fn listener(queued: u32, backlog: u32) -> Socket {
    let local = Endpoint { address: Address::UNSPECIFIED, port: 80 };
    Socket {
        tuple: Tuple { local, remote: Endpoint::UNKNOWN, ..tuple(80, 0) },
        state: State::LISTEN,
        receive_queue: queued,
        send_queue: backlog,
        ..stuck(1)
    }
}

#[test]
fn a_full_accept_queue_is_critical_and_a_long_wait_a_warning() {
    let waiting = |ms| Socket {
        inode: 0,
        state: State::ESTABLISHED,
        info: Some(TcpInfo { last_ack_recv_ms: ms, ..TcpInfo::default() }),
        ..stuck(2)
    };
    assert_eq!(found(&facts(vec![listener(1, 128), waiting(100)])), []);
    let forgotten = &found(&facts(vec![listener(1, 128), waiting(6_000)]))[0];
    assert_eq!((forgotten.kind, forgotten.severity), (Kind::AcceptStalled, Severity::Warning));
    assert_eq!(forgotten.process.map(|process| process.pid), Some(10));
    let full = |ms| facts(vec![listener(129, 128), waiting(ms)]);
    let found = found(&full(1_000));
    assert_eq!((found[0].kind, found[0].severity, found[0].count), (Kind::AcceptStalled, Severity::Critical, 129));
    assert_eq!(self::found(&full(900)), [], "a burst, which will be drained");
    let mut overflowed = full(900);
    let counters = NamespaceCounters { listen_overflows: 7, ..NamespaceCounters::default() };
    overflowed.namespaces.insert(1, NamespaceFacts { counters, ..NamespaceFacts::default() });
    assert_eq!(self::found(&overflowed)[0].severity, Severity::Warning);
}

#[test]
fn what_was_never_accepted_is_its_listeners() {
    let found = found(&facts(vec![listener(1, 128), Socket { inode: 0, ..stuck(2) }]));
    let leak = found.iter().find(|finding| finding.kind == Kind::CloseWait).expect("a close_wait");
    assert_eq!(leak.cause, Some(Cause::NeverAccepted));
    assert_eq!(leak.process.map(|process| (process.pid, process.source)), Some((10, ProcessSource::Listener)));
}

#[test]
fn a_peer_that_does_not_close_is_told_when_it_lasts() {
    let mut tracker = Tracker::new(Limits::default());
    let info = TcpInfo { last_data_recv_ms: 61_000, ..TcpInfo::default() };
    let waiting = Socket { state: State::FIN_WAIT2, info: Some(info), ..stuck(1) };
    let snapshot = Snapshot {
        started_ns: NOW - 61 * SECOND,
        ended_ns: NOW - 61 * SECOND,
        complete_netns: vec![1],
        sockets: vec![waiting],
    };
    tracker.snapshot_begins(MergeKind::StartUp);
    tracker.merge(&snapshot, &mut Effects::default());
    let found = detect(&tracker, &Tally::default(), &facts(vec![waiting]), &Thresholds::default());
    assert_eq!((found[0].kind, found[0].count), (Kind::PeerNotClosing, 1));
    assert_eq!((found[0].oldest_ns, found[0].oldest_certainty), (61 * SECOND, Certainty::AtLeast));
    assert_eq!(self::found(&facts(vec![waiting])), [], "how long it has been so is not known");
    let sending = Socket { info: Some(TcpInfo { last_data_recv_ms: 100, ..info }), ..waiting };
    let found = detect(&tracker, &Tally::default(), &facts(vec![sending]), &Thresholds::default());
    assert_eq!(found, [], "the peer still sends");
}

#[test]
fn the_table_of_mini_sockets_is_measured_against_its_bound() {
    let judge = |mini_sockets, time_wait_overflows| {
        let mut facts = facts(vec![]);
        let namespace = NamespaceFacts {
            mini_sockets: Some(mini_sockets),
            time_wait_max: Some(1000),
            counters: NamespaceCounters { time_wait_overflows, ..NamespaceCounters::default() },
            ..NamespaceFacts::default()
        };
        facts.namespaces.insert(1, namespace);
        found(&facts).first().map(|finding| (finding.kind, finding.severity))
    };
    assert_eq!(judge(799, 0), None);
    assert_eq!(judge(800, 0), Some((Kind::TimeWaitTable, Severity::Info)));
    assert_eq!(judge(1000, 5), Some((Kind::TimeWaitTable, Severity::Warning)));
}

#[test]
fn a_port_without_its_listener_is_blocked_while_sockets_are_left_on_it() {
    let mut tracker = with_time_wait(0);
    let at = listener(0, 128).tuple;
    let step = |mono_ns, old, new| Transition {
        mono_ns,
        socket: SocketId::from_cookie(99),
        tuple: at,
        old,
        new,
        task: Task::default(),
        context: Context::Process,
        details: None,
        origin: Origin::Kernel,
    };
    let mut effects = Effects::default();
    tracker.transition(&step(NOW - 3 * SECOND, State::CLOSE, State::LISTEN), &mut effects);
    tracker.transition(&step(NOW - 2 * SECOND, State::LISTEN, State::CLOSE), &mut effects);
    let judge = |sockets| detect(&tracker, &Tally::default(), &facts(sockets), &Thresholds::default());
    assert_eq!(judge(vec![]), []);
    let left = Socket { state: State::ESTABLISHED, ..stuck(1) };
    let found = judge(vec![left]);
    assert_eq!((found[0].kind, found[0].count, found[0].oldest_ns), (Kind::PortBlocked, 1, 2 * SECOND));
    assert_eq!(judge(vec![left, listener(0, 128)]), [], "somebody listens again");
}

#[test]
fn a_container_is_named_with_its_process() {
    let mut facts = facts(vec![Socket { cgroup: 7, ..stuck(1) }]);
    facts.cgroups.insert(7, Arc::from("/system.slice/cart.service"));
    assert!(
        found(&facts)[0].title.starts_with("leaky[10] (cart.service) leaves 1 socket"),
        "{}",
        found(&facts)[0].title
    );
}

#[test]
fn every_topic_that_a_finding_can_name_has_a_remedy() {
    let connects = |refused, timed_out, unreachable| {
        let other = FxHashMap::from_iter([(113, unreachable)]);
        connect_failures::topic(&tally::Connects { refused, timed_out, other, ..tally::Connects::default() })
    };
    let of_cases = [Kind::CloseWait, Kind::TimeWaitPorts, Kind::PeerNotClosing, Kind::ConnectFailures, Kind::Resets];
    let mut topics: Vec<&str> = Kind::ALL.into_iter().filter(|kind| !of_cases.contains(kind)).map(Kind::name).collect();
    topics.extend(Cause::ALL.map(Cause::name));
    topics.extend([true, false].map(time_wait_ports::topic));
    topics.extend([State::FIN_WAIT1, State::FIN_WAIT2, State::LAST_ACK].map(peer_not_closing::topic));
    let failures = [connects(3, 0, 0), connects(1, 3, 2), connects(1, 2, 3)];
    assert_eq!(failures, ["connect_refused", "connect_unanswered", "connect_unreachable"]);
    topics.extend(failures);
    topics.extend([resets::topic(true, None), resets::topic(false, None)]);
    topics.extend(ResetCause::ALL.map(|cause| resets::topic(false, Some(cause))));
    for topic in topics {
        let remedy = manual::remedy(topic).unwrap_or_default();
        assert!((60..=330).contains(&remedy.len()), "{topic}: {} characters", remedy.len());
    }
}

#[test]
fn common_ends_keep_what_all_share() {
    let end = |last, port| Endpoint::new(Address::v4([10, 0, 0, last]), port);
    assert_eq!(common_end([end(1, 80), end(1, 80)]), Some(end(1, 80)));
    assert_eq!(common_end([end(1, 80), end(1, 81)]), Some(end(1, 0)));
    assert_eq!(common_end([end(1, 80), end(2, 80)]), None);
    assert_eq!(common_end([]), None);
}
