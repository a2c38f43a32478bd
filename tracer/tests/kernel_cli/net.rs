//! Sockets and settings of the current namespace.

use std::{
    fs,
    io::{self, Write},
    mem,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    sync::PoisonError,
    time::Duration,
};

use socket2::{Domain, SockFilter, SockRef, Socket, Type};

use crate::{
    harness::{FORKS, PATIENCE, eventually},
    sock_destroy::destroy,
};

/// Listens on a port that the kernel chooses.
pub(crate) fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener")
}

/// Both ends of a new connection through a listener: client and server.
pub(crate) fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(local(listener)).expect("connected");
    (client, accept(listener))
}

pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (server, _) = listener.accept().expect("accepted");
    server.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    server
}

/// Closes a socket, so that this process is the one that does.
pub(crate) fn close<T: AsFd>(socket: T) {
    let _guard = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    drop(socket);
}

/// Closes both ends, the client first.
pub(crate) fn close_in_order((client, server): (TcpStream, TcpStream)) {
    client.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    close(client);
    await_end(&server);
    close(server);
}

/// Reads all there is, up to the FIN.
pub(crate) fn await_end(stream: &TcpStream) -> usize {
    io::copy(&mut { stream }, &mut io::sink()).expect("the end") as usize
}

/// Writes bytes and waits until they are acknowledged.
pub(crate) fn write(mut stream: &TcpStream, count: usize) {
    stream.write_all(&vec![b'x'; count]).expect("written");
    eventually("acknowledged", || {
        let mut queued: libc::c_int = 0;
        // SAFETY: SIOCOUTQ (TIOCOUTQ) writes an int.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        assert_eq!(result, 0, "SIOCOUTQ");
        queued == 0
    });
}

/// Makes close() send a RST.
pub(crate) fn linger_zero(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

/// connect() to no address: the socket is as new.
pub(crate) fn disconnect(socket: &Socket) {
    // SAFETY: all zeros is a sockaddr, of family AF_UNSPEC.
    let address: libc::sockaddr = unsafe { mem::zeroed() };
    // SAFETY: the length is the address's.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const address, size_of_val(&address) as _) };
    assert_eq!(result, 0, "connect to AF_UNSPEC: {}", io::Error::last_os_error());
}

/// Lets nothing come in through a socket any more, as if the packets were lost on the way.
pub(crate) fn deafen<'a, S>(socket: &'a S)
where
    SockRef<'a>: From<&'a S>,
{
    const RETURN_NOTHING: SockFilter = SockFilter::new(libc::BPF_RET as u16, 0, 0, 0);
    SockRef::from(socket).attach_filter(&[RETURN_NOTHING]).expect("SO_ATTACH_FILTER");
}

/// Begins to connect to somebody who does not answer.
pub(crate) fn begin_connect(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let error = socket.connect(&to.into()).expect_err("a handshake takes an answer");
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
    socket
}

/// Listens at 127.0.0.1 with a backlog; the queue takes one more.
pub(crate) fn listen_with_backlog(backlog: i32) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bound");
    socket.listen(backlog).expect("listening");
    socket.into()
}

/// Closes a socket of this namespace as `ss -K` does.
pub(crate) fn kill(socket: &TcpStream) {
    destroy(local(socket), socket.peer_addr().expect("an address"));
}

pub(crate) fn local<'a, S>(socket: &'a S) -> SocketAddr
where
    SockRef<'a>: From<&'a S>,
{
    SockRef::from(socket).local_addr().expect("an address").as_socket().expect("an IP address")
}

pub(crate) fn cookie(stream: &TcpStream) -> u64 {
    SockRef::from(stream).cookie().expect("SO_COOKIE")
}

/// Inode of the socket's file.
pub(crate) fn inode(socket: &impl AsFd) -> u64 {
    nix::sys::stat::fstat(socket).expect("fstat").st_ino
}

/// Both ends of a new connection between two addresses. The port of `from` may be 0 for one that connect() chooses,
/// without bind() beforehand where the address is unspecified.
pub(crate) fn connect_from(from: SocketAddr, listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    if !from.ip().is_unspecified() {
        client.bind(&from.into()).expect("bound");
    }
    client.connect(&to.into()).expect("connected");
    (client.into(), accept(listener))
}

/// Listens for IPv6 and IPv4 alike.
pub(crate) fn listen_dual_stack() -> TcpListener {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
    socket.set_only_v6(false).expect("IPV6_V6ONLY");
    let any: SocketAddr = "[::]:0".parse().expect("an address");
    socket.bind(&any.into()).expect("bound");
    socket.listen(16).expect("listening");
    socket.into()
}

/// Writes a setting of this namespace.
pub(crate) fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv4/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("cannot write {value} to {path}: {error}"));
}

/// Leaves this namespace so many local ports, of which none in TIME_WAIT is taken over; and a listener outside them.
pub(crate) fn with_ports(count: u16) -> TcpListener {
    let listener = listen();
    let first = if local(&listener).port() < 30_000 { 40_000 } else { 20_000 };
    sysctl("ip_local_port_range", &format!("{first} {}", first + count - 1));
    // By default loopback does.
    sysctl("tcp_tw_reuse", "0");
    listener
}

/// The IPv4 sockets of this namespace as the kernel lists them: local port, remote port, state.
pub(crate) fn listed() -> Vec<(u16, u16, u8)> {
    let text = fs::read_to_string("/proc/thread-self/net/tcp").expect("net/tcp");
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let port = |end: &str| u16::from_str_radix(end.split(':').next_back().expect("a port"), 16).expect("hex");
        (port(words[1]), port(words[2]), u8::from_str_radix(words[3], 16).expect("hex"))
    };
    text.lines().skip(1).map(socket).collect()
}

/// How many IPv4 sockets of this namespace are in a state.
pub(crate) fn count_in(state: u8) -> usize {
    listed().iter().filter(|(_, _, found)| *found == state).count()
}

/// TCP_ESTABLISHED
pub(crate) const ESTABLISHED: u8 = 1;
/// TCP_SYN_SENT
pub(crate) const SYN_SENT: u8 = 2;
/// TCP_FIN_WAIT2
pub(crate) const FIN_WAIT2: u8 = 5;
/// TCP_CLOSE_WAIT
pub(crate) const CLOSE_WAIT: u8 = 8;
/// TCP_TIME_WAIT
pub(crate) const TIME_WAIT: u8 = 6;
/// TCP_LISTEN
pub(crate) const LISTEN: u8 = 10;

pub(crate) fn bring_up_loopback() {
    // SAFETY: all zeros is an ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&b"lo".map(|byte| byte as libc::c_char));
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    // SAFETY: SIOCSIFFLAGS takes an ifreq.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(result, 0, "SIOCSIFFLAGS: {}", io::Error::last_os_error());
}
