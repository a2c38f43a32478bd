//! Is what the programs report true? A connection of the tracer's own over loopback, traced, and compared field by field
//! with what the program knows of it from its descriptors. An offset that is wrong must be refused, not printed.
//!
//! The server ends it by a RST, which leaves no TIME_WAIT behind and shows the socket's error. Nothing here is about what
//! a connection means: that is the core's.

use std::{
    fmt, fs, io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    libc,
    sched::{CloneFlags, unshare},
};
use rustix::{
    io::Errno as IoError,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect, getsockname, ipproto,
        listen, recv, send, socket_with, sockopt,
    },
};

use super::{Known, decode, ring::Ring};
use crate::{
    core::{
        endpoint::Endpoint,
        state::State,
        transition::{Comm, Context, Errno, Event, KernelAddress, Transition},
    },
    source::{clock::monotonic_ns, closed, netns::Namespace, sock_diag},
};

/// How long the kernel may take for each step of a connection over loopback.
const PATIENCE: Duration = Duration::from_secs(1);

/// The kernel may skip an event (docs/kernel.md, "Lost events"), but not each time.
const TRIES: usize = 5;

const ASKED: &[u8] = b"tracer";
const ANSWERED: &[u8] = b"traced";

/// What the test has shown.
#[derive(Debug)]
pub enum Verdict {
    /// All that was compared is right.
    Right {
        /// Transitions that were seen.
        transitions: usize,
        /// Fields that were compared.
        fields: usize,
        /// Over which protocols.
        families: &'static str,
    },
    /// The connection could not be made.
    Impossible(anyhow::Error),
    /// No event of it came through.
    Silent,
    /// What came through is not what happened: a line that says what is wrong.
    Wrong(String),
}

/// Makes a connection while programs are attached, whose ring buffer is read here to the end.
///
/// In a network namespace that nobody else is in, if that may be made: no firewall is in the way, no port is taken, and who
/// else traces this one does not see it.
pub(super) fn run(ring: &mut Ring, known: Known) -> Verdict {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("tracer-check".to_owned());
        let tested = thread.spawn_scoped(scope, || {
            if unshare(CloneFlags::CLONE_NEWNET).is_ok()
                && let Err(error) = bring_loopback_up()
            {
                return Verdict::Impossible(anyhow!(error).context("cannot bring the loopback interface up"));
            }
            run_here(ring, known)
        });
        let joined = tested.map(thread::ScopedJoinHandle::join);
        match joined {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Verdict::Impossible(anyhow!("a panic in its thread")),
            Err(error) => Verdict::Impossible(anyhow!(error).context("cannot start a thread")),
        }
    })
}

fn bring_loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeros is an ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn run_here(ring: &mut Ring, known: Known) -> Verdict {
    let own = match Own::new() {
        Ok(own) => own,
        Err(error) => return Verdict::Impossible(error),
    };
    let v4 = over(Ipv4Addr::LOCALHOST.into(), &own, ring, known);
    let Verdict::Right { transitions, fields, .. } = v4 else {
        return v4;
    };
    match over(Ipv6Addr::LOCALHOST.into(), &own, ring, known) {
        Verdict::Right { transitions: more, fields: others, .. } => {
            Verdict::Right { transitions: transitions + more, fields: fields + others, families: "IPv4 and IPv6" }
        }
        // A host may have no IPv6.
        Verdict::Impossible(_) => Verdict::Right { transitions, fields, families: "IPv4" },
        verdict => verdict,
    }
}

fn over(ip: IpAddr, own: &Own, ring: &mut Ring, known: Known) -> Verdict {
    let mut verdict = Verdict::Silent;
    for _ in 0..TRIES {
        let made = match Made::now(ip) {
            Ok(made) => made,
            Err(error) => return Verdict::Impossible(error),
        };
        let mut transitions = Vec::new();
        let drained = ring.drain(usize::MAX, |record| {
            if let Some(Event::Transition(transition)) = decode(record, known) {
                transitions.push(transition);
            }
        });
        if let Err(error) = drained {
            return Verdict::Impossible(error.into());
        }
        verdict = made.compare(own, known, &transitions);
        if matches!(verdict, Verdict::Right { .. }) {
            break;
        }
    }
    verdict
}

/// What the program knows of itself.
#[derive(Clone, Copy, Debug)]
struct Own {
    netns: u32,
    uid: u32,
    comm: Comm,
}

impl Own {
    fn new() -> Result<Self> {
        let comm = fs::read("/proc/thread-self/comm").context("cannot read the own name")?;
        let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
        let mut bytes = [0; 16];
        let length = comm.len().min(15);
        bytes[..length].copy_from_slice(&comm[..length]);
        Ok(Self { netns: Namespace::own()?.inum, uid: rustix::process::geteuid().as_raw(), comm: Comm::new(bytes) })
    }
}

/// One end of the connection, or the listener.
#[derive(Clone, Copy, Debug, Default)]
struct Socket {
    cookie: u64,
    inode: u64,
    /// `None` where the kernel's list does not tell it.
    cgroup: Option<u64>,
}

impl Socket {
    fn of(descriptor: &OwnedFd) -> Result<Self> {
        let cookie = sockopt::socket_cookie(descriptor).context("cannot ask for a socket's cookie")?;
        let inode = rustix::fs::fstat(descriptor).context("cannot ask for a socket's inode")?.st_ino;
        Ok(Self { cookie, inode, cgroup: None })
    }
}

/// Asks the kernel's list for the cgroups of sockets: by it no tree has to be mounted, and no path to be in sight.
fn tell_cgroups(mut sockets: [&mut Socket; 2]) -> Result<()> {
    sock_diag::visit(&[Namespace::own()?], sock_diag::Wanted::WITH_FILE, &mut |listed| {
        for socket in sockets.iter_mut().filter(|socket| socket.cookie == listed.cookie) {
            socket.cgroup = Some(listed.cgroup).filter(|cgroup| *cgroup != 0);
        }
    })?;
    Ok(())
}

/// A connection that was made and ended, and what its sockets said of themselves.
#[derive(Debug)]
struct Made {
    begun_ns: u64,
    ended_ns: u64,
    client_end: SocketAddr,
    server_end: SocketAddr,
    client: Socket,
    server: Socket,
    /// Of the client.
    bytes_acked: u64,
    /// Of the client.
    rtt_us: u32,
}

impl Made {
    fn now(ip: IpAddr) -> Result<Self> {
        let begun_ns = monotonic_ns();
        let listener = bound(ip).context("cannot bind to the loopback address")?;
        listen(&listener, 1).context("cannot listen on the loopback address")?;
        let server_end = address(&listener)?;
        // A child begins with a copy of its listener, whose cookie must not be taken for the child's.
        Socket::of(&listener)?;
        let client = bound(ip).context("cannot bind to the loopback address")?;
        let client_end = address(&client)?;
        let mut client_socket = Socket::of(&client)?;
        connect(&client, &server_end).context("cannot connect over loopback")?;
        let server = accept_with(&listener, SocketFlags::CLOEXEC).context("cannot accept over loopback")?;
        sockopt::set_socket_timeout(&server, sockopt::Timeout::Recv, Some(PATIENCE))?;
        let mut server_socket = Socket::of(&server)?;
        // A kernel without the list has no second opinion.
        let _ = tell_cgroups([&mut client_socket, &mut server_socket]);
        // Each side has its bytes acknowledged when the other's are there.
        pass(&client, &server, ASKED)?;
        pass(&server, &client, ANSWERED)?;
        let (bytes_acked, rtt_us) = acked_and_rtt(&client).context("cannot ask a socket for TCP_INFO")?;
        sockopt::set_socket_linger(&server, Some(Duration::ZERO))?;
        drop(server);
        match recv(&client, &mut [0; 1], RecvFlags::empty()) {
            Err(IoError::CONNRESET) => {}
            other => bail!("the RST of a connection over loopback did not arrive ({other:?})"),
        }
        Ok(Self {
            begun_ns,
            ended_ns: monotonic_ns(),
            client_end,
            server_end,
            client: client_socket,
            server: server_socket,
            bytes_acked,
            rtt_us,
        })
    }

    /// The client's transitions and the server's; the listener shows nothing that these do not.
    fn compare(&self, own: &Own, known: Known, transitions: &[Transition]) -> Verdict {
        let end = |socket, local, remote| Expected { own, known, made: self, socket, local, remote };
        let client = end(self.client, self.client_end, self.server_end);
        let server = end(self.server, self.server_end, self.client_end);
        let mut fields = 0;
        for (end, steps) in [(client, CLIENT), (server, SERVER)] {
            match closest(transitions, &end, steps) {
                None => return Verdict::Silent,
                Some(Compared { wrong, .. }) if !wrong.is_empty() => {
                    return Verdict::Wrong(wrong.join(", "));
                }
                Some(compared) => fields += compared.count,
            }
        }
        Verdict::Right { transitions: CLIENT.len() + SERVER.len(), fields, families: "" }
    }
}

fn bound(ip: IpAddr) -> rustix::io::Result<OwnedFd> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    // Waiting for an accept counts as receiving, for a connect as sending.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    bind(&socket, &SocketAddr::new(ip, 0))?;
    Ok(socket)
}

fn address(socket: &OwnedFd) -> Result<SocketAddr> {
    let address = getsockname(socket).context("cannot ask for a socket's address")?;
    SocketAddr::try_from(address).context("a socket without an IP address")
}

/// The bytes that the peer has acknowledged, and the smoothed round-trip time.
fn acked_and_rtt(socket: &OwnedFd) -> Result<(u64, u32)> {
    let bytes = closed::tcp_info(socket)?;
    let info = sock_diag::decode_info(&bytes).context("it is too short")?;
    let rtt_us = u32::from_ne_bytes([bytes[68], bytes[69], bytes[70], bytes[71]]);
    Ok((info.bytes_acked, rtt_us))
}

fn pass(from: &OwnedFd, to: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let mut got = vec![0; bytes.len()];
    let sent = send(from, bytes, SendFlags::NOSIGNAL).context("cannot send over loopback")?;
    let (received, _) = recv(to, &mut got[..], RecvFlags::WAITALL).context("cannot receive over loopback")?;
    ensure!(
        sent == bytes.len() && received == bytes.len() && got == bytes,
        "other bytes arrived over loopback than were sent"
    );
    Ok(())
}

/// One transition, and whether the calling process makes it.
type Step = (State, State, Option<Context>);

const CLIENT: &[Step] = &[
    (State::CLOSE, State::SYN_SENT, Some(Context::Process)),
    // The answer may have waited for connect() to let go of the socket.
    (State::SYN_SENT, State::ESTABLISHED, None),
    (State::ESTABLISHED, State::CLOSE, None),
];
const SERVER: &[Step] = &[
    (State::LISTEN, State::SYN_RECV, Some(Context::Softirq)),
    (State::SYN_RECV, State::ESTABLISHED, Some(Context::Softirq)),
    (State::ESTABLISHED, State::CLOSE, Some(Context::Process)),
];

/// What is known of one end.
struct Expected<'a> {
    own: &'a Own,
    known: Known,
    made: &'a Made,
    socket: Socket,
    local: SocketAddr,
    remote: SocketAddr,
}

/// Of all sockets that took these steps the one that looks most like the expected one; `None` when none did.
fn closest(transitions: &[Transition], end: &Expected<'_>, steps: &[Step]) -> Option<Compared> {
    let of_step = |transition: &Transition, (old, new, _): &Step| transition.old == *old && transition.new == *new;
    let lives =
        transitions.iter().enumerate().filter(|(_, first)| of_step(first, &steps[0])).filter_map(|(at, first)| {
            let address: KernelAddress = first.socket.address;
            let life: Vec<_> =
                transitions[at..].iter().filter(|later| later.socket.address == address).take(steps.len()).collect();
            let whole = life.len() == steps.len() && life.iter().zip(steps).all(|(seen, step)| of_step(seen, step));
            whole.then(|| end.compare(&life, steps))
        });
    lives.min_by_key(|compared| compared.wrong.len())
}

/// How a comparison went.
#[derive(Debug, Default)]
struct Compared {
    count: usize,
    wrong: Vec<String>,
}

impl Compared {
    fn field<T: PartialEq + fmt::Display>(&mut self, at: &str, name: &str, seen: T, wanted: T) {
        self.count += 1;
        if seen != wanted {
            self.wrong.push(format!("{name} is {wanted} at {at} and is reported as {seen}"));
        }
    }

    /// One of several values that the kernel may give.
    fn one_of<T: PartialEq + fmt::Display + Copy>(&mut self, at: &str, name: &str, seen: T, wanted: &[T]) {
        if wanted.contains(&seen) {
            self.count += 1;
        } else if let Some(first) = wanted.first() {
            self.field(at, name, seen, *first);
        }
    }
}

impl Expected<'_> {
    fn compare(&self, life: &[&Transition], steps: &[Step]) -> Compared {
        let mut compared = Compared::default();
        for (transition, (old, new, context)) in life.iter().zip(steps) {
            let at = format!("{old}→{new}");
            self.compare_ends(transition, &at, &mut compared);
            let in_time = (self.made.begun_ns..=self.made.ended_ns).contains(&transition.mono_ns);
            compared.field(&at, "whether the time is now", in_time, true);
            if transition.details.is_some() {
                self.compare_details(transition, *context, &at, &mut compared);
            }
        }
        compared
    }

    fn compare_ends(&self, transition: &Transition, at: &str, compared: &mut Compared) {
        let end = |address: SocketAddr| Endpoint::new(address.ip(), address.port());
        let (local, remote) = (end(self.local), end(self.remote));
        let seen = transition.tuple;
        let unspecified = |end: Endpoint| Endpoint::new(nowhere(self.local), end.port);
        match (transition.old, transition.new) {
            // Before 6.15 only the local port is there yet.
            (State::LISTEN, _) => {
                compared.one_of(at, "the local end", seen.local, &[local, unspecified(local)]);
                compared.one_of(at, "the remote end", seen.remote, &[remote, Endpoint::new(nowhere(self.local), 0)]);
            }
            // Addresses may be wiped.
            (_, State::CLOSE) => {
                compared.one_of(at, "the local end", seen.local, &[local, unspecified(local)]);
                compared.one_of(at, "the remote end", seen.remote, &[remote, unspecified(remote)]);
            }
            _ => {
                compared.field(at, "the local end", seen.local, local);
                compared.field(at, "the remote end", seen.remote, remote);
            }
        }
        if transition.details.is_some() {
            compared.field(at, "the network namespace", seen.netns, self.own.netns);
        }
    }

    fn compare_details(&self, transition: &Transition, context: Option<Context>, at: &str, compared: &mut Compared) {
        let Some(details) = transition.details else {
            return;
        };
        let begins = transition.old == State::CLOSE;
        let is_client = self.local == self.made.client_end;
        if let Some(context) = context {
            let held = |context: Context| context == Context::Process;
            compared.field(at, "whether the socket is locked", held(transition.context), held(context));
        }
        if transition.context == Context::Process {
            compared.field(at, "the name of the process", transition.task.comm, self.own.comm);
        }
        compared.field(at, "the owner's uid", details.uid, self.own.uid);
        compared.field(at, "whether it is of MPTCP", details.mptcp, false);
        compared.field(at, "the number of retransmissions", details.retransmits, 0);
        // The server's socket has no file before it is accepted, and a cookie only since it was asked for one.
        let early = !is_client && transition.new != State::CLOSE;
        let may_be = |known: u64| if early { [0, known] } else { [known, known] };
        compared.one_of(at, "the inode", details.inode, &may_be(self.socket.inode));
        compared.one_of(at, "the cookie", transition.socket.cookie, &may_be(self.socket.cookie));
        if let Some(cgroup) = self.socket.cgroup {
            let or_unknown = if self.known.cgroups { cgroup } else { 0 };
            compared.one_of(at, "the cgroup", details.cgroup, &[cgroup, or_unknown]);
        }
        let error = if is_client && transition.new == State::CLOSE { Errno::ECONNRESET } else { Errno::NONE };
        compared.field(at, "the error", details.error.0, error.0);
        let closes = !is_client && transition.new == State::CLOSE;
        compared.field(at, "whether SO_LINGER is set", details.linger, closes);
        if begins || closes {
            compared.field(at, "whether sending has ended", details.send_shutdown, closes);
        }
        if transition.new == State::CLOSE {
            let received = if is_client { ANSWERED } else { ASKED };
            compared.field(at, "the number of bytes received", details.bytes_received, received.len() as u64);
            if is_client {
                compared.field(at, "the number of bytes acknowledged", details.bytes_acked, self.made.bytes_acked);
                compared.field(at, "the round-trip time", details.srtt_us, self.made.rtt_us);
            }
        }
    }
}

/// The unspecified address of the same family.
fn nowhere(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
