//! Sockets, interfaces and settings of the current namespace.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::lab::PATIENCE;

/// What an address family means for a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    /// IPv4 spoken by IPv6 sockets: a dual-stack server, a client that connects to a v4-mapped address.
    Mapped,
}

impl Family {
    pub(crate) const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    pub(crate) fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 | Self::Mapped => Domain::IPV6,
        }
    }

    pub(crate) fn loopback(self) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// What a listener of this family binds to: the dual-stack one can only bind to everything.
    pub(crate) fn bind_address(self) -> IpAddr {
        match self {
            Self::Mapped => Ipv6Addr::UNSPECIFIED.into(),
            _ => self.loopback(),
        }
    }

    pub(crate) fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 | Self::Mapped => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The address as a socket of this family takes it.
    pub(crate) fn sockaddr(self, address: SocketAddr) -> SockAddr {
        match (self, address.ip()) {
            (Self::Mapped, IpAddr::V4(ip)) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()).into(),
            _ => address.into(),
        }
    }
}

pub(crate) fn socket(family: Family) -> Socket {
    let socket = Socket::new(family.domain(), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    // A test that waits for something that does not come must fail, not hang.
    socket.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    socket.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
    socket
}

/// Listens on a port that the kernel chooses.
pub(crate) fn listen(family: Family, backlog: i32) -> Socket {
    listen_at(family, family.bind_address(), backlog)
}

pub(crate) fn listen_at(family: Family, ip: IpAddr, backlog: i32) -> Socket {
    let socket = socket(family);
    if family != Family::V4 {
        socket.set_only_v6(family == Family::V6).expect("IPV6_V6ONLY");
    }
    socket.bind(&SocketAddr::new(ip, 0).into()).expect("bound");
    socket.listen(backlog).expect("listening");
    socket
}

/// Connects over loopback.
pub(crate) fn connect(family: Family, port: u16) -> Socket {
    let socket = socket(family);
    socket.connect(&family.sockaddr(SocketAddr::new(family.loopback(), port))).expect("connected");
    socket
}

pub(crate) fn port_of(socket: &Socket) -> u16 {
    socket.local_addr().expect("an address").as_socket().expect("an IP address").port()
}

pub(crate) fn accept(listener: &Socket) -> Socket {
    let (socket, _) = listener.accept().expect("accepted");
    socket.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    socket
}

/// A listener and both ends of a connection through it, over loopback.
pub(crate) struct Pair {
    pub(crate) listener: Socket,
    pub(crate) client: Socket,
    pub(crate) server: Socket,
}

pub(crate) fn pair(family: Family) -> Pair {
    let listener = listen(family, 16);
    let client = connect(family, port_of(&listener));
    let server = accept(&listener);
    Pair { listener, client, server }
}

/// Writes some bytes.
pub(crate) fn write(socket: &Socket, count: usize) {
    let mut socket = socket;
    socket.write_all(&vec![b'x'; count]).expect("written");
}

/// Reads exactly so many bytes.
pub(crate) fn read(socket: &Socket, count: usize) {
    let mut socket = socket;
    socket.read_exact(&mut vec![0; count]).expect("read");
}

/// Reads up to the peer's FIN, which must come next.
pub(crate) fn read_end(socket: &Socket) {
    let mut socket = socket;
    assert_eq!(socket.read(&mut [0; 1]).expect("the end"), 0);
}

/// Reads what must be this error.
pub(crate) fn read_error(socket: &Socket, kind: ErrorKind) {
    let mut socket = socket;
    let error = socket.read(&mut [0; 1]).expect_err("an error");
    assert_eq!(error.kind(), kind, "{error}");
}

/// Waits until what the socket has sent is acknowledged.
pub(crate) fn await_sent(socket: &Socket) {
    eventually("acknowledged", || {
        let mut queued: libc::c_int = 0;
        // SAFETY: SIOCOUTQ (TIOCOUTQ) writes an int.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        assert_eq!(result, 0, "SIOCOUTQ");
        queued == 0
    });
}

/// Waits until there is something to read: data, a FIN, an error.
pub(crate) fn await_readable(socket: &Socket) {
    let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(socket), nix::poll::PollFlags::POLLIN)];
    let timeout = u16::try_from(PATIENCE.as_millis()).expect("a timeout");
    assert_eq!(nix::poll::poll(&mut poll, timeout).expect("poll"), 1, "nothing to read");
}

/// Waits until a condition holds that no event tells of.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sets a socket option that is an int.
pub(crate) fn set_option(socket: &Socket, level: i32, name: i32, value: i32) {
    // SAFETY: the value is an int of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "setsockopt {level} {name}: {}", std::io::Error::last_os_error());
}

/// connect() to nowhere: the socket is as new.
pub(crate) fn disconnect(socket: &Socket) {
    // SAFETY: all zeros is a sockaddr, of family AF_UNSPEC.
    let address: libc::sockaddr = unsafe { mem::zeroed() };
    // SAFETY: the address is of the size that is given.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), &raw const address, size_of_val(&address) as libc::socklen_t) };
    assert_eq!(result, 0, "connect to AF_UNSPEC: {}", std::io::Error::last_os_error());
}

/// Makes the socket acknowledge at once what comes next, so that no test waits for the timer of delayed ACKs.
pub(crate) fn quick_ack(socket: &Socket) {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1);
}

/// Makes close() send a RST.
pub(crate) fn linger_zero(socket: &Socket) {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

/// Starts a connect() that a peer behind the wire has yet to answer.
pub(crate) fn begin_connect(socket: &Socket, to: &SockAddr) {
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let error = socket.connect(to).expect_err("a handshake takes an answer");
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
    socket.set_nonblocking(false).expect("O_NONBLOCK");
}

/// What the kernel says of this namespace's TCP sockets, an independent witness: `/proc/net/tcp` and `tcp6`.
pub(crate) fn table() -> String {
    ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("a table")).concat()
}

/// Writes a setting of this namespace.
pub(crate) fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("cannot write {value} to {path}: {error}"));
}

pub(crate) fn bring_up(interface: &str) {
    let mut request = interface_request(interface);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    interface_ioctl(libc::AF_INET, libc::SIOCSIFFLAGS, &raw mut request);
}

/// Gives an interface 10.9.0.1/24.
pub(crate) fn add_v4(interface: &str, address: Ipv4Addr) {
    for (code, address) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))] {
        let mut request = interface_request(interface);
        let sockaddr = SockAddr::from(SocketAddr::new(address.into(), 0));
        // SAFETY: a socket2 address of family AF_INET is a sockaddr_in, which fits into a sockaddr.
        request.ifr_ifru.ifru_addr = unsafe { *sockaddr.as_ptr().cast::<libc::sockaddr>() };
        interface_ioctl(libc::AF_INET, code, &raw mut request);
    }
}

/// Gives an interface an IPv6 address, with a prefix of 64 bits.
pub(crate) fn add_v6(interface: &str, address: Ipv6Addr) {
    /// `struct in6_ifreq`
    #[repr(C)]
    struct Request {
        address: [u8; 16],
        prefix_length: u32,
        index: libc::c_int,
    }
    let name = std::ffi::CString::new(interface).expect("a name");
    // SAFETY: the name ends with a NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let mut request =
        Request { address: address.octets(), prefix_length: 64, index: i32::try_from(index).expect("an index") };
    interface_ioctl(libc::AF_INET6, libc::SIOCSIFADDR, &raw mut request);
}

fn interface_request(interface: &str) -> libc::ifreq {
    // SAFETY: all zeros is an ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn interface_ioctl<T>(family: libc::c_int, code: libc::Ioctl, request: *mut T) {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "a socket: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: each caller passes the struct that its request takes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), code, request) };
    assert_eq!(result, 0, "interface ioctl {code:#x}: {}", std::io::Error::last_os_error());
}
