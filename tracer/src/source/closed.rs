//! Sockets in CLOSE to which a descriptor still refers. No list has them; they show as `socket:[inode]` in /proc/PID/fd
//! and nowhere else.
//!
//! Only a duplicate of the descriptor (pidfd_getfd) tells a connection that is over from a socket that has not been
//! connected yet. It is taken of as few sockets as can be, for some microseconds: while it is held, the program's close()
//! would not be the last one. Nothing is asked of it that changes the socket: SO_ERROR, which would take the error away
//! from the program, is left alone.

use std::{
    fs,
    io::{self, ErrorKind},
    net::TcpStream,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    libc,
    sys::socket::{getsockopt, sockopt::GetStruct},
};
use rustc_hash::FxHashSet;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::{
    netns::{self, Namespace},
    owners::Owners,
    sock_diag::{self, Wanted},
};
use crate::core::{
    endpoint::{Endpoint, Tuple},
    finding::{ClosedSocket, Holder},
    snapshot::Socket,
    state::State,
};

/// A socket that is about to connect, or to be closed, is given this long to do so.
const PATIENCE: Duration = Duration::from_millis(300);

/// Up to where `struct tcp_info` is read; that much of it is as old as the tracepoint.
const TCP_INFO: usize = 160;

#[derive(Clone, Copy)]
struct GetTcpInfo;
nix::getsockopt_impl!(GetTcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, [u8; TCP_INFO], GetStruct<[u8; TCP_INFO]>);
nix::ioctl_none_bad!(
    /// A descriptor of the socket's network namespace.
    siocgskns,
    0x894C
);

/// What a look has found.
#[derive(Debug, Default)]
pub struct Closed {
    /// Connections that are over.
    pub sockets: Vec<ClosedSocket>,
    /// TCP sockets that no list has and that may not be looked at.
    pub denied: usize,
}

/// Looks for them among the holders' descriptors; `listed` are the inodes that a dump just before has.
pub fn find(owners: &Owners, listed: &FxHashSet<u64>) -> Result<Closed> {
    let mut suspects: Vec<(u64, Holder)> = owners
        .sockets()
        .filter(|(inode, _)| !listed.contains(inode))
        .filter(|(_, holder)| may_be_tcp(*holder))
        .collect();
    let began = Instant::now();
    for pause in [Duration::ZERO, PATIENCE] {
        if suspects.is_empty() {
            return Ok(Closed::default());
        }
        thread::sleep(pause);
        // Of all namespaces, whatever the filters say: a process may hold sockets of several.
        let pids: FxHashSet<u32> = suspects.iter().map(|(_, holder)| holder.pid).collect();
        let listed = all_listed(&netns::all_and_of_threads(pids)?)?;
        suspects.retain(|(inode, holder)| !listed.contains(inode) && still_holds(*holder, *inode));
    }
    let unlisted_for = began.elapsed();
    let mut closed = Closed::default();
    for (inode, holder) in suspects {
        match inspect(inode, holder) {
            Ok(found) => closed.sockets.extend(found.map(|mut socket| {
                socket.was_unlisted_for(unlisted_for.as_nanos() as u64);
                socket
            })),
            Err(error) => closed.denied += usize::from(error.kind() == ErrorKind::PermissionDenied),
        }
    }
    Ok(closed)
}

fn path_of(holder: Holder) -> String {
    format!("/proc/{}/fd/{}", holder.pid, holder.fd)
}

/// By the protocol that its file was made for: what an MPTCP listener accepted from a peer without MPTCP is TCP.
fn may_be_tcp(holder: Holder) -> bool {
    let mut name = [0; 16];
    let length = rustix::fs::getxattr(path_of(holder), "system.sockprotoname", &mut name[..]).unwrap_or(0);
    matches!(&name[..length], b"TCP\0" | b"TCPv6\0" | b"MPTCP\0" | b"MPTCPv6\0")
}

fn all_listed(namespaces: &[Namespace]) -> Result<FxHashSet<u64>> {
    let mut listed = FxHashSet::default();
    let mut list = |socket: Socket| {
        listed.insert(socket.inode);
    };
    sock_diag::visit(namespaces, Wanted::WITH_FILE, &mut list)?;
    // A kernel without MPTCP has none to list.
    let _ = sock_diag::visit(namespaces, Wanted::MPTCP_WITH_FILE, &mut list);
    Ok(listed)
}

fn still_holds(holder: Holder, inode: u64) -> bool {
    fs::metadata(path_of(holder)).is_ok_and(|file| file.ino() == inode)
}

/// `None` when it is no connection that is over, or not the holder's any more.
fn inspect(inode: u64, holder: Holder) -> io::Result<Option<ClosedSocket>> {
    let Some(pid) = i32::try_from(holder.pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let socket = pidfd_getfd(process, holder.fd, PidfdGetfdFlags::empty())?;
    // The number may stand for another file by now.
    if rustix::fs::fstat(&socket)?.st_ino != inode {
        return Ok(None);
    }
    if rustix::net::sockopt::socket_protocol(&socket)? != Some(rustix::net::ipproto::TCP) {
        return Ok(None);
    }
    let bytes = tcp_info(&socket)?;
    let Some(info) = sock_diag::decode_info(&bytes).filter(|_| State(bytes[0]) == State::CLOSE) else {
        return Ok(None);
    };
    // The peer's options and the round trip time stay from the handshake. connect() that failed, or was taken back
    // (AF_UNSPEC), leaves neither.
    let (options, rtt) = (bytes[5], &bytes[68..72]);
    if options == 0 && rtt == [0; 4] && info.bytes_acked == 0 && info.bytes_received == 0 {
        return Ok(None);
    }
    let netns = netns_of(&socket).or_else(|| netns_of_process(holder.pid)).unwrap_or(0);
    let cookie = rustix::net::sockopt::socket_cookie(&socket)?;
    let quiet_ms = info.last_data_sent_ms.min(info.last_data_recv_ms).min(info.last_ack_recv_ms);
    let local = TcpStream::from(socket).local_addr()?;
    let local = Endpoint::new(local.ip(), local.port());
    Ok(Some(ClosedSocket {
        inode,
        cookie,
        tuple: Tuple { netns, local, remote: Endpoint::UNKNOWN },
        quiet_ns: u64::from(quiet_ms) * 1_000_000,
        closed_for_ns: 0,
    }))
}

/// `struct tcp_info` of a socket, as far as all kernels have it.
pub(super) fn tcp_info(socket: &OwnedFd) -> io::Result<[u8; TCP_INFO]> {
    Ok(getsockopt(socket, GetTcpInfo)?)
}

fn netns_of(socket: &OwnedFd) -> Option<u32> {
    // SAFETY: SIOCGSKNS takes no argument and returns a new descriptor, which belongs to nobody else.
    let namespace = unsafe { siocgskns(socket.as_raw_fd()).map(|fd| OwnedFd::from_raw_fd(fd)) }.ok()?;
    u32::try_from(rustix::fs::fstat(namespace).ok()?.st_ino).ok()
}

/// Where the socket cannot be asked (that takes CAP_NET_ADMIN), its holder's, which it nearly always is.
fn netns_of_process(pid: u32) -> Option<u32> {
    u32::try_from(fs::metadata(Path::new(&format!("/proc/{pid}/ns/net"))).ok()?.ino()).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, UdpSocket},
        os::{fd::AsFd, unix::net::UnixDatagram},
    };

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt::Linger};

    use super::*;

    fn inode_of(socket: &impl AsFd) -> u64 {
        rustix::fs::fstat(socket).expect("fstat").st_ino
    }

    /// A client and a server, of which the latter has been reset.
    fn reset(listener: &TcpListener) -> TcpStream {
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        let (server, _) = listener.accept().expect("accepted");
        setsockopt(&client, Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("SO_LINGER");
        drop(client);
        server
    }

    #[test]
    fn only_a_connection_that_is_over_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let over = reset(&listener);
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        let new = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let (fresh, bound) = (new(), new());
        bind(bound.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("bound");
        let refused = new();
        nix::sys::socket::connect(refused.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 1)).expect_err("refused");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        let unix = UnixDatagram::unbound().expect("a unix socket");

        let own = Namespace::own().expect("a namespace");
        let found = find(&Owners::scan(), &all_listed(std::slice::from_ref(&own)).expect("a dump"));
        let found = found.expect("a look").sockets;
        let of = |inode| found.iter().find(|socket| socket.inode == inode);
        let known = of(inode_of(&over)).expect("what was reset");
        assert_eq!(known.tuple.netns, own.inum);
        let local = over.local_addr().expect("its address");
        assert_eq!(known.tuple.local, Endpoint::new(local.ip(), local.port()));
        assert!(known.cookie != 0 && known.closed_for_ns >= PATIENCE.as_nanos() as u64);
        for other in [inode_of(&listener), inode_of(&client), inode_of(&fresh), inode_of(&bound), inode_of(&refused)] {
            assert_eq!(of(other), None);
        }
        assert_eq!((of(inode_of(&udp)), of(inode_of(&unix))), (None, None));
        let error = over.take_error().expect("SO_ERROR").expect("an error");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "the program's error is still the program's");
    }
}
