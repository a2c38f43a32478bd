//! What a close leaves behind: what the tracker makes of the transitions, against the kernel's list of sockets and, where
//! there are kprobes, the calls that make a mini-socket. What they would add to the other two is in docs/kernel.md.

use std::collections::HashMap;

use socket2::Socket;
use tracer::{
    core::{connection::AfterClose, endpoint::Endpoint, snapshot::SocketKind, state::State},
    source::{
        netns::Namespace,
        sock_diag::{self, Wanted},
    },
};

use crate::{
    lab::{self, BTF, Ends, Lab, run},
    net::{self, Family},
    peer::{ACK, FIN, Peer, RST, Wire, opened_by_host},
    trace::{Call, Calls},
};

/// Connections of each kind.
const EACH: usize = 20;

/// A way to close, and what the peer does about it.
struct Kind {
    name: &'static str,
    /// Nobody else uses these, for the calls are those of the whole machine.
    port: u16,
    close: fn(Socket, &mut Peer),
    kernels: AfterClose,
    tracers: AfterClose,
}

const KINDS: [Kind; 9] = [
    Kind {
        name: "close() first",
        port: 47_701,
        close: |socket, peer| {
            drop(socket);
            peer.take(FIN);
            peer.send(FIN | ACK, &[]);
        },
        kernels: AfterClose::TimeWait,
        tracers: AfterClose::TimeWait,
    },
    Kind {
        name: "the peer's FIN first",
        port: 47_702,
        close: |socket, peer| {
            peer.send(FIN | ACK, &[]);
            drop(socket);
            peer.take(FIN);
            peer.send(ACK, &[]);
        },
        kernels: AfterClose::None,
        tracers: AfterClose::None,
    },
    Kind {
        name: "both FINs cross",
        port: 47_703,
        close: |socket, peer| {
            let before_fin = peer.expected;
            drop(socket);
            peer.take(FIN);
            peer.send_acking(before_fin, FIN | ACK, &[]);
            peer.send(ACK, &[]);
        },
        kernels: AfterClose::TimeWait,
        tracers: AfterClose::TimeWait,
    },
    Kind {
        name: "an orphan in F2",
        port: 47_704,
        close: |socket, peer| {
            drop(socket);
            peer.take(FIN);
            peer.send(ACK, &[]);
        },
        kernels: AfterClose::FinWait2,
        tracers: AfterClose::FinWait2,
    },
    Kind {
        name: "close() in F2",
        port: 47_705,
        close: |socket, peer| {
            shut_down(&socket, peer);
            peer.send(ACK, &[]);
            drop(socket);
        },
        kernels: AfterClose::FinWait2,
        tracers: AfterClose::FinWait2,
    },
    Kind {
        name: "SO_LINGER 0 in F2",
        port: 47_706,
        close: |socket, peer| {
            shut_down(&socket, peer);
            peer.send(ACK, &[]);
            net::linger_zero(&socket);
            drop(socket);
            peer.take(RST);
        },
        kernels: AfterClose::None,
        tracers: AfterClose::None,
    },
    Kind {
        name: "TCP_LINGER2 below 0",
        port: 47_707,
        close: |socket, peer| {
            net::set_option(&socket, libc::IPPROTO_TCP, libc::TCP_LINGER2, -1);
            drop(socket);
            peer.take(FIN);
            peer.send(ACK, &[]);
            peer.take(RST);
        },
        kernels: AfterClose::None,
        tracers: AfterClose::None,
    },
    // The two that cannot be told from the transitions.
    Kind {
        name: "SO_LINGER 0 in CG",
        port: 47_708,
        close: |socket, peer| {
            let before_fin = peer.expected;
            shut_down(&socket, peer);
            peer.send_acking(before_fin, FIN | ACK, &[]);
            net::linger_zero(&socket);
            drop(socket);
        },
        kernels: AfterClose::None,
        tracers: AfterClose::TimeWait,
    },
    Kind {
        name: "close() first, table full",
        port: 47_709,
        close: |socket, peer| {
            net::sysctl("ipv4/tcp_max_tw_buckets", "0");
            drop(socket);
            peer.take(FIN);
            peer.send(FIN | ACK, &[]);
        },
        kernels: AfterClose::None,
        tracers: AfterClose::TimeWait,
    },
];

fn shut_down(socket: &Socket, peer: &mut Peer) {
    socket.shutdown(std::net::Shutdown::Write).expect("shutdown");
    peer.take(FIN);
}

/// Before 6.11 a mini-socket's life begins apart from its place in the table.
const MADE: &[&str] = &["inet_twsk_hashdance_schedule", "inet_twsk_hashdance"];

/// `skc_num` and `skc_dport`, which have been there since 3.8.
const PORTS: &str = "local=+14($arg1):u16 remote=+12($arg1):u16";

#[test]
fn what_a_close_leaves_is_what_the_kernel_keeps() {
    run(BTF, |lab| {
        let asked = format!("{PORTS} state=$arg2:s32");
        let calls = Calls::start(&[("asked", &["tcp_time_wait"], &asked), ("made", MADE, PORTS)]);
        let wire = Wire::new();
        let ends: Vec<Vec<Ends>> = KINDS.iter().map(|kind| closed(kind, lab, &wire)).collect();
        let seen = calls.as_ref().map(|calls| kept_by(&calls.seen()));
        if seen.is_none() {
            lab::differs("it has no kprobes: what makes mini-sockets is not watched");
        }
        let listed = listed();
        for (kind, ends) in KINDS.iter().zip(ends) {
            let mut latest_us = 0;
            for ends in &ends {
                let connection = lab.connection(ends);
                assert_eq!(connection.after_close, kind.tracers, "the tracker, of {}", kind.name);
                let ports = (ends.local.port(), ends.remote.port());
                assert_eq!(
                    *listed.get(&ports).unwrap_or(&AfterClose::None),
                    kind.kernels,
                    "the list, of {}",
                    kind.name
                );
                let Some(seen) = &seen else { continue };
                let made = seen.get(&ports);
                assert_eq!(
                    made.map_or(AfterClose::None, |(kept, _)| *kept),
                    kind.kernels,
                    "the calls, of {}",
                    kind.name
                );
                if let (Some((_, made_ns)), Some(ended_ns)) = (made, connection.ended_ns) {
                    latest_us = latest_us.max(made_ns.abs_diff(ended_ns) / 1000);
                }
            }
            println!(
                "{:<26} {} connections: the kernel keeps {}, the tracker says {}, apart by {latest_us} µs at most",
                kind.name,
                ends.len(),
                kind.kernels.name(),
                kind.tracers.name()
            );
        }
        lab.forget_lives();
    });
}

/// Connections that were closed in this way, whose ends are no longer open.
fn closed(kind: &Kind, lab: &mut Lab, wire: &std::rc::Rc<Wire>) -> Vec<Ends> {
    let ends: Vec<Ends> = (0..EACH)
        .map(|_| {
            let (socket, mut peer, ends) = opened_by_host(lab, wire, Family::V4, kind.port);
            (kind.close)(socket, &mut peer);
            ends
        })
        .collect();
    lab.settle("end of all", |lab| lab.open().is_empty());
    ends
}

/// By the ports of this end and the other: what the kernel's functions have made.
fn kept_by(calls: &[Call]) -> HashMap<(u16, u16), (AfterClose, u64)> {
    let ports = |call: &Call| {
        let port = |name: &str| u16::try_from(call.argument(name)).expect("a port");
        (port("local"), port("remote").swap_bytes())
    };
    let mut asked = HashMap::new();
    let mut kept = HashMap::new();
    for call in calls {
        if call.name == "asked" {
            asked.insert(ports(call), call.argument("state"));
        } else if let Some(state) = asked.get(&ports(call)) {
            let after =
                if *state == i64::from(State::TIME_WAIT.0) { AfterClose::TimeWait } else { AfterClose::FinWait2 };
            kept.insert(ports(call), (after, call.mono_ns));
        }
    }
    kept
}

/// Likewise: what the kernel lists.
fn listed() -> HashMap<(u16, u16), AfterClose> {
    let own = Namespace::own().expect("a namespace");
    let snapshot = sock_diag::dump(&[own], Wanted::MINI_SOCKETS).expect("a dump");
    let minis = snapshot.sockets.iter().filter(|socket| matches!(socket.kind, SocketKind::Mini { .. }));
    let ports = |end: Endpoint| end.port;
    minis
        .map(|socket| {
            let after = if socket.state == State::TIME_WAIT { AfterClose::TimeWait } else { AfterClose::FinWait2 };
            ((ports(socket.tuple.local), ports(socket.tuple.remote)), after)
        })
        .collect()
}
