//! Findings from hand-made facts.

use rustc_hash::FxHashMap;

use super::*;
use crate::core::{
    connection::{AfterClose, Opening},
    endpoint::{Address, Tuple},
    snapshot::{Snapshot, SocketKind, TcpInfo},
    state::State,
    tracker::{Effects, Limits, MergeKind},
    transition::{Errno, SocketId},
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
    }
}

fn facts(sockets: Vec<Socket>) -> Facts {
    let holder = |socket: &Socket| Holder { pid: 10, comm: Comm::from("leaky"), fd: socket.cookie as i32 };
    Facts {
        now_ns: NOW,
        window_ns: 10 * SECOND,
        holders: sockets.iter().map(|socket| (socket.inode, vec![holder(socket)])).collect(),
        close_wait: sockets,
        descriptors: FxHashMap::from_iter([(10, DescriptorUsage { used: 100, limit: Some(1000) })]),
        ports: FxHashMap::from_iter([(1, PortSettings::default())]),
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
    facts.descriptors.insert(10, DescriptorUsage { used: 900, limit: Some(1000) });
    assert_eq!(found(&facts)[0].severity, Severity::Critical);
    facts.descriptors.insert(10, DescriptorUsage { used: 900, limit: None });
    assert_eq!(found(&facts)[0].severity, Severity::Info);
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
    tracker.merge(&snapshot, MergeKind::StartUp, &|_| None, &mut Effects::default());
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
    let connection = Connection {
        socket: SocketId::from_cookie(1),
        tuple: tuple(0, 5432),
        opened_ns: Some(1),
        ended_ns: Some(2),
        opening: Opening::Active,
        closing: Some(Closing::NoLocalPort),
        error: Errno::NONE,
        after_close: AfterClose::None,
        spans: vec![],
        bytes_in: None,
        bytes_out: None,
        process: None,
        cgroup: 0,
        inode: 0,
        gap: false,
    };
    tally.count(&connection);
    tally.count(&connection);
    let tracker = Tracker::new(Limits::default());
    let found = detect(&tracker, &tally, &facts(vec![]), &Thresholds::default());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].severity, Severity::Critical);
    assert!(found[0].evidence.iter().any(|line| line.starts_with("2 connect() calls")), "{:?}", found[0].evidence);
}

#[test]
fn common_ends_keep_what_all_share() {
    let end = |last, port| Endpoint::new(Address::v4([10, 0, 0, last]), port);
    assert_eq!(common_end([end(1, 80), end(1, 80)]), Some(end(1, 80)));
    assert_eq!(common_end([end(1, 80), end(1, 81)]), Some(end(1, 0)));
    assert_eq!(common_end([end(1, 80), end(2, 80)]), None);
    assert_eq!(common_end([]), None);
}
