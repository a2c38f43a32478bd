//! No detector panics, divides by zero or says nonsense, whatever it is given.

use proptest::prelude::*;

use super::*;

fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), 0..20 * SECOND, any::<u64>()]
}

/// Few different values, so that sockets are there twice, share inodes, and contradict each other.
fn socket() -> impl Strategy<Value = Socket> {
    let ends = (0_u32..3, 0_u8..4, 0_u16..4, 0_u16..4);
    let numbers = (0_u64..4, 0_u8..14, 0_u64..4, 0_u8..6);
    let queues = prop::array::uniform2(prop_oneof![Just(0), Just(1), Just(2), Just(u32::MAX)]);
    let ms = || prop_oneof![Just(0), Just(60_000), Just(u32::MAX), any::<u32>()];
    (ends, numbers, queues, prop::option::of([ms(), ms(), ms()])).prop_map(|(ends, numbers, queues, info)| {
        let (netns, address, local_port, remote_port) = ends;
        let (cookie, state, inode, kind) = numbers;
        let addresses = [Address::UNSPECIFIED, Address::v4([0; 4]), Address::v4([127, 0, 0, 1]), Address::v4([10; 4])];
        let at = |port| Endpoint::new(addresses[usize::from(address)], port);
        Socket {
            cookie,
            tuple: Tuple { netns, local: at(local_port), remote: at(remote_port) },
            state: State(state),
            kind: match kind {
                0 => SocketKind::Mini { expires_in_ms: queues[0] },
                1 => SocketKind::Request,
                _ => SocketKind::Full,
            },
            inode,
            cgroup: u64::from(kind),
            uid: 0,
            receive_queue: queues[0],
            send_queue: queues[1],
            info: info.map(|[last_data_sent_ms, last_data_recv_ms, last_ack_recv_ms]| TcpInfo {
                last_data_sent_ms,
                last_data_recv_ms,
                last_ack_recv_ms,
                bytes_acked: u64::MAX,
                bytes_received: u64::MAX,
            }),
            holder: None,
        }
    })
}

fn connection() -> impl Strategy<Value = Connection> {
    const CLOSINGS: [Closing; 11] = [
        Closing::Active,
        Closing::Passive,
        Closing::Simultaneous,
        Closing::ResetReceived,
        Closing::ResetSent,
        Closing::Refused,
        Closing::TimedOut,
        Closing::NoLocalPort,
        Closing::Killed,
        Closing::Aborted,
        Closing::Unknown,
    ];
    let spans = prop::collection::vec((0_u8..14, extreme()), 0..3);
    (spans, prop::sample::select(&CLOSINGS[..]), extreme(), extreme(), 0_u64..4).prop_map(
        |(spans, closing, ended_ns, bytes, inode)| Connection {
            spans: spans
                .into_iter()
                .map(|(state, ns)| Span { state: State(state), ns, certainty: Certainty::Unknown })
                .collect(),
            ended_ns: Some(ended_ns),
            bytes_in: Some(bytes),
            bytes_out: Some(bytes),
            file_left: (inode > 0).then_some(inode),
            error: Errno(bytes as u32),
            process: (inode % 2 == 0).then_some(Process {
                pid: inode as u32,
                comm: Comm::from("app"),
                source: ProcessSource::Opener,
            }),
            tuple: Tuple { netns: inode as u32 % 3, ..tuple(inode as u16, 5432) },
            ..ended(closing, CONNECTING)
        },
    )
}

fn transition() -> impl Strategy<Value = Transition> {
    (0_u64..4, 0_u32..3, 0_u16..4, 0_u8..14, 0_u8..14, extreme()).prop_map(
        |(cookie, netns, port, old, new, mono_ns)| Transition {
            mono_ns,
            socket: SocketId::from_cookie(cookie),
            tuple: Tuple { netns, ..tuple(port, 0) },
            old: State(old),
            new: State(new),
            task: Task::default(),
            context: Context::Process,
            details: None,
            origin: Origin::Kernel,
        },
    )
}

fn port_settings() -> impl Strategy<Value = PortSettings> {
    // The first may be above the last.
    let range = || (any::<u16>(), any::<u16>()).prop_map(|(first, last)| PortRange { first, last });
    (range(), prop::collection::vec(range(), 0..4), any::<u8>())
        .prop_map(|(range, reserved, time_wait_reuse)| PortSettings { range, reserved, time_wait_reuse })
}

fn namespace() -> impl Strategy<Value = NamespaceFacts> {
    let number = || prop::option::of(extreme());
    (port_settings(), number(), number(), extreme(), extreme()).prop_map(
        |(ports, mini_sockets, time_wait_max, time_wait_overflows, listen_overflows)| NamespaceFacts {
            ports,
            mini_sockets,
            time_wait_max,
            counters: NamespaceCounters { time_wait_overflows, listen_overflows },
        },
    )
}

fn facts() -> impl Strategy<Value = Facts> {
    let holder = (0_u32..4, any::<i32>()).prop_map(|(pid, fd)| Holder { pid, comm: Comm::from("app"), fd });
    // An inode may have an empty list, and a holder no descriptors that are known.
    let holders = prop::collection::hash_map(0_u64..4, prop::collection::vec(holder, 0..8), 0..4);
    let usage = (extreme(), prop::option::of(extreme())).prop_map(|(used, limit)| DescriptorUsage { used, limit });
    let descriptors = prop::collection::hash_map(0_u32..4, usage, 0..4);
    let namespaces = prop::collection::hash_map(0_u32..3, namespace(), 0..3);
    let cgroups = prop::collection::hash_map(0_u64..6, "[ -~\n]{0,20}", 0..3);
    let sockets = prop::collection::vec(socket(), 0..30);
    let closed = (0_u64..4, 0_u64..4, extreme(), extreme());
    let closed = prop::collection::vec((closed, socket()), 0..6).prop_map(|closed| {
        let closed = closed.into_iter().map(|((inode, cookie, quiet_ns, closed_for_ns), socket)| ClosedSocket {
            inode,
            cookie,
            tuple: socket.tuple,
            quiet_ns,
            closed_for_ns,
        });
        closed.collect()
    });
    let sockets = (sockets, closed);
    (sockets, extreme(), extreme(), holders, descriptors, namespaces, cgroups, any::<usize>()).prop_map(
        |((sockets, closed), now_ns, window_ns, holders, descriptors, namespaces, cgroups, unreadable_processes)| {
            Facts {
                now_ns,
                window_ns,
                sockets,
                closed,
                holders: holders.into_iter().collect(),
                descriptors: descriptors.into_iter().collect(),
                namespaces: namespaces.into_iter().collect(),
                cgroups: cgroups.into_iter().map(|(id, path)| (id, Arc::from(path))).collect(),
                unreadable_processes,
            }
        },
    )
}

fn judged(facts: &Facts, tracker: &Tracker, tally: &Tally, thresholds: &Thresholds) -> Result<(), TestCaseError> {
    for finding in detect(tracker, tally, facts, thresholds) {
        prop_assert!(!finding.title.is_empty() && !finding.remedy.is_empty() && !finding.evidence.is_empty());
        prop_assert!(finding.evidence.iter().all(|line| !line.contains("NaN") && !line.contains("inf")));
        prop_assert!(finding.growth_per_min.is_none_or(|growth| growth.is_finite() && growth >= 0.0));
        prop_assert!(finding.sockets.len() <= SAMPLE);
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_ports_that_are_available_are_those_not_reserved(settings in port_settings()) {
        let PortSettings { range, reserved, .. } = &settings;
        let is_reserved = |port: &u16| reserved.iter().any(|range| (range.first..=range.last).contains(port));
        let available = (range.first..=range.last).filter(|port| !is_reserved(port)).count();
        prop_assert_eq!(settings.available(), available as u64);
    }

    #[test]
    fn no_detector_panics(
        facts in facts(),
        sockets in prop::collection::vec(socket(), 0..30),
        dumped in (extreme(), extreme()),
        // Of some there are many: what is rare is no finding.
        connections in prop::collection::vec((connection(), prop::sample::select(&[1, 20, 1_000][..])), 0..8),
        transitions in prop::collection::vec(transition(), 0..30),
        close_wait_age_ns in extreme(),
        port_usage in prop_oneof![Just(0.0), Just(1.0), 0.0_f64..1.0],
    ) {
        let mut tracker = Tracker::new(Limits::default());
        // What is sampled may be what the tracker knows, or have nothing to do with it.
        let known = if dumped.0 % 2 == 0 { facts.sockets.clone() } else { sockets };
        let snapshot =
            Snapshot { started_ns: dumped.0, ended_ns: dumped.1, complete_netns: vec![1], sockets: known };
        tracker.snapshot_begins(MergeKind::StartUp);
    tracker.merge(&snapshot, &mut Effects::default());
        for transition in &transitions {
            tracker.transition(transition, &mut Effects::default());
        }
        let mut tally = Tally::default();
        for (connection, times) in &connections {
            (0..*times).for_each(|_| tally.count(connection));
        }
        let thresholds = Thresholds { close_wait_age_ns, port_usage };
        judged(&facts, &tracker, &tally, &thresholds)?;
        judged(&facts, &tracker, &tally, &Thresholds { close_wait_age_ns: 0, port_usage: 0.0 })?;
    }
}

#[test]
fn nothing_is_found_in_nothing() {
    let none = Facts::default();
    let thresholds = Thresholds { close_wait_age_ns: 0, port_usage: 0.0 };
    assert_eq!(detect(&Tracker::new(Limits::default()), &Tally::default(), &none, &thresholds), []);
}
