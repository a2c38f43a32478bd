//! A TCP peer made by hand: segments in and out of a tun device, so that a test decides what arrives, and when.
//!
//! A segment is processed, in softirq, before the `write` that injects it returns, unless a task holds the socket's lock
//! at that moment; in these tests nobody else uses the sockets, so nobody does.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
    rc::Rc,
    time::Instant,
};

use nix::poll::{PollFd, PollFlags, poll};
use socket2::{SockAddr, Socket};

use crate::{
    lab::{Ends, Lab, PATIENCE},
    net::{self, Family},
};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const PEER_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2);

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;

/// A TCP segment, without what a peer need not know of it.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    v6: bool,
    from_port: u16,
    to_port: u16,
    seq: u32,
    ack: u32,
    pub(crate) flags: u8,
    payload: Vec<u8>,
    /// The packet as it was, for an ICMP answer.
    packet: Vec<u8>,
}

impl Segment {
    /// Sequence numbers that it takes: payload, SYN and FIN.
    fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0)
    }
}

/// The device, with this host at one end and every peer at the other.
pub(crate) struct Wire {
    tun: File,
    waiting: RefCell<VecDeque<Segment>>,
}

impl Wire {
    pub(crate) fn new() -> Rc<Self> {
        const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .expect("/dev/net/tun (modprobe tun)");
        // SAFETY: all zeros is an ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"wire0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF takes an ifreq.
        let result = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
        net::add_v4("wire0", HOST_V4);
        net::bring_up("wire0");
        net::add_v6("wire0", HOST_V6);
        // The address may be used once it is no longer tentative, which a worker sees to.
        let probe = net::socket(Family::V6);
        let address = SockAddr::from(SocketAddr::new(HOST_V6.into(), 0));
        net::eventually("usable: the IPv6 address", || probe.bind(&address).is_ok());
        Rc::new(Self { tun, waiting: RefCell::new(VecDeque::new()) })
    }

    pub(crate) fn host(family: Family) -> IpAddr {
        if family == Family::V6 { HOST_V6.into() } else { HOST_V4.into() }
    }

    pub(crate) fn peer(family: Family) -> IpAddr {
        if family == Family::V6 { PEER_V6.into() } else { PEER_V4.into() }
    }

    /// Listens where peers can reach it.
    pub(crate) fn listen(family: Family, backlog: i32) -> Socket {
        let ip = if family == Family::Mapped { family.unspecified() } else { Self::host(family) };
        net::listen_at(family, ip, backlog)
    }

    /// The next segment that `wanted` accepts; others wait for their peer.
    fn take(&self, what: &str, wanted: impl Fn(&Segment) -> bool) -> Segment {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let at = self.waiting.borrow().iter().position(&wanted);
            if let Some(segment) = at.and_then(|at| self.waiting.borrow_mut().remove(at)) {
                return segment;
            }
            assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
            let mut ready = [PollFd::new(self.tun.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, 100_u16).expect("poll");
            self.read();
        }
    }

    /// Reads all packets that are there.
    fn read(&self) {
        let mut packet = [0; 4096];
        while let Ok(length) = (&self.tun).read(&mut packet) {
            self.waiting.borrow_mut().extend(parse(&packet[..length]));
        }
    }

    fn write(&self, packet: &[u8]) {
        assert_eq!((&self.tun).write(packet).expect("written"), packet.len());
    }
}

/// One end of a connection, made by hand.
pub(crate) struct Peer {
    wire: Rc<Wire>,
    v6: bool,
    port: u16,
    host_port: u16,
    /// What comes next from here.
    pub(crate) next: u32,
    /// What comes next from the host.
    pub(crate) expected: u32,
    /// The last segment that was taken.
    last: Option<Segment>,
}

impl Peer {
    const FIRST: u32 = 1_000_000;

    fn new(wire: &Rc<Wire>, family: Family, port: u16, host_port: u16) -> Self {
        let wire = Rc::clone(wire);
        Self { wire, v6: family == Family::V6, port, host_port, next: Self::FIRST, expected: 0, last: None }
    }

    /// Waits for a SYN to a port.
    pub(crate) fn called(wire: &Rc<Wire>, family: Family, port: u16) -> Self {
        let v6 = family == Family::V6;
        let syn = wire
            .take("SYN", |segment| segment.v6 == v6 && segment.to_port == port && segment.flags & (SYN | ACK) == SYN);
        let mut peer = Self::new(wire, family, port, syn.from_port);
        peer.took(syn);
        peer
    }

    /// Sends a SYN to a listener.
    pub(crate) fn calling(wire: &Rc<Wire>, family: Family, port: u16, host_port: u16, data: &[u8]) -> Self {
        let mut peer = Self::new(wire, family, port, host_port);
        peer.send(SYN, data);
        peer
    }

    /// The host's end of this connection.
    pub(crate) fn host_ends(&self) -> Ends {
        let family = if self.v6 { Family::V6 } else { Family::V4 };
        Ends::new(SocketAddr::new(Wire::host(family), self.host_port), SocketAddr::new(Wire::peer(family), self.port))
    }

    /// Sends the next segment; with ACK it acknowledges all that was taken.
    pub(crate) fn send(&mut self, flags: u8, payload: &[u8]) {
        self.send_acking(self.expected, flags, payload);
    }

    /// Likewise, but acknowledges up to `ack`.
    pub(crate) fn send_acking(&mut self, ack: u32, flags: u8, payload: &[u8]) {
        let segment = Segment {
            v6: self.v6,
            from_port: self.port,
            to_port: self.host_port,
            seq: self.next,
            ack: if flags & ACK == 0 { 0 } else { ack },
            flags,
            payload: payload.to_vec(),
            packet: Vec::new(),
        };
        self.next = self.next.wrapping_add(segment.length());
        self.wire.write(&segment_packet(&segment));
    }

    /// Takes segments up to one that has all these flags, and data if PSH is among them.
    pub(crate) fn take(&mut self, flags: u8) -> &Segment {
        loop {
            let (v6, port, host_port) = (self.v6, self.port, self.host_port);
            let segment = self.wire.take(&format!("segment with flags {flags:#x}"), |segment| {
                segment.v6 == v6 && segment.to_port == port && segment.from_port == host_port
            });
            let found = segment.flags & flags == flags;
            self.took(segment);
            if found {
                return self.last.as_ref().expect("just taken");
            }
        }
    }

    /// The flags of the next segment, if one waits.
    pub(crate) fn try_take(&mut self) -> Option<u8> {
        self.wire.read();
        let here = |segment: &Segment| segment.to_port == self.port && segment.from_port == self.host_port;
        let at = self.wire.waiting.borrow().iter().position(here)?;
        let segment = self.wire.waiting.borrow_mut().remove(at)?;
        let flags = segment.flags;
        self.took(segment);
        Some(flags)
    }

    fn took(&mut self, segment: Segment) {
        let end = segment.seq.wrapping_add(segment.length());
        // A repeated segment does not take the sequence back.
        if segment.flags & SYN != 0 || end.wrapping_sub(self.expected).cast_signed() > 0 {
            self.expected = end;
        }
        self.last = Some(segment);
    }

    /// Answers the last segment with ICMP "host unreachable" (IPv4).
    pub(crate) fn unreachable(&self) {
        const DESTINATION_UNREACHABLE: u8 = 3;
        const HOST_UNREACHABLE: u8 = 1;
        let last = self.last.as_ref().expect("a segment to answer");
        let mut icmp = vec![DESTINATION_UNREACHABLE, HOST_UNREACHABLE, 0, 0, 0, 0, 0, 0];
        icmp.extend(&last.packet[..28]);
        let sum = checksum(&icmp, 0);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        self.wire.write(&ip_packet(false, IPPROTO_ICMP, &icmp));
    }
}

/// A connection that the host opened, established.
pub(crate) fn opened_by_host(lab: &Lab, wire: &Rc<Wire>, family: Family, port: u16) -> (Socket, Peer, Ends) {
    let socket = net::socket(family);
    let to = SocketAddr::new(Wire::peer(family), port);
    net::begin_connect(&socket, &family.sockaddr(to));
    let mut peer = Peer::called(wire, family, port);
    peer.send(SYN | ACK, &[]);
    peer.take(ACK);
    let ends = lab.ends(&socket);
    (socket, peer, ends)
}

/// A connection that the host accepted.
pub(crate) fn opened_by_peer(
    lab: &Lab,
    wire: &Rc<Wire>,
    family: Family,
    listener: &Socket,
    port: u16,
) -> (Socket, Peer, Ends) {
    let mut peer = Peer::calling(wire, family, port, net::port_of(listener), &[]);
    peer.take(SYN | ACK);
    peer.send(ACK, &[]);
    let socket = net::accept(listener);
    let ends = lab.ends(&socket);
    (socket, peer, ends)
}

/// Where a peer listens on that port, as a socket of the family takes it.
pub(crate) fn peer_address(family: Family, port: u16) -> SockAddr {
    family.sockaddr(SocketAddr::new(Wire::peer(family), port))
}

fn parse(packet: &[u8]) -> Option<Segment> {
    let v6 = packet.first()? >> 4 == 6;
    let (protocol, tcp) = if v6 {
        (*packet.get(6)?, packet.get(40..)?)
    } else {
        (*packet.get(9)?, packet.get(usize::from(packet[0] & 15) * 4..)?)
    };
    if protocol != IPPROTO_TCP || tcp.len() < 20 {
        return None;
    }
    let u16_at = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let u32_at = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    Some(Segment {
        v6,
        from_port: u16_at(0),
        to_port: u16_at(2),
        seq: u32_at(4),
        ack: u32_at(8),
        flags: tcp[13] & 0x1f,
        payload: tcp.get(usize::from(tcp[12] >> 4) * 4..)?.to_vec(),
        packet: packet.to_vec(),
    })
}

/// The packet of a segment from a peer.
fn segment_packet(segment: &Segment) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20 + segment.payload.len());
    tcp.extend(segment.from_port.to_be_bytes());
    tcp.extend(segment.to_port.to_be_bytes());
    tcp.extend(segment.seq.to_be_bytes());
    tcp.extend(segment.ack.to_be_bytes());
    tcp.extend([5 << 4, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(&segment.payload);
    let (from, to) = addresses(segment.v6);
    let pseudo = sum(&from, 0) + sum(&to, 0) + u32::from(IPPROTO_TCP) + tcp.len() as u32;
    let checksum = checksum(&tcp, pseudo);
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    ip_packet(segment.v6, IPPROTO_TCP, &tcp)
}

fn ip_packet(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = addresses(v6);
    let mut packet = Vec::with_capacity(40 + payload.len());
    if v6 {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend(from);
        packet.extend(to);
    } else {
        packet.extend([0x45, 0]);
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend(from);
        packet.extend(to);
        let sum = checksum(&packet, 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// From the peer to the host.
fn addresses(v6: bool) -> (Vec<u8>, Vec<u8>) {
    if v6 {
        (PEER_V6.octets().to_vec(), HOST_V6.octets().to_vec())
    } else {
        (PEER_V4.octets().to_vec(), HOST_V4.octets().to_vec())
    }
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = sum(bytes, start);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
