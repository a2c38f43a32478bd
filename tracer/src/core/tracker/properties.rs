//! What holds whatever happens: for lives that the kernel can lead, seen whole or with events missing, and for input
//! that makes no sense at all, as a damaged recording may.

use std::collections::HashSet;

use proptest::{prelude::*, test_runner::Config};

use super::{merge::MergeKind, *};
use crate::core::{
    connection::{Certainty, Closing},
    endpoint::Address,
    snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
    transition::{Comm, Context, Errno, KernelAddress, Origin, SocketId},
};

/// A failure is kept as a unit test with a name, not as a seed.
fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, ..Config::default() }
}

/// What a run gave, for comparison.
#[derive(Debug, PartialEq)]
struct Outcome {
    ended: Vec<Connection>,
    repaired: Vec<Transition>,
    open: Vec<Connection>,
    counts: Counts,
}

/// Inner invariants that hold between any two calls.
fn check(tracker: &Tracker) {
    assert!(tracker.len() <= tracker.limits.max_connections);
    assert!(tracker.entries.is_consistent());
    assert!(tracker.closing.iter().is_sorted_by_key(|(until, _)| until));
    assert!(tracker.listeners.is_consistent());
    for (_, entry) in tracker.entries.iter() {
        let queued = tracker.closing.iter().any(|(_, waiting)| *waiting == entry.key);
        assert!(entry.close.is_none() || queued, "what is closed waits to be handed out");
        let names = [entry.socket.key(), entry.socket.address_key()];
        assert!(names.contains(&entry.key), "found by what it is known by");
    }
}

/// What holds for every record, after a run that reached at most `latest_ns`.
fn check_ended(connection: &Connection, latest_ns: u64) {
    let ended_ns = connection.ended_ns.expect("it ended");
    assert!(connection.closing.is_some());
    assert!(ended_ns <= latest_ns);
    assert!(connection.duration_ns() <= ended_ns, "{connection:#?}");
    if let Some(opened_ns) = connection.opened_ns {
        assert_eq!(ended_ns.checked_sub(opened_ns), Some(connection.duration_ns()), "{connection:#?}");
    }
    if connection.closing == Some(Closing::Unknown) {
        assert!(connection.gap);
    }
}

fn process(pid: u32) -> Process {
    Process { pid, comm: Comm::from("holder"), source: ProcessSource::Holder }
}

mod legal {
    use super::*;

    /// What the kernel does to a full socket, self-transitions of close() after shutdown() included. Written down here
    /// apart from the tracker's own idea of it.
    fn ways(from: State) -> &'static [State] {
        match from {
            State::SYN_SENT => &[State::ESTABLISHED, State::ESTABLISHED, State::SYN_RECV, State::CLOSE],
            State::SYN_RECV => &[State::ESTABLISHED, State::ESTABLISHED, State::FIN_WAIT1, State::CLOSE],
            State::ESTABLISHED => &[State::FIN_WAIT1, State::CLOSE_WAIT, State::CLOSE],
            State::FIN_WAIT1 => &[State::FIN_WAIT1, State::FIN_WAIT2, State::CLOSING, State::CLOSE],
            State::FIN_WAIT2 => &[State::FIN_WAIT2, State::CLOSE],
            State::CLOSE_WAIT => &[State::LAST_ACK, State::CLOSE],
            State::LAST_ACK => &[State::LAST_ACK, State::CLOSE],
            _ => &[State::CLOSE],
        }
    }

    /// A connection's transitions, from its opening to its CLOSE.
    fn life() -> impl Strategy<Value = Vec<(State, State)>> {
        (any::<bool>(), prop::collection::vec(any::<prop::sample::Index>(), 16)).prop_map(|(active, choices)| {
            let mut steps =
                vec![if active { (State::CLOSE, State::SYN_SENT) } else { (State::LISTEN, State::SYN_RECV) }];
            for choice in choices {
                let (before, state) = steps[steps.len() - 1];
                // close() comes once.
                let onward = if before == state { &ways(state)[1..] } else { ways(state) };
                steps.push((state, onward[choice.index(onward.len())]));
                if steps[steps.len() - 1].1 == State::CLOSE {
                    break;
                }
            }
            steps
        })
    }

    /// One event of a run: which life of which socket it belongs to, and whether it gets lost.
    #[derive(Clone, Copy, Debug)]
    struct Told {
        life: u16,
        lost: bool,
        transition: Transition,
    }

    /// How a socket is known.
    #[derive(Clone, Copy, Debug)]
    enum Identity {
        Cookie,
        Address,
        /// By its address until somebody asks for its cookie, in the middle of its lives.
        CookieFrom(usize),
    }

    fn identity() -> impl Strategy<Value = Identity> {
        prop_oneof![Just(Identity::Cookie), Just(Identity::Address), (1_usize..10).prop_map(Identity::CookieFrom)]
    }

    /// Sockets that each lead several lives one after the other, interleaved. Every life has a remote port of its own,
    /// by which the test tells them apart.
    fn run(loss: f64) -> impl Strategy<Value = Vec<Told>> {
        let sockets = prop::collection::vec((identity(), prop::collection::vec(life(), 1..4)), 1..5);
        let picks = prop::collection::vec(
            (any::<prop::sample::Index>(), 0_u64..2_000_000_000, prop::bool::weighted(loss)),
            200,
        );
        (sockets, picks).prop_map(|(sockets, picks)| {
            let mut lives = 0;
            let mut waiting: Vec<Vec<Told>> = Vec::new();
            for (number, (identity, its_lives)) in (1_u16..).zip(sockets) {
                let steps: Vec<_> = its_lives
                    .into_iter()
                    .flat_map(|steps| {
                        lives += 1;
                        let life = lives;
                        steps.into_iter().map(move |step| (life, step))
                    })
                    .collect();
                let told = steps.into_iter().enumerate().map(|(at, (life, (old, new)))| {
                    let has_cookie = match identity {
                        Identity::Cookie => true,
                        Identity::Address => false,
                        Identity::CookieFrom(from) => at >= from,
                    };
                    let cookie = if has_cookie { u64::from(number) } else { 0 };
                    let address = KernelAddress(0xffff_8880_0000_0000 | u64::from(number) << 8);
                    let local = if old == State::CLOSE { 0 } else { 1000 + number };
                    let end = |port| Endpoint::new(Address::v4([10, 0, 0, 1]), port);
                    let transition = Transition {
                        mono_ns: 0,
                        socket: SocketId { cookie, address },
                        tuple: Tuple { netns: 1, local: end(local), remote: end(life) },
                        old,
                        new,
                        task: Task { pid: u32::from(number), tid: 1, comm: Comm::from("app") },
                        context: Context::Process,
                        details: None,
                        origin: Origin::Kernel,
                    };
                    Told { life, lost: false, transition }
                });
                waiting.push(told.rev().collect());
            }
            let mut now_ns = 1_000_000_000;
            let mut run = Vec::new();
            for (pick, after_ns, lost) in picks.into_iter().cycle() {
                waiting.retain(|socket| !socket.is_empty());
                if waiting.is_empty() {
                    break;
                }
                let socket = pick.index(waiting.len());
                let told = waiting[socket].pop().expect("none is empty");
                now_ns += after_ns;
                run.push(Told { lost, transition: Transition { mono_ns: now_ns, ..told.transition }, ..told });
            }
            run
        })
    }

    /// Feeds what is not lost; checks what holds after each event.
    fn feed(run: &[Told]) -> Outcome {
        let mut tracker = Tracker::new(Limits::default());
        let mut effects = Effects::default();
        for Told { transition, .. } in run.iter().filter(|told| !told.lost) {
            tracker.transition(transition, &mut effects);
            check(&tracker);
            assert_eq!(tracker.counts().repaired, effects.repaired.len() as u64);
            if transition.new == State::CLOSE {
                let entry = tracker.entries.of(transition.socket.key()).expect("it waits for a RST");
                assert!(entry.close.is_some());
            }
        }
        tracker.flush(&mut effects);
        check(&tracker);
        let latest_ns = run.last().map_or(0, |told| told.transition.mono_ns);
        let open: Vec<Connection> = tracker.open_connections(latest_ns).collect();
        assert_eq!(open.len(), tracker.len());
        Outcome { ended: effects.ended, repaired: effects.repaired, open, counts: tracker.counts() }
    }

    proptest! {
        #![proptest_config(cases(192))]

        #[test]
        fn what_is_seen_whole_is_told_whole(run in run(0.0)) {
            let outcome = feed(&run);
            prop_assert_eq!(outcome.counts, Counts::default());
            prop_assert_eq!(&outcome.open, &vec![]);
            for connection in &outcome.ended {
                let life = connection.tuple.remote.port;
                let its: Vec<&Transition> =
                    run.iter().filter(|told| told.life == life).map(|told| &told.transition).collect();
                prop_assert_eq!(connection.opened_ns, Some(its[0].mono_ns));
                prop_assert_eq!(connection.ended_ns, Some(its[its.len() - 1].mono_ns));
                prop_assert!(!connection.gap);
                prop_assert_ne!(connection.closing, Some(Closing::Unknown));
                let states: Vec<State> =
                    its.iter().skip(1).filter(|its| its.old != its.new).map(|its| its.old).collect();
                let told: Vec<State> = connection.spans.iter().map(|span| span.state).collect();
                prop_assert_eq!(told, states);
                prop_assert!(connection.spans.iter().all(|span| span.certainty == Certainty::Exact));
                check_ended(connection, u64::MAX);
            }
            let lives: HashSet<u16> = run.iter().map(|told| told.life).collect();
            let told: HashSet<u16> = outcome.ended.iter().map(|connection| connection.tuple.remote.port).collect();
            prop_assert_eq!(outcome.ended.len(), lives.len(), "each is handed out once");
            prop_assert_eq!(told, lives);
        }

        #[test]
        fn what_is_missed_is_repaired_and_marked(run in run(0.2)) {
            let outcome = feed(&run);
            let connections: Vec<&Connection> = outcome.ended.iter().chain(&outcome.open).collect();
            for connection in &outcome.ended {
                check_ended(connection, u64::MAX);
            }
            let lives: HashSet<u16> = run.iter().map(|told| told.life).collect();
            for life in lives {
                let its: Vec<&Told> = run.iter().filter(|told| told.life == life).collect();
                let of_it: Vec<&Connection> =
                    connections.iter().copied().filter(|its| its.tuple.remote.port == life).collect();
                let Some(first) = its.iter().position(|told| !told.lost) else {
                    prop_assert!(of_it.is_empty(), "nothing is known of it");
                    continue;
                };
                let last = its.iter().rposition(|told| !told.lost).expect("there is a first");
                prop_assert_eq!(of_it.len(), 1, "it is told once");
                let connection = of_it[0];
                let hole = its[first..last].iter().any(|told| told.lost && told.transition.old != told.transition.new);
                prop_assert!(connection.gap || !hole, "{:#?}", connection);
                if !its[last].lost && last == its.len() - 1 {
                    prop_assert_eq!(connection.ended_ns, Some(its[last].transition.mono_ns));
                    prop_assert_ne!(connection.closing, Some(Closing::Unknown));
                    let known_ns = its[last].transition.mono_ns - its[first].transition.mono_ns;
                    prop_assert_eq!(connection.duration_ns(), known_ns, "all of its known time is in its states");
                    prop_assert_eq!(connection.gap, hole || heard_in_its_handshake(its[first]));
                }
                prop_assert_eq!(connection.opened_ns.is_some(), first == 0);
            }
        }

        #[test]
        fn the_same_events_give_the_same(run in run(0.2)) {
            prop_assert_eq!(feed(&run), feed(&run));
        }
    }

    /// Such a connection cannot have been there before: its opening was missed.
    fn heard_in_its_handshake(told: &Told) -> bool {
        matches!(told.transition.old, State::SYN_SENT | State::SYN_RECV)
    }
}

mod adversarial {
    use super::*;

    /// One call of the tracker.
    #[derive(Clone, Debug)]
    enum Call {
        Transition(Transition),
        Reset(Reset),
        Advance(u64),
        Flush,
        SnapshotBegins(MergeKind),
        SnapshotFailed,
        MergePart(Snapshot),
        Merge(Snapshot),
        MergeMinis(Snapshot),
    }

    /// Small numbers, so that things meet, and the ends of the range.
    fn time() -> impl Strategy<Value = u64> {
        prop_oneof![
            8 => (0_u64..200).prop_map(|steps| steps * 10_000_000),
            1 => any::<u64>(),
            1 => prop_oneof![Just(0), Just(u64::MAX), Just(u64::MAX - 1)],
        ]
    }

    fn cookie() -> impl Strategy<Value = u64> {
        prop_oneof![4 => 0_u64..5, 1 => prop_oneof![Just(1 << 63), Just(u64::MAX), Just((1 << 63) + 2)]]
    }

    fn socket_id() -> impl Strategy<Value = SocketId> {
        (cookie(), 0_u64..4).prop_map(|(cookie, address)| SocketId { cookie, address: KernelAddress(address) })
    }

    fn state() -> impl Strategy<Value = State> {
        prop_oneof![12 => (1_u8..13).prop_map(State), 1 => any::<u8>().prop_map(State)]
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        (0_u8..3, 0_u16..3).prop_map(|(last, port)| {
            let address = if last == 0 { Address::UNSPECIFIED } else { Address::v4([10, 0, 0, last]) };
            Endpoint { address, port }
        })
    }

    fn tuple() -> impl Strategy<Value = Tuple> {
        (0_u32..3, endpoint(), endpoint()).prop_map(|(netns, local, remote)| Tuple { netns, local, remote })
    }

    fn counter() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..3, any::<u64>()]
    }

    fn details() -> impl Strategy<Value = Option<Details>> {
        let error = prop_oneof![Just(0), Just(32), Just(103), Just(104), Just(110), Just(111), any::<u32>()];
        let flags = (any::<bool>(), any::<bool>(), any::<bool>());
        prop::option::of((flags, error, counter(), counter(), 0_u64..4).prop_map(
            |(flags, error, received, acked, inode)| Details {
                fin_received: flags.0,
                orphaned: flags.1,
                send_shutdown: flags.1,
                previous_port: inode as u16,
                linger: flags.0,
                mptcp: flags.2,
                inode,
                cgroup: inode,
                uid: 0,
                error: Errno(error),
                bytes_received: received,
                bytes_acked: acked,
                srtt_us: 0,
                retransmits: 0,
            },
        ))
    }

    fn transition() -> impl Strategy<Value = Transition> {
        let context = prop_oneof![Just(Context::Process), Just(Context::Softirq), Just(Context::Unknown)];
        (time(), socket_id(), tuple(), (state(), state()), 0_u32..3, context, details()).prop_map(
            |(mono_ns, socket, tuple, (old, new), pid, context, details)| Transition {
                mono_ns,
                socket,
                tuple,
                old,
                new,
                task: Task { pid, tid: pid, comm: Comm::default() },
                context,
                details,
                origin: Origin::Kernel,
            },
        )
    }

    fn reset() -> impl Strategy<Value = Reset> {
        let direction = prop_oneof![Just(ResetDirection::Sent), Just(ResetDirection::Received)];
        (time(), socket_id(), tuple(), state(), direction)
            .prop_map(|(mono_ns, socket, tuple, state, direction)| Reset { mono_ns, socket, tuple, state, direction })
    }

    fn dumped() -> impl Strategy<Value = Socket> {
        let kind = prop_oneof![
            4 => Just(SocketKind::Full),
            1 => any::<u32>().prop_map(|expires_in_ms| SocketKind::Mini { expires_in_ms }),
            1 => Just(SocketKind::Request),
        ];
        let info =
            prop::option::of((any::<u32>(), counter(), counter()).prop_map(|(last_ack_recv_ms, acked, received)| {
                TcpInfo { last_ack_recv_ms, bytes_acked: acked, bytes_received: received, ..TcpInfo::default() }
            }));
        (cookie(), tuple(), state(), kind, info, 0_u64..4).prop_map(|(cookie, tuple, state, kind, info, inode)| {
            Socket {
                cookie,
                tuple,
                state,
                kind,
                inode,
                cgroup: inode,
                uid: 0,
                receive_queue: 0,
                send_queue: 0,
                info,
                holder: (inode > 1).then(|| process(1)),
            }
        })
    }

    fn snapshot() -> impl Strategy<Value = Snapshot> {
        let complete_netns = prop::collection::vec(0_u32..3, 0..3);
        (time(), time(), complete_netns, prop::collection::vec(dumped(), 0..8)).prop_map(
            |(started_ns, ended_ns, complete_netns, sockets)| Snapshot {
                started_ns,
                ended_ns,
                complete_netns,
                sockets,
            },
        )
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            20 => transition().prop_map(Call::Transition),
            3 => reset().prop_map(Call::Reset),
            2 => time().prop_map(Call::Advance),
            1 => Just(Call::Flush),
            1 => prop::sample::select(&MergeKind::ALL[..]).prop_map(Call::SnapshotBegins),
            1 => Just(Call::SnapshotFailed),
            1 => snapshot().prop_map(Call::MergePart),
            2 => snapshot().prop_map(Call::Merge),
            1 => snapshot().prop_map(Call::MergeMinis),
        ]
    }

    fn latest_of(call: &Call) -> u64 {
        match call {
            Call::Transition(transition) => transition.mono_ns,
            Call::Reset(reset) => reset.mono_ns,
            Call::Advance(now_ns) => *now_ns,
            Call::MergePart(snapshot) | Call::Merge(snapshot) | Call::MergeMinis(snapshot) => {
                snapshot.started_ns.max(snapshot.ended_ns)
            }
            Call::Flush | Call::SnapshotBegins(_) | Call::SnapshotFailed => 0,
        }
    }

    /// Makes the calls, checks what holds after each, then closes everything that is open.
    fn make(calls: &[Call], max_connections: usize) -> Outcome {
        let mut tracker = Tracker::new(Limits { max_connections, ..Limits::default() });
        let mut effects = Effects::default();
        let mut latest_ns = 0;
        let mut handed_out = 0;
        for call in calls {
            latest_ns = latest_ns.max(latest_of(call));
            match call {
                Call::Transition(transition) => {
                    tracker.transition(transition, &mut effects);
                    if transition.new == State::CLOSE {
                        let entry = tracker.entries.of(transition.socket.key());
                        assert!(entry.is_none_or(|entry| entry.close.is_some()), "closed is closed");
                    }
                }
                Call::Reset(reset) => tracker.reset(reset),
                Call::Advance(now_ns) => tracker.advance(*now_ns, &mut effects),
                Call::Flush => {
                    tracker.flush(&mut effects);
                    assert_eq!(tracker.len(), tracker.open_connections(latest_ns).count());
                }
                Call::SnapshotBegins(kind) => tracker.snapshot_begins(*kind),
                Call::SnapshotFailed => tracker.snapshot_failed(),
                Call::MergePart(snapshot) => tracker.merge_part(snapshot, &mut effects),
                Call::Merge(snapshot) => tracker.merge(snapshot, &mut effects),
                Call::MergeMinis(snapshot) => tracker.merge_minis(snapshot),
            }
            check(&tracker);
            assert_eq!(tracker.counts().repaired, effects.repaired.len() as u64);
            for connection in &effects.ended[handed_out..] {
                check_ended(connection, latest_ns);
            }
            handed_out = effects.ended.len();
        }
        let open: Vec<Connection> = tracker.open_connections(latest_ns).collect();
        let ended = close_all(&mut tracker, &open, latest_ns);
        effects.ended.extend(ended);
        Outcome { ended: effects.ended, repaired: effects.repaired, open, counts: tracker.counts() }
    }

    /// Closes everything; nothing may be left anywhere.
    fn close_all(tracker: &mut Tracker, open: &[Connection], latest_ns: u64) -> Vec<Connection> {
        let mut effects = Effects::default();
        tracker.flush(&mut effects);
        assert_eq!(effects.ended.len() + open.len(), effects.ended.len() + tracker.len());
        let known: Vec<Place> = tracker.entries.iter().map(|(place, _)| place).collect();
        let before = effects.ended.len();
        for place in known {
            let entry = tracker.entries.get(place).expect("it is still there");
            let by_cookie = entry.key == entry.socket.key();
            let socket = if by_cookie { entry.socket } else { SocketId { cookie: 0, address: entry.socket.address } };
            let last = Transition {
                mono_ns: latest_ns,
                socket,
                tuple: entry.tuple,
                old: entry.state,
                new: State::CLOSE,
                task: Task::default(),
                context: Context::Unknown,
                details: None,
                origin: Origin::Kernel,
            };
            tracker.transition(&last, &mut effects);
        }
        tracker.flush(&mut effects);
        assert!(tracker.is_empty());
        assert!(tracker.closing.is_empty() && !tracker.entries.has_addresses());
        assert_eq!(effects.ended.len() - before, open.len(), "each open one is handed out, once");
        for connection in &effects.ended {
            check_ended(connection, latest_ns);
        }
        effects.ended
    }

    proptest! {
        #![proptest_config(cases(384))]

        #[test]
        fn nothing_panics_leaks_or_grows(calls in prop::collection::vec(call(), 0..80), max_connections in 1_usize..6) {
            make(&calls, max_connections);
        }

        #[test]
        fn with_room_enough_nothing_is_evicted(calls in prop::collection::vec(call(), 0..80)) {
            prop_assert_eq!(make(&calls, 1000).counts.evicted, 0);
        }

        #[test]
        fn the_same_calls_give_the_same(calls in prop::collection::vec(call(), 0..60), max_connections in 1_usize..6) {
            prop_assert_eq!(make(&calls, max_connections), make(&calls, max_connections));
        }

        #[test]
        fn a_dump_in_parts_is_the_same_as_a_whole_one(
            calls in prop::collection::vec(call(), 0..60), part in 1_usize..8, max_connections in 1_usize..6,
        ) {
            let whole: Vec<Call> = calls.into_iter().map(in_order).collect();
            let in_parts: Vec<Call> = whole.iter().flat_map(|call| parts_of(call, part)).collect();
            prop_assert_eq!(make(&whole, max_connections), make(&in_parts, max_connections));
        }
    }

    /// A dump as the kernel makes it: the listeners first, each socket with a cookie and ends of its own.
    fn in_order(mut call: Call) -> Call {
        if let Call::Merge(snapshot) = &mut call {
            snapshot.sockets.sort_by_key(|socket| socket.state != State::LISTEN);
            let (mut cookies, mut ends) = (HashSet::new(), HashSet::new());
            snapshot.sockets.retain(|socket| {
                socket.cookie != 0
                    && socket.tuple.netns != 0
                    && cookies.insert(socket.cookie)
                    && ends.insert(socket.tuple)
            });
        }
        call
    }

    fn parts_of(call: &Call, part: usize) -> Vec<Call> {
        let Call::Merge(whole) = call else { return vec![call.clone()] };
        let some = |sockets: &[Socket]| Snapshot { sockets: sockets.to_vec(), ..whole.clone() };
        let mut parts: Vec<Call> = whole
            .sockets
            .chunks(part)
            .map(|sockets| Call::MergePart(Snapshot { complete_netns: Vec::new(), ..some(sockets) }))
            .collect();
        parts.push(Call::Merge(some(&[])));
        parts
    }
}
