//! The kernel's own list of TCP sockets, over netlink (`sock_diag`, what `ss` uses).
//!
//! The answers are decoded here: netlink-packet-sock-diag leaves out `idiag_expires` of mini-sockets, which is the only
//! place where the age of a TIME_WAIT is told, and the cgroup id.
//!
//! A dump covers the network namespace of the netlink socket, so each namespace is entered. It lists no socket that is
//! in CLOSE.

use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket as NetlinkSocket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::{clock::monotonic_ns, netns::Namespace};
use crate::core::{
    endpoint::{Endpoint, Tuple},
    snapshot::{Snapshot, Socket, SocketKind, TcpInfo},
    state::State,
};

// linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The tables changed so much during the dump that it is not consistent.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_MPTCP: u32 = 262;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// `idiag_timer` of a mini-socket.
const TIMER_MINI: u8 = 3;
const LISTENING: u32 = 1 << State::LISTEN.0;
const NLMSG_HEADER: usize = 16;
const INET_DIAG_REQ_V2: usize = 56;
const ATTRIBUTE_U32: usize = 8;
const INET_DIAG_MSG: usize = 72;

/// The kernel fills a datagram of at most this size.
const RECEIVE_BUFFER: usize = 256 << 10;

/// Which sockets to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A bit for each state.
    states: u32,
    protocol: u32,
}

impl Wanted {
    /// Every socket that the kernel lists.
    pub const ALL: Self = Self::tcp(!0);
    /// What a file may refer to: all but TIME_WAIT and incomplete handshakes.
    pub const WITH_FILE: Self = Self::tcp(!(1 << State::TIME_WAIT.0 | 1 << State::NEW_SYN_RECV.0));
    /// The same of MPTCP: sockets over subflows, which are TCP and in the other dumps.
    pub const MPTCP_WITH_FILE: Self = Self { protocol: IPPROTO_MPTCP, ..Self::WITH_FILE };
    /// TIME_WAIT and FIN_WAIT2: the mini-sockets, and the few full sockets in FIN_WAIT2.
    pub const MINI_SOCKETS: Self = Self::tcp(1 << State::TIME_WAIT.0 | 1 << State::FIN_WAIT2.0);

    const fn tcp(states: u32) -> Self {
        Self { states, protocol: IPPROTO_TCP as u32 }
    }
}

/// Dumps several namespaces. One that cannot be dumped to its end (it is gone, or may not be entered) is not among the
/// snapshot's complete ones; only when none can is that an error.
pub fn dump(namespaces: &[Namespace], wanted: Wanted) -> Result<Snapshot> {
    let mut sockets = Vec::new();
    let dumped = visit(namespaces, wanted, &mut |socket| sockets.push(socket))?;
    Ok(Snapshot { sockets, ..dumped })
}

/// A dump that hands out its sockets one by one, in each namespace the listeners first, and has none in the end: of a
/// million, most may not be wanted for long.
pub fn visit(namespaces: &[Namespace], wanted: Wanted, take: &mut (dyn FnMut(Socket) + Send)) -> Result<Snapshot> {
    let mut snapshot = Snapshot { started_ns: monotonic_ns(), ..Snapshot::default() };
    let mut first_error = None;
    for namespace in namespaces {
        let mut here = || visit_here(namespace.inum, wanted, take);
        match namespace.enter(&mut here).and_then(|result| result) {
            Ok(true) => snapshot.complete_netns.push(namespace.inum),
            Ok(false) => {}
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    snapshot.ended_ns = monotonic_ns();
    match first_error {
        Some(error) if snapshot.complete_netns.is_empty() => Err(error.context("cannot list sockets (sock_diag)")),
        _ => Ok(snapshot),
    }
}

/// Dumps the current thread's namespace, IPv4 and IPv6; false when the tables changed too much for it to be complete.
fn visit_here(netns: u32, wanted: Wanted, take: &mut dyn FnMut(Socket)) -> Result<bool> {
    let mut socket = NetlinkSocket::new(NETLINK_SOCK_DIAG).context("cannot open a netlink socket")?;
    socket.bind_auto().context("cannot bind a netlink socket")?;
    let mut whole = true;
    // The kernel goes through the listeners in a table of their own (inet_diag_dump_icsk()).
    for states in [wanted.states & LISTENING, wanted.states & !LISTENING] {
        for family in [AF_INET, AF_INET6] {
            if states != 0 {
                let request = request(family, Wanted { states, ..wanted });
                socket.send_to(&request, &SocketAddr::new(0, 0), 0).context("cannot send a sock_diag request")?;
                whole &= receive(&socket, netns, take)?;
            }
        }
    }
    Ok(whole)
}

/// `struct inet_diag_req_v2` in a netlink message. A protocol whose number is too large for its place is told in an
/// attribute, which old kernels refuse.
fn request(family: u8, wanted: Wanted) -> Vec<u8> {
    let mut bytes = vec![0; NLMSG_HEADER + INET_DIAG_REQ_V2];
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes[16] = family;
    bytes[17] = IPPROTO_TCP;
    bytes[18] = 1 << (INET_DIAG_INFO - 1);
    bytes[20..24].copy_from_slice(&wanted.states.to_ne_bytes());
    if wanted.protocol > u32::from(u8::MAX) {
        bytes.extend((ATTRIBUTE_U32 as u16).to_ne_bytes());
        bytes.extend(INET_DIAG_REQ_PROTOCOL.to_ne_bytes());
        bytes.extend(wanted.protocol.to_ne_bytes());
    }
    let length = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// Receives one dump to its end; false when it is not consistent.
fn receive(socket: &NetlinkSocket, netns: u32, take: &mut dyn FnMut(Socket)) -> Result<bool> {
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    let mut whole = true;
    loop {
        buffer.clear();
        let length = socket.recv(&mut buffer, 0).context("cannot receive a sock_diag answer")?;
        let mut rest = &buffer[..length.min(buffer.len())];
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|error| anyhow!("sock_diag answer: {error}"))?;
            let payload = message.payload();
            whole &= message.flags() & NLM_F_DUMP_INTR == 0;
            match message.message_type() {
                NLMSG_DONE => return Ok(whole),
                NLMSG_ERROR => bail!("sock_diag refused: {}", error_in(payload)),
                SOCK_DIAG_BY_FAMILY => decode(payload, netns).into_iter().for_each(&mut *take),
                _ => {}
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or(&[]);
        }
    }
}

fn error_in(payload: &[u8]) -> std::io::Error {
    let code = u32_at(payload, 0).unwrap_or(0) as i32;
    std::io::Error::from_raw_os_error(code.wrapping_neg())
}

/// `struct inet_diag_msg` and its attributes; `None` when it is too short to be one.
fn decode(bytes: &[u8], netns: u32) -> Option<Socket> {
    let (message, attributes) = bytes.split_at_checked(INET_DIAG_MSG)?;
    let (family, state, timer) = (message[0], State(message[1]), message[2]);
    let end = |port_at: usize, address_at: usize| {
        let port = u16::from_be_bytes([message[port_at], message[port_at + 1]]);
        let address = array_at::<16>(message, address_at)?;
        Some(Endpoint::from_bytes(family == AF_INET6, address, port))
    };
    let mut info = None;
    let mut cgroup = 0;
    for attribute in NlasIterator::new(attributes).flatten() {
        match attribute.kind() {
            INET_DIAG_INFO => info = decode_info(attribute.value()),
            INET_DIAG_CGROUP_ID => cgroup = u64_at(attribute.value(), 0).unwrap_or(0),
            _ => {}
        }
    }
    let kind = if timer == TIMER_MINI {
        SocketKind::Mini { expires_in_ms: u32_at(message, 52)? }
    } else if state == State::SYN_RECV && info.is_none() {
        SocketKind::Request
    } else {
        SocketKind::Full
    };
    Some(Socket {
        cookie: u64_at(message, 44)?,
        tuple: Tuple { netns, local: end(4, 8)?, remote: end(6, 24)? },
        state,
        kind,
        inode: u64::from(u32_at(message, 68)?),
        cgroup,
        uid: u32_at(message, 64)?,
        receive_queue: u32_at(message, 56)?,
        send_queue: u32_at(message, 60)?,
        info,
        holder: None,
    })
}

/// `struct tcp_info`, which grows from kernel to kernel at its end.
pub(super) fn decode_info(bytes: &[u8]) -> Option<TcpInfo> {
    Some(TcpInfo {
        last_data_sent_ms: u32_at(bytes, 44)?,
        last_data_recv_ms: u32_at(bytes, 52)?,
        last_ack_recv_ms: u32_at(bytes, 56)?,
        bytes_acked: u64_at(bytes, 120)?,
        bytes_received: u64_at(bytes, 128)?,
    })
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sockets_of_this_process_are_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let client = TcpStream::connect(address).expect("a connection");
        let (_server, _) = listener.accept().expect("accepted");
        let own = Namespace::own().expect("a namespace");
        let snapshot = dump(std::slice::from_ref(&own), Wanted::ALL).expect("a dump");
        assert_eq!(snapshot.complete_netns, [own.inum]);
        let find = |state: State, local: std::net::SocketAddr| {
            let local = Endpoint::new(local.ip(), local.port());
            snapshot.sockets.iter().find(|socket| socket.state == state && socket.tuple.local == local)
        };
        let listening = find(State::LISTEN, address).expect("the listener");
        assert_eq!(listening.kind, SocketKind::Full);
        let connected = find(State::ESTABLISHED, client.local_addr().expect("local")).expect("the client");
        assert_eq!(connected.tuple.remote, Endpoint::new(address.ip(), address.port()));
        assert!(connected.cookie != 0 && connected.inode != 0 && connected.info.is_some());
    }

    proptest! {
        #[test]
        fn any_answer_decodes_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes, 1);
            let _ = decode_info(&bytes);
            let _ = error_in(&bytes);
        }
    }
}
