//! Lives of connections as the kernel leads them, without a kernel. What the benches and the test of memory are fed with.

use tracer::core::{
    endpoint::{Address, Endpoint, Tuple},
    state::State,
    transition::{Comm, Context, Details, Errno, KernelAddress, Origin, SocketId, Task, Transition},
};

const NETNS: u32 = 4_026_531_840;

/// Local ports towards one destination, as `net.ipv4.ip_local_port_range` has them.
const PORTS: u64 = 28_000;

/// This side connects, and closes first: it keeps a TIME_WAIT.
pub(crate) const ACTIVE: [(State, State); 5] = [
    (State::CLOSE, State::SYN_SENT),
    (State::SYN_SENT, State::ESTABLISHED),
    (State::ESTABLISHED, State::FIN_WAIT1),
    (State::FIN_WAIT1, State::FIN_WAIT2),
    (State::FIN_WAIT2, State::CLOSE),
];

/// The other end of it.
pub(crate) const PASSIVE: [(State, State); 5] = [
    (State::LISTEN, State::SYN_RECV),
    (State::SYN_RECV, State::ESTABLISHED),
    (State::ESTABLISHED, State::CLOSE_WAIT),
    (State::CLOSE_WAIT, State::LAST_ACK),
    (State::LAST_ACK, State::CLOSE),
];

/// The ends of the connection of that number, as the side that connects has them. No two numbers have the same.
pub(crate) fn tuple(number: u64) -> Tuple {
    let [.., a, b, c] = (number / PORTS).to_be_bytes();
    let local = Endpoint::new(Address::v4([10, 0, 0, 1]), 32_768 + (number % PORTS) as u16);
    Tuple { netns: NETNS, local, remote: Endpoint::new(Address::v4([11, a, b, c]), 443) }
}

/// As the other side has them.
pub(crate) fn mirrored(tuple: Tuple) -> Tuple {
    Tuple { local: tuple.remote, remote: tuple.local, ..tuple }
}

/// A step in the life of a socket, with all that the kernel tells where it has BTF.
pub(crate) fn step(cookie: u64, tuple: Tuple, (old, new): (State, State), mono_ns: u64) -> Transition {
    let by_its_process = matches!(new, State::SYN_SENT | State::FIN_WAIT1 | State::LAST_ACK);
    let pid = 1000 + (cookie % 50) as u32;
    Transition {
        mono_ns,
        socket: SocketId { cookie, address: KernelAddress(0xffff_8880_0000_0000 + cookie * 2432) },
        tuple,
        old,
        new,
        task: Task { pid, tid: pid, comm: Comm::from("server") },
        context: if by_its_process { Context::Process } else { Context::Softirq },
        details: Some(Details {
            fin_received: matches!(new, State::CLOSE | State::CLOSE_WAIT | State::LAST_ACK),
            orphaned: new == State::CLOSE,
            send_shutdown: matches!(new, State::FIN_WAIT1 | State::LAST_ACK | State::CLOSE),
            previous_port: 0,
            linger: false,
            mptcp: false,
            inode: if new == State::CLOSE || new == State::SYN_RECV { 0 } else { 1_000_000 + cookie },
            cgroup: 77,
            uid: 1000,
            error: Errno::NONE,
            bytes_received: 100,
            bytes_acked: 100,
            srtt_us: 50,
            retransmits: 0,
        }),
        origin: Origin::Kernel,
    }
}
