//! The record ABI: what the BPF programs write into the ring buffer, what they count, and what they are told at load
//! time. The one definition for both sides; it also builds for the host.
//!
//! It deliberately holds no logic: the programs report (`main.rs`), userspace decides (`tracer::source::kernel`
//! decodes, `tracer::core` understands).
#![no_std]

use core::mem::{offset_of, size_of};

/// Version of [`Record`]; the loader refuses an object that was built for another one.
pub const ABI_VERSION: u32 = 1;

/// A transition of a TCP socket's state (`sock:inet_sock_set_state`).
pub const KIND_TRANSITION: u8 = 0;
/// This host sends a RST for a socket that it knows (`tcp:tcp_send_reset`).
pub const KIND_RESET_SENT: u8 = 1;
/// A RST of the peer was accepted for a socket (`tcp:tcp_receive_reset`).
pub const KIND_RESET_RECEIVED: u8 = 2;

/// [`Record::flags`]: a task holds the socket lock, so the current task is the one that acts on the socket. Clear in
/// softirq and timer context (`sk->sk_lock.owned`).
pub const FLAG_LOCK_OWNED: u8 = 1;
/// [`Record::flags`]: the socket is a subflow of an MPTCP connection (`tcp_sock.is_mptcp`): the kernel acts on it
/// from a worker, the current task says nothing about its owner.
pub const FLAG_MPTCP: u8 = 1 << 1;

/// `SOCK_DEAD` of the kernel's `enum sock_flags` in [`Record::sk_flags`]: orphaned, no file refers to the socket.
pub const SOCK_DEAD: u32 = 1;
/// `SOCK_DONE` of the kernel's `enum sock_flags` in [`Record::sk_flags`]: the peer's FIN was received.
pub const SOCK_DONE: u32 = 1 << 1;
/// `SOCK_LINGER` in [`Record::sk_flags`]: SO_LINGER is set.
pub const SOCK_LINGER: u32 = 1 << 4;

/// In [`Record::shutdown`]: this side has ended sending, by close() or shutdown().
pub const SEND_SHUTDOWN: u8 = 2;

/// One event. Fields that the running kernel cannot give are zero; userspace knows which ones from [`Layout`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// CLOCK_MONOTONIC, ns (`bpf_ktime_get_ns`).
    pub mono_ns: u64,
    /// The socket cookie; 0 when the kernel has not given it one yet (classic tracepoint, or before Linux 5.12).
    pub cookie: u64,
    /// Address of the `struct sock`: identity where there is no cookie. Never printed.
    pub sock: u64,
    /// Id of the socket's cgroup v2: the inode number of its directory.
    pub cgroup: u64,
    /// Inode number of the socket's file; 0 before accept and after the last close.
    pub inode: u64,
    /// `tcp_sock.bytes_received`, which counts the peer's FIN as one byte.
    pub bytes_received: u64,
    /// `tcp_sock.bytes_acked`, which counts our SYN (active open) and our FIN as one byte each.
    pub bytes_acked: u64,
    /// Local address: IPv6, or IPv4 in the first four bytes when `family` is `AF_INET`.
    pub local_addr: [u8; 16],
    /// Remote address, likewise.
    pub remote_addr: [u8; 16],
    /// Name of the current task, only when [`FLAG_LOCK_OWNED`] is set; else zeros.
    pub comm: [u8; 16],
    /// Network namespace (`net->ns.inum`).
    pub netns: u32,
    /// Current process (tgid).
    pub pid: u32,
    /// Current thread.
    pub tid: u32,
    /// User id that owns the socket (`sk_uid`).
    pub uid: u32,
    /// `tcp_sock.srtt_us`: smoothed round-trip time in units of 1/8 µs.
    pub srtt_us8: u32,
    /// `tcp_sock.total_retrans`: segments retransmitted over the socket's life.
    pub retransmits: u32,
    /// `sk_err`, an errno value.
    pub err: u32,
    /// The low 32 bits of `sk_flags`: see [`SOCK_DEAD`], [`SOCK_DONE`].
    pub sk_flags: u32,
    /// Local port, host order; 0 when not bound yet.
    pub local_port: u16,
    /// Remote port, host order.
    pub remote_port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// `KIND_*`.
    pub kind: u8,
    /// State before: the kernel's number. In a reset record the socket's state at that moment.
    pub old_state: u8,
    /// State after; in a reset record equal to `old_state`.
    pub new_state: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// `sk_shutdown`: [`SEND_SHUTDOWN`] and its counterpart for receiving.
    pub shutdown: u8,
    /// Zero.
    pub padding: u8,
    /// At a transition from CLOSE: the local port of the socket's connection before this one, which stays in `inet_sport`
    /// until another one is found; else 0.
    pub previous_port: u16,
    /// Zero.
    pub padding_end: u16,
}

const _: () = {
    assert!(size_of::<Record>() == 152);
    assert!(size_of::<Record>().is_multiple_of(8));
    assert!(offset_of!(Record, local_addr) == 56);
    assert!(offset_of!(Record, netns) == 104);
    assert!(offset_of!(Record, local_port) == 136);
    assert!(offset_of!(Record, kind) == 142);
    assert!(offset_of!(Record, shutdown) == 146);
    assert!(offset_of!(Record, padding_end) == 150);
};

/// Per-CPU counters of one program; the map has one row for each `KIND_*`, so that no two programs that may interrupt
/// each other write the same row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events that passed the filters: delivered plus dropped.
    pub seen: u64,
    /// Of these, the ones that found the ring buffer full.
    pub dropped: u64,
}

/// Rows of the counters' map.
pub const COUNTER_ROWS: u32 = 3;

/// A member that this kernel's BTF does not have.
pub const ABSENT: u32 = u32::MAX;

/// Where the running kernel keeps what a [`Record`] reports: byte offsets, resolved in userspace from the kernel's BTF
/// (or the tracepoint's format file), [`ABSENT`] where there is none. The programs see it as a read-only global, so
/// that the verifier knows each offset as a constant and drops the branches of absent members.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// [`ABI_VERSION`] of the side that fills this in.
    pub abi_version: u32,
    /// 1 when `bpf_get_socket_cookie` works for tracing programs (5.12 and later).
    pub cookie_helper: u32,

    // struct sock_common, all from the start of the socket
    /// `skc_family`, u16.
    pub family: u32,
    /// `skc_state`, u8.
    pub state: u32,
    /// `skc_num`, u16: local port, host order.
    pub num: u32,
    /// `skc_dport`, big-endian u16.
    pub dport: u32,
    /// `skc_rcv_saddr`, big-endian u32.
    pub rcv_saddr: u32,
    /// `skc_daddr`, big-endian u32.
    pub daddr: u32,
    /// `skc_v6_rcv_saddr`, 16 bytes.
    pub v6_rcv_saddr: u32,
    /// `skc_v6_daddr`, 16 bytes.
    pub v6_daddr: u32,
    /// `skc_net.net`, pointer to `struct net`.
    pub net: u32,
    /// `skc_cookie`, u64.
    pub cookie: u32,

    // struct sock
    /// `sk_protocol`, u16 (5.6 and later).
    pub protocol: u32,
    /// `sk_err`, int.
    pub err: u32,
    /// `sk_flags` (`skc_flags`), unsigned long.
    pub sk_flags: u32,
    /// `sk_lock.owned`, int.
    pub lock_owned: u32,
    /// `sk_uid`, u32.
    pub uid: u32,
    /// `sk_shutdown`, u8 (5.6 and later).
    pub shutdown: u32,
    /// `sk_socket`, pointer to `struct socket`.
    pub socket: u32,
    /// `sk_cgrp_data.cgroup`, pointer to `struct cgroup` (5.15 and later).
    pub cgroup: u32,
    /// `sk_cgrp_data.val`, u64 (before 5.15): that pointer, unless its lowest bit is set.
    pub cgroup_tagged: u32,

    // struct inet_sock and tcp_sock, from the start of the socket
    /// `inet_sport`, big-endian u16: unlike `skc_num` it is still there at the transition to CLOSE; but when a socket
    /// connects again, CLOSE→SYN_SENT still has the port of the connection before.
    pub sport: u32,
    /// `bytes_received`, u64.
    pub bytes_received: u32,
    /// `bytes_acked`, u64.
    pub bytes_acked: u32,
    /// `srtt_us`, u32.
    pub srtt_us: u32,
    /// `total_retrans`, u32.
    pub total_retrans: u32,
    /// `is_mptcp`, bool.
    pub is_mptcp: u32,

    // what the pointers lead to
    /// `net.ns.inum`, u32.
    pub net_inum: u32,
    /// `socket.file`, pointer to `struct file`.
    pub socket_file: u32,
    /// `file.f_inode`, pointer to `struct inode`.
    pub file_inode: u32,
    /// `inode.i_ino`, unsigned long.
    pub inode_ino: u32,
    /// `cgroup.kn`, pointer to `struct kernfs_node`.
    pub cgroup_kn: u32,
    /// `kernfs_node.id`, u64.
    pub kn_id: u32,

    // fields of the classic tracepoint's record, from its start
    /// `skaddr` of `sock:inet_sock_set_state`.
    pub tp_skaddr: u32,
    /// `oldstate`, int.
    pub tp_oldstate: u32,
    /// `newstate`, int.
    pub tp_newstate: u32,
    /// `sport`, u16, host order.
    pub tp_sport: u32,
    /// `dport`, u16, host order.
    pub tp_dport: u32,
    /// `family`, u16.
    pub tp_family: u32,
    /// `protocol`, u16, or u8 before 5.6.
    pub tp_protocol: u32,
    /// Size of `protocol` in bytes: 1 or 2.
    pub tp_protocol_size: u32,
    /// `saddr`, 4 bytes.
    pub tp_saddr: u32,
    /// `daddr`, 4 bytes.
    pub tp_daddr: u32,
    /// `saddr_v6`, 16 bytes.
    pub tp_saddr_v6: u32,
    /// `daddr_v6`, 16 bytes.
    pub tp_daddr_v6: u32,
    /// `skaddr` of `tcp:tcp_send_reset`.
    pub tp_send_reset_skaddr: u32,
    /// `skaddr` of `tcp:tcp_receive_reset`.
    pub tp_receive_reset_skaddr: u32,
}

impl Layout {
    /// A layout in which nothing is known yet.
    pub const UNKNOWN: Self = Self {
        abi_version: ABI_VERSION,
        cookie_helper: 0,
        family: ABSENT,
        state: ABSENT,
        num: ABSENT,
        dport: ABSENT,
        rcv_saddr: ABSENT,
        daddr: ABSENT,
        v6_rcv_saddr: ABSENT,
        v6_daddr: ABSENT,
        net: ABSENT,
        cookie: ABSENT,
        protocol: ABSENT,
        err: ABSENT,
        sk_flags: ABSENT,
        lock_owned: ABSENT,
        uid: ABSENT,
        shutdown: ABSENT,
        socket: ABSENT,
        cgroup: ABSENT,
        cgroup_tagged: ABSENT,
        sport: ABSENT,
        bytes_received: ABSENT,
        bytes_acked: ABSENT,
        srtt_us: ABSENT,
        total_retrans: ABSENT,
        is_mptcp: ABSENT,
        net_inum: ABSENT,
        socket_file: ABSENT,
        file_inode: ABSENT,
        inode_ino: ABSENT,
        cgroup_kn: ABSENT,
        kn_id: ABSENT,
        tp_skaddr: ABSENT,
        tp_oldstate: ABSENT,
        tp_newstate: ABSENT,
        tp_sport: ABSENT,
        tp_dport: ABSENT,
        tp_family: ABSENT,
        tp_protocol: ABSENT,
        tp_protocol_size: 0,
        tp_saddr: ABSENT,
        tp_daddr: ABSENT,
        tp_saddr_v6: ABSENT,
        tp_daddr_v6: ABSENT,
        tp_send_reset_skaddr: ABSENT,
        tp_receive_reset_skaddr: ABSENT,
    };
}

/// Network namespaces that the kernel-side filter can hold.
pub const FILTER_NETNS_MAX: usize = 8;

/// What the programs may leave out. Everything they cannot decide yet (a port that is still 0, an address that is
/// still unspecified) passes: userspace decides when it is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// `AF_INET` or `AF_INET6` to keep only that family (v4-mapped addresses are IPv4), 0 for both.
    pub family: u32,
    /// How many of `netns` are set; 0 for all namespaces.
    pub netns_count: u32,
    /// Namespaces to keep.
    pub netns: [u32; FILTER_NETNS_MAX],
    /// `PORTS_*` bits: which of [`PortBits`] are in force.
    pub ports: u32,
    /// Ring buffer fill, in bytes, from which on the programs wake the reader.
    pub wake_bytes: u32,
}

/// [`Filter::ports`]: [`PortBits::either`] is in force.
pub const PORTS_EITHER: u32 = 1;
/// [`Filter::ports`]: [`PortBits::local`] is in force.
pub const PORTS_LOCAL: u32 = 1 << 1;
/// [`Filter::ports`]: [`PortBits::remote`] is in force.
pub const PORTS_REMOTE: u32 = 1 << 2;

/// Ports that one row of the port filter's map covers.
pub const PORTS_PER_ROW: u32 = 64;
/// Rows of the port filter's map.
pub const PORT_ROWS: u32 = 65_536 / PORTS_PER_ROW;

/// One row of the port filter: a bit for each of 64 neighbouring ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortBits {
    /// Ports that may be at either end.
    pub either: u64,
    /// Ports that must be at the local end.
    pub local: u64,
    /// Ports that must be at the remote end.
    pub remote: u64,
}

impl Filter {
    /// Lets everything pass.
    pub const NONE: Self = Self { family: 0, netns_count: 0, netns: [0; FILTER_NETNS_MAX], ports: 0, wake_bytes: 0 };
}
