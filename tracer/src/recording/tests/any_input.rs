//! Anything that a trace may hear.

use std::sync::Arc;

use proptest::{collection::vec, prelude::*};

use super::Heard;
use crate::core::{
    connection::{Process, ProcessSource},
    endpoint::{Address, Endpoint, Tuple},
    finding::{
        ClosedSocket, DescriptorUsage, Facts, Holder, NamespaceCounters, NamespaceFacts, PortRange, PortSettings,
    },
    input::{Counters, Input, Loss},
    snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
    state::State,
    tracker::{Annotation, MergeKind},
    transition::{
        Comm, Context, Details, Errno, Event, KernelAddress, Origin, Reset, ResetDirection, SocketId, Task, Transition,
    },
};

/// As the kernel gives them: none of these may be in a file.
pub(super) const FIRST_ADDRESS: u64 = 0xffff_8880_1bad_c0de;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0_u64..4, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0_u32..4, 1 => any::<u32>()]
}

fn time() -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0_u64..200).prop_map(|steps| steps * 10_000_000), 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

/// A cookie, or an address, or both. Cookies that look like addresses are left out: no kernel gives them, and whether
/// they meet one is decided by the key of the hash.
fn socket_id() -> impl Strategy<Value = SocketId> {
    let cookie = prop_oneof![2 => 0_u64..5, 1 => 0..u64::MAX >> 1];
    (cookie, 0_u64..4).prop_map(|(cookie, number)| {
        let address = if number == 0 && cookie != 0 { 0 } else { FIRST_ADDRESS + number * 2048 };
        SocketId { cookie, address: KernelAddress(address) }
    })
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![12 => (1_u8..13).prop_map(State), 1 => any::<u8>().prop_map(State)]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let address = prop_oneof![
        Just(Address::UNSPECIFIED),
        Just(Address::v4([0; 4])),
        Just(Address::v4([10, 0, 0, 1])),
        any::<[u8; 4]>().prop_map(Address::v4),
        any::<[u8; 16]>().prop_map(Address::v6),
    ];
    (address, prop_oneof![0_u16..3, any::<u16>()]).prop_map(|(address, port)| Endpoint { address, port })
}

fn tuple() -> impl Strategy<Value = Tuple> {
    (small(), endpoint(), endpoint()).prop_map(|(netns, local, remote)| Tuple { netns, local, remote })
}

fn comm() -> impl Strategy<Value = Comm> {
    prop_oneof![Just(Comm::from("app")), any::<[u8; 16]>().prop_map(Comm::new)]
}

fn process() -> impl Strategy<Value = Process> {
    let sources = [ProcessSource::Opener, ProcessSource::Holder, ProcessSource::Closer, ProcessSource::Listener];
    (any::<u32>(), comm(), prop::sample::select(sources.to_vec())).prop_map(|(pid, comm, source)| Process {
        pid,
        comm,
        source,
    })
}

fn details() -> impl Strategy<Value = Details> {
    let flags = any::<[bool; 5]>();
    let numbers = (number(), number(), number(), number());
    (flags, numbers, any::<u16>(), small(), small(), small(), small()).prop_map(
        |(flags, (inode, cgroup, received, acked), previous_port, uid, error, srtt_us, retransmits)| Details {
            fin_received: flags[0],
            orphaned: flags[1],
            send_shutdown: flags[2],
            linger: flags[3],
            mptcp: flags[4],
            previous_port,
            inode,
            cgroup,
            uid,
            error: Errno(error),
            bytes_received: received,
            bytes_acked: acked,
            srtt_us,
            retransmits,
        },
    )
}

fn transition() -> impl Strategy<Value = Transition> {
    let context = prop_oneof![Just(Context::Process), Just(Context::Softirq), Just(Context::Unknown)];
    let origin = prop_oneof![8 => Just(Origin::Kernel), 1 => Just(Origin::Repaired), 1 => Just(Origin::Snapshot)];
    let task = (small(), small(), comm()).prop_map(|(pid, tid, comm)| Task { pid, tid, comm });
    (time(), socket_id(), tuple(), (state(), state()), task, context, prop::option::of(details()), origin).prop_map(
        |(mono_ns, socket, tuple, (old, new), task, context, details, origin)| Transition {
            mono_ns,
            socket,
            tuple,
            old,
            new,
            task,
            context,
            details,
            origin,
        },
    )
}

fn reset() -> impl Strategy<Value = Reset> {
    let direction = prop_oneof![Just(ResetDirection::Sent), Just(ResetDirection::Received)];
    (time(), socket_id(), tuple(), state(), direction).prop_map(|(mono_ns, socket, tuple, state, direction)| Reset {
        mono_ns,
        socket,
        tuple,
        state,
        direction,
    })
}

fn socket() -> impl Strategy<Value = Socket> {
    let kind = prop_oneof![
        4 => Just(SocketKind::Full),
        1 => any::<u32>().prop_map(|expires_in_ms| SocketKind::Mini { expires_in_ms }),
        1 => Just(SocketKind::Request),
    ];
    let info = (any::<[u32; 3]>(), number(), number()).prop_map(|(ms, bytes_acked, bytes_received)| TcpInfo {
        last_data_sent_ms: ms[0],
        last_data_recv_ms: ms[1],
        last_ack_recv_ms: ms[2],
        bytes_acked,
        bytes_received,
    });
    let numbers = (0_u64..u64::MAX >> 1, number(), number(), small(), small(), small());
    let holder = process().prop_map(|process| Process { source: ProcessSource::Holder, ..process });
    (numbers, tuple(), state(), kind, prop::option::of(info), prop::option::of(holder)).prop_map(
        |((cookie, inode, cgroup, uid, receive_queue, send_queue), tuple, state, kind, info, holder)| Socket {
            cookie,
            tuple,
            state,
            kind,
            inode,
            cgroup,
            uid,
            receive_queue,
            send_queue,
            info,
            holder,
        },
    )
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    (time(), time(), vec(small(), 0..3), vec(socket(), 0..6)).prop_map(
        |(started_ns, ended_ns, complete_netns, sockets)| Snapshot { started_ns, ended_ns, complete_netns, sockets },
    )
}

fn namespace() -> impl Strategy<Value = NamespaceFacts> {
    let range = || (any::<u16>(), any::<u16>()).prop_map(|(first, last)| PortRange { first, last });
    let number = || prop::option::of(number());
    (range(), vec(range(), 0..3), number(), number(), any::<[u64; 2]>(), any::<u8>()).prop_map(
        |(range, reserved, mini_sockets, time_wait_max, counters, time_wait_reuse)| NamespaceFacts {
            ports: PortSettings { range, reserved, time_wait_reuse },
            mini_sockets,
            time_wait_max,
            counters: NamespaceCounters { time_wait_overflows: counters[0], listen_overflows: counters[1] },
        },
    )
}

fn facts() -> impl Strategy<Value = Facts> {
    let closed = (any::<[u64; 4]>(), tuple()).prop_map(|([inode, cookie, quiet_ns, closed_for_ns], tuple)| {
        ClosedSocket { inode, cookie, tuple, quiet_ns, closed_for_ns }
    });
    let holder = (any::<u32>(), comm(), any::<i32>()).prop_map(|(pid, comm, fd)| Holder { pid, comm, fd });
    let usage =
        (any::<u64>(), prop::option::of(any::<u64>())).prop_map(|(used, limit)| DescriptorUsage { used, limit });
    let sockets = (vec(socket(), 0..4), vec(closed, 0..3));
    let holders = vec((any::<u64>(), vec(holder, 0..3)), 0..3);
    let others = (vec((small(), usage), 0..3), vec((small(), namespace()), 0..3), vec((number(), "[ -~]{0,9}"), 0..3));
    (time(), any::<u64>(), sockets, holders, others, any::<usize>()).prop_map(
        |(now_ns, window_ns, (sockets, closed), holders, others, unreadable_processes)| Facts {
            now_ns,
            window_ns,
            sockets,
            closed,
            holders: holders.into_iter().collect(),
            descriptors: others.0.into_iter().collect(),
            namespaces: others.1.into_iter().collect(),
            cgroups: others.2.into_iter().map(|(id, path)| (id, Arc::from(path))).collect(),
            unreadable_processes,
        },
    )
}

fn other() -> impl Strategy<Value = Input> {
    let counters = vec((small(), any::<[u64; 2]>()), 0..3);
    let counters = (time(), counters).prop_map(|(now_ns, namespaces)| Counters {
        now_ns,
        namespaces: namespaces
            .into_iter()
            .map(|(netns, [overflows, listen])| {
                (netns, NamespaceCounters { time_wait_overflows: overflows, listen_overflows: listen })
            })
            .collect(),
    });
    let loss =
        any::<[u64; 4]>().prop_map(|[seen, dropped, missed, resets_lost]| Loss { seen, dropped, missed, resets_lost });
    prop_oneof![
        4 => time().prop_map(Input::Now),
        1 => socket_id().prop_map(Input::Forget),
        1 => prop::sample::select(&MergeKind::ALL[..]).prop_map(Input::DumpBegins),
        1 => Just(Input::DumpFailed),
        1 => snapshot().prop_map(Input::DumpPart),
        2 => snapshot().prop_map(Input::Dump),
        1 => snapshot().prop_map(Input::MiniSockets),
        1 => loss.prop_map(Input::Loss),
        1 => counters.prop_map(Input::Counters),
        1 => facts().prop_map(|facts| Input::Facts(Box::new(facts))),
    ]
}

pub(super) fn heard() -> impl Strategy<Value = Heard> {
    let annotation = (prop::option::of(tuple()), any::<bool>(), prop::option::of(process()), number()).prop_map(
        |(tuple, no_port, process, cgroup)| Annotation { tuple, no_port, process, cgroup, in_state_ns: Some(cgroup) },
    );
    let input = prop_oneof![
        6 => transition().prop_map(|transition| Input::Event(Event::Transition(transition))),
        1 => reset().prop_map(|reset| Input::Event(Event::Reset(reset))),
        3 => other(),
    ];
    (input, annotation).prop_map(|(input, annotation)| Heard { input, annotation })
}
