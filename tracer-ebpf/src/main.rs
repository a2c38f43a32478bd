//! The BPF programs: each writes one [`Record`] for one event and counts it. They decide nothing about a connection's
//! life; all they leave out is what the [`Filter`] and the protocol rule out for certain.
//!
//! There are two ways in, `tp_btf` and the classic tracepoint, and one code that fills the record. They differ in how
//! kernel memory is read, which is what [`Memory`] is about: a BTF-typed pointer is dereferenced directly (a plain
//! load, checked by the verifier against the kernel's types), any other address goes through `bpf_probe_read_kernel`.
#![no_std]
#![no_main]

use core::{ffi::c_void, mem::offset_of, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP},
    helpers::generated::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_probe_read_kernel,
        bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit, bpf_skc_to_tcp_sock,
    },
    macros::{btf_tracepoint, map, tracepoint},
    maps::{Array, PerCpuArray, RingBuf},
    programs::{BtfTracePointContext, TracePointContext},
};
use aya_log_ebpf::warn;
use tracer_ebpf::{
    ABSENT, COUNTER_ROWS, Counters, FLAG_LOCK_OWNED, FLAG_MPTCP, Filter, KIND_RESET_RECEIVED, KIND_RESET_SENT,
    KIND_TRANSITION, Layout, PORT_ROWS, PORTS_EITHER, PORTS_LOCAL, PORTS_PER_ROW, PORTS_REMOTE, PortBits, Record,
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
/// The state of every mini-socket.
const TCP_TIME_WAIT: u8 = 6;
/// A request socket; full sockets have no state from here on.
const TCP_NEW_SYN_RECV: u8 = 12;

/// Filled in by the loader.
#[unsafe(no_mangle)]
static LAYOUT: Layout = Layout::UNKNOWN;
/// Filled in by the loader.
#[unsafe(no_mangle)]
static FILTER: Filter = Filter::NONE;

/// The loader sets the real size.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(COUNTER_ROWS, 0);
#[map]
static PORTS: Array<PortBits> = Array::with_max_entries(PORT_ROWS, 0);

/// Reads a member of a read-only global in a way that the compiler leaves to the verifier, which knows its value.
macro_rules! global {
    ($global:ident . $($member:tt)+) => {
        // SAFETY: a member of a static; volatile because the loader writes it after compilation.
        unsafe { ptr::read_volatile(&raw const $global.$($member)+) }
    };
}

/// How memory behind a kernel pointer is read. Unreadable memory reads as zero, in both ways.
trait Memory {
    /// # Safety
    /// `base + offset` must be an address that this kind of memory allows the verifier to accept.
    unsafe fn read<T: Copy + Default>(base: *const c_void, offset: u32) -> T;
}

/// A BTF-typed pointer that the verifier tracks.
struct Direct;

impl Memory for Direct {
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(base: *const c_void, offset: u32) -> T {
        // SAFETY: the verifier checks the access against the kernel's own types, and the kernel's exception table
        // turns a fault into zero.
        unsafe { ptr::read_volatile(base.cast::<u8>().wrapping_add(offset as usize).cast::<T>()) }
    }
}

/// Any kernel address.
struct Probe;

impl Memory for Probe {
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(base: *const c_void, offset: u32) -> T {
        let mut value = T::default();
        // SAFETY: the destination is a T on our stack; the helper checks the source, and zeroes the destination when it
        // cannot be read.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut value).cast(),
                size_of::<T>() as u32,
                base.wrapping_byte_add(offset as usize),
            );
        }
        value
    }
}

/// Reads the member at `LAYOUT.$member` of `$base`, or zero where this kernel has none.
macro_rules! member {
    ($memory:ident, $base:expr, $member:ident) => {
        member!($memory, $base, $member => _)
    };
    ($memory:ident, $base:expr, $member:ident => $type:ty) => {{
        let offset = global!(LAYOUT.$member);
        if offset == ABSENT {
            Default::default()
        } else {
            // SAFETY: the offset is the kernel's own, for this base (see Layout).
            unsafe { $memory::read::<$type>($base, offset) }
        }
    }};
}

/// Likewise for a member that is a pointer.
macro_rules! pointer {
    ($memory:ident, $base:expr, $member:ident) => {{
        let offset = global!(LAYOUT.$member);
        if offset == ABSENT {
            ptr::null()
        } else {
            // SAFETY: as for member!.
            unsafe { $memory::read::<Pointer>($base, offset).0 }
        }
    }};
}

/// A kernel pointer that has a default: null.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pointer(*const c_void);

impl Default for Pointer {
    #[inline(always)]
    fn default() -> Self {
        Self(ptr::null())
    }
}

/// A transition, by way of the typed tracepoint.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn transition_btf(ctx: BtfTracePointContext) -> i32 {
    let sk: *mut c_void = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    // SAFETY: the helper takes any socket pointer and returns null for one that is no full TCP socket: SCTP and MPTCP
    // pass this tracepoint too.
    let tcp: *const c_void = unsafe { bpf_skc_to_tcp_sock(sk) }.cast();
    if tcp.is_null() {
        return 0;
    }
    let family = member!(Direct, tcp, family);
    let ends = Ends {
        family,
        local_port: if old == TCP_CLOSE {
            member!(Direct, tcp, num)
        } else {
            u16::from_be(member!(Direct, tcp, sport))
        },
        remote_port: u16::from_be(member!(Direct, tcp, dport)),
    };
    emit_transition::<Direct, _>(&ctx, tcp, old, new, &ends, |record| {
        addresses_of_socket::<Direct>(tcp, family, record);
        if ends.is_unfinished(old, new) { 0 } else { socket_cookie::<Direct>(tcp, true) }
    });
    0
}

/// A transition, by way of the classic tracepoint.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
fn transition_tp(ctx: TracePointContext) -> i32 {
    let raw: *const c_void = ctx.as_ptr();
    let protocol: u16 = if global!(LAYOUT.tp_protocol_size) == 1 {
        u16::from(member!(Probe, raw, tp_protocol => u8))
    } else {
        member!(Probe, raw, tp_protocol)
    };
    if protocol != IPPROTO_TCP {
        return 0;
    }
    let sk = pointer!(Probe, raw, tp_skaddr);
    let family = member!(Probe, raw, tp_family);
    let old = member!(Probe, raw, tp_oldstate);
    let ends = Ends {
        family,
        local_port: if old == TCP_CLOSE && global!(LAYOUT.num) != ABSENT {
            member!(Probe, sk, num)
        } else {
            member!(Probe, raw, tp_sport)
        },
        remote_port: member!(Probe, raw, tp_dport),
    };
    let new = member!(Probe, raw, tp_newstate);
    emit_transition::<Probe, _>(&ctx, sk, old, new, &ends, |record| {
        if family == AF_INET {
            record.local_addr = from_v4(member!(Probe, raw, tp_saddr));
            record.remote_addr = from_v4(member!(Probe, raw, tp_daddr));
        } else {
            record.local_addr = from_v6(member!(Probe, raw, tp_saddr_v6));
            record.remote_addr = from_v6(member!(Probe, raw, tp_daddr_v6));
        }
        if ends.is_unfinished(old, new) { 0 } else { socket_cookie::<Probe>(sk, false) }
    });
    0
}

/// A RST that this host sends.
#[btf_tracepoint(function = "tcp_send_reset")]
fn reset_sent_btf(ctx: BtfTracePointContext) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    reset(&ctx, sk, KIND_RESET_SENT, true)
}

/// A RST that this host accepts.
#[btf_tracepoint(function = "tcp_receive_reset")]
fn reset_received_btf(ctx: BtfTracePointContext) -> i32 {
    let sk: *const c_void = ctx.arg(0);
    reset(&ctx, sk, KIND_RESET_RECEIVED, true)
}

/// A RST that this host sends.
#[tracepoint(category = "tcp", name = "tcp_send_reset")]
fn reset_sent_tp(ctx: TracePointContext) -> i32 {
    let sk = pointer!(Probe, ctx.as_ptr(), tp_send_reset_skaddr);
    reset(&ctx, sk, KIND_RESET_SENT, false)
}

/// A RST that this host accepts.
#[tracepoint(category = "tcp", name = "tcp_receive_reset")]
fn reset_received_tp(ctx: TracePointContext) -> i32 {
    let sk = pointer!(Probe, ctx.as_ptr(), tp_receive_reset_skaddr);
    reset(&ctx, sk, KIND_RESET_RECEIVED, false)
}

/// What the filter needs to know of an event.
struct Ends {
    family: u16,
    local_port: u16,
    remote_port: u16,
}

const TCP_CLOSE: i32 = 7;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_LISTEN: i32 = 10;

impl Ends {
    /// Whether this is a child that is not filled in yet, as before 6.15: the cookie in it is its listener's, and one that it
    /// got now would be overwritten (inet_csk_clone_lock(), net/ipv4/inet_connection_sock.c).
    #[inline(always)]
    fn is_unfinished(&self, old: i32, new: i32) -> bool {
        old == TCP_LISTEN && new == TCP_SYN_RECV && self.remote_port == 0
    }

    /// The ends as the filter of ports is to see them. An opening passes while a port of it is 0, so what tells
    /// userspace the port must pass too, wanted or not: CLOSE→SYN_SENT has no local port yet, and before 6.15
    /// LISTEN→SYN_RECV has no remote one.
    #[inline(always)]
    fn at_decision(&self, old: i32) -> Self {
        Self {
            family: self.family,
            local_port: if old == TCP_SYN_SENT { 0 } else { self.local_port },
            remote_port: if old == TCP_SYN_RECV { 0 } else { self.remote_port },
        }
    }
}

/// Writes the record of a transition. `rest` fills in the addresses and returns the cookie, which the two ways in get
/// differently.
#[inline(always)]
fn emit_transition<M: Memory, C: EbpfContext>(
    ctx: &C,
    sk: *const c_void,
    old: i32,
    new: i32,
    ends: &Ends,
    rest: impl FnOnce(&mut Record) -> u64,
) {
    let netns = netns_of::<M>(sk);
    if !passes(&ends.at_decision(old), netns, || v6_is_mapped::<M>(sk)) {
        return;
    }
    let Some(record) = reserve(ctx, KIND_TRANSITION) else {
        return;
    };
    let cookie = rest(record);
    fill::<M>(record, sk, ends, netns, cookie);
    record.kind = KIND_TRANSITION;
    record.old_state = state_number(old);
    record.new_state = state_number(new);
    record.previous_port = if old == TCP_CLOSE { u16::from_be(member!(M, sk, sport)) } else { 0 };
    submit(record);
}

/// A state as the record has it; a number that no TCP state has stays recognisable as such.
#[inline(always)]
fn state_number(state: i32) -> u8 {
    if state as u32 > 254 { 255 } else { state as u8 }
}

/// Writes the record of a RST. It is rare, so it always reads by address: before 6.13 the verifier takes the socket of
/// `tcp_send_reset` for non-null, which it is not, and a direct load would then fault.
#[inline(always)]
fn reset<C: EbpfContext>(ctx: &C, sk: *const c_void, kind: u8, typed: bool) -> i32 {
    if sk.is_null() {
        return 0;
    }
    let state: u8 = member!(Probe, sk, state);
    if state == 0 || state >= TCP_NEW_SYN_RECV {
        return 0;
    }
    let ends = Ends {
        family: member!(Probe, sk, family),
        local_port: member!(Probe, sk, num),
        remote_port: u16::from_be(member!(Probe, sk, dport)),
    };
    let netns = netns_of::<Probe>(sk);
    if !passes(&ends, netns, || v6_is_mapped::<Probe>(sk)) {
        return 0;
    }
    let Some(record) = reserve(ctx, kind) else {
        return 0;
    };
    let cookie = socket_cookie::<Probe>(sk, typed);
    addresses_of_socket::<Probe>(sk, ends.family, record);
    if state == TCP_TIME_WAIT {
        fill_identity(record, sk, &ends, netns, cookie);
        fill_no_details(record);
    } else {
        fill::<Probe>(record, sk, &ends, netns, cookie);
    }
    record.kind = kind;
    record.old_state = state;
    record.new_state = state;
    record.previous_port = 0;
    submit(record);
    0
}

/// Counts the event and reserves its record; `None` when the ring buffer is full, which is counted too.
#[inline(always)]
fn reserve<C: EbpfContext>(ctx: &C, kind: u8) -> Option<&'static mut Record> {
    let counters = COUNTERS.get_ptr_mut(u32::from(kind))?;
    // SAFETY: this CPU's own row; a program is not re-entered on a CPU, and each kind has a row of its own.
    let counters = unsafe { &mut *counters };
    counters.seen += 1;
    // SAFETY: EVENTS is a ring buffer and the size is a constant.
    let record: *mut Record =
        unsafe { bpf_ringbuf_reserve((&raw const EVENTS).cast_mut().cast(), size_of::<Record>() as u64, 0) }.cast();
    // SAFETY: null or a reservation of this size, which is ours until it is submitted; any bytes are a Record.
    let record = unsafe { record.as_mut() };
    if record.is_none() {
        counters.dropped += 1;
        if counters.dropped == 1 {
            warn!(ctx, "ring buffer full: events are being dropped on this CPU");
        }
    }
    record
}

/// Hands the record to userspace. The kernel wakes the reader for a record that it finds at once, being done with all
/// before it: the first after each of its visits, and on a quiet host each one. While events come fast the reader visits
/// on its own several times a second, so beyond that one it is only woken when the buffer fills up faster; one wake-up an
/// event would cost more than all the rest.
#[inline(always)]
fn submit(record: &'static mut Record) {
    let wake_bytes = u64::from(global!(FILTER.wake_bytes));
    // SAFETY: EVENTS is a ring buffer.
    let waiting = unsafe { bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA)) };
    let flags = if waiting >= wake_bytes { BPF_RB_FORCE_WAKEUP } else { 0 };
    // SAFETY: the record is a reservation, and moved into this call it is submitted once.
    unsafe { bpf_ringbuf_submit(ptr::from_mut(record).cast(), u64::from(flags)) };
}

#[inline(always)]
fn fill_identity(record: &mut Record, sk: *const c_void, ends: &Ends, netns: u32, cookie: u64) {
    // SAFETY: the helpers have no preconditions.
    let (mono_ns, pid_tgid) = unsafe { (bpf_ktime_get_ns(), bpf_get_current_pid_tgid()) };
    record.mono_ns = mono_ns;
    record.cookie = cookie;
    record.sock = sk as u64;
    record.netns = netns;
    record.local_port = ends.local_port;
    record.remote_port = ends.remote_port;
    record.family = ends.family;
    record.padding = 0;
    record.padding_end = 0;
    record.pid = (pid_tgid >> 32) as u32;
    record.tid = pid_tgid as u32;
}

/// A mini-socket has none of what `fill` reads.
#[inline(always)]
fn fill_no_details(record: &mut Record) {
    record.cgroup = 0;
    record.inode = 0;
    record.bytes_received = 0;
    record.bytes_acked = 0;
    record.comm = [0; 16];
    record.uid = 0;
    record.srtt_us8 = 0;
    record.retransmits = 0;
    record.err = 0;
    record.sk_flags = 0;
    record.shutdown = 0;
    record.flags = 0;
}

/// Everything but kind, states and addresses. `sk` must be a full TCP socket.
#[inline(always)]
fn fill<M: Memory>(record: &mut Record, sk: *const c_void, ends: &Ends, netns: u32, cookie: u64) {
    fill_identity(record, sk, ends, netns, cookie);
    let lock_owned: u32 = member!(M, sk, lock_owned);
    let is_mptcp: u8 = member!(M, sk, is_mptcp);
    let sk_flags: u64 = member!(M, sk, sk_flags);
    record.cgroup = cgroup_of::<M>(sk);
    record.inode = inode_of::<M>(sk);
    record.bytes_received = member!(M, sk, bytes_received);
    record.bytes_acked = member!(M, sk, bytes_acked);
    record.uid = member!(M, sk, uid);
    record.srtt_us8 = member!(M, sk, srtt_us);
    record.retransmits = member!(M, sk, total_retrans);
    record.err = member!(M, sk, err);
    record.sk_flags = sk_flags as u32;
    record.shutdown = member!(M, sk, shutdown);
    let mut flags = 0;
    if is_mptcp != 0 {
        flags |= FLAG_MPTCP;
    }
    // Without BTF nothing is known of the lock; userspace then goes by the transition alone.
    if lock_owned != 0 || global!(LAYOUT.lock_owned) == ABSENT {
        // SAFETY: the destination has these 16 bytes.
        unsafe { bpf_get_current_comm((&raw mut record.comm).cast(), 16) };
    } else {
        record.comm = [0; 16];
    }
    if lock_owned != 0 {
        flags |= FLAG_LOCK_OWNED;
    }
    record.flags = flags;
}

#[inline(always)]
fn netns_of<M: Memory>(sk: *const c_void) -> u32 {
    let net = pointer!(M, sk, net);
    member!(M, net, net_inum)
}

#[inline(always)]
fn inode_of<M: Memory>(sk: *const c_void) -> u64 {
    let socket = pointer!(M, sk, socket);
    if socket.is_null() {
        return 0;
    }
    let file = pointer!(M, socket, socket_file);
    if file.is_null() {
        return 0;
    }
    let inode = pointer!(M, file, file_inode);
    member!(M, inode, inode_ino)
}

#[inline(always)]
fn cgroup_of<M: Memory>(sk: *const c_void) -> u64 {
    if global!(LAYOUT.cgroup_tagged) == ABSENT {
        let cgroup = pointer!(M, sk, cgroup);
        let kn = pointer!(M, cgroup, cgroup_kn);
        return member!(M, kn, kn_id);
    }
    let cgroup: u64 = member!(M, sk, cgroup_tagged);
    // A set lowest bit says that this is no pointer but net_cls data.
    if cgroup == 0 || cgroup & 1 != 0 {
        return 0;
    }
    let kn = pointer!(Probe, cgroup as *const c_void, cgroup_kn);
    member!(Probe, kn, kn_id)
}

#[inline(always)]
fn socket_cookie<M: Memory>(sk: *const c_void, typed: bool) -> u64 {
    if typed && global!(LAYOUT.cookie_helper) != 0 {
        // SAFETY: sk is a BTF-typed socket pointer, checked by the verifier.
        unsafe { bpf_get_socket_cookie(sk.cast_mut()) }
    } else {
        member!(M, sk, cookie)
    }
}

#[inline(always)]
fn addresses_of_socket<M: Memory>(sk: *const c_void, family: u16, record: &mut Record) {
    if family == AF_INET6 {
        record.local_addr = from_v6(member!(M, sk, v6_rcv_saddr));
        record.remote_addr = from_v6(member!(M, sk, v6_daddr));
    } else {
        record.local_addr = from_v4(member!(M, sk, rcv_saddr));
        record.remote_addr = from_v4(member!(M, sk, daddr));
    }
}

#[inline(always)]
fn from_v4(address: u32) -> [u8; 16] {
    u128::from(address).to_le_bytes()
}

#[inline(always)]
fn from_v6(address: [u64; 2]) -> [u8; 16] {
    (u128::from(address[0]) | u128::from(address[1]) << 64).to_le_bytes()
}

/// False only when the event is certainly not wanted.
#[inline(always)]
fn passes(ends: &Ends, netns: u32, v6_is_mapped: impl FnOnce() -> Option<bool>) -> bool {
    netns_passes(netns) && family_passes(ends.family, v6_is_mapped) && ports_pass(ends)
}

#[inline(always)]
fn netns_passes(netns: u32) -> bool {
    let count = global!(FILTER.netns_count);
    if count == 0 || netns == 0 {
        return true;
    }
    macro_rules! one_of {
        ($($index:literal)+) => { $((count > $index && netns == global!(FILTER.netns[$index])))||+ };
    }
    one_of!(0 1 2 3 4 5 6 7)
}

#[inline(always)]
fn family_passes(family: u16, v6_is_mapped: impl FnOnce() -> Option<bool>) -> bool {
    let wanted = global!(FILTER.family);
    if wanted == 0 {
        return true;
    }
    if family != AF_INET6 {
        return wanted == u32::from(AF_INET);
    }
    match v6_is_mapped() {
        None => true,
        Some(mapped) => mapped == (wanted == u32::from(AF_INET)),
    }
}

/// Whether an `AF_INET6` socket talks IPv4; `None` while neither end is known.
#[inline(always)]
fn v6_is_mapped<M: Memory>(sk: *const c_void) -> Option<bool> {
    let mut address: [u64; 2] = member!(M, sk, v6_daddr);
    if address == [0, 0] {
        address = member!(M, sk, v6_rcv_saddr);
    }
    if address == [0, 0] {
        return None;
    }
    // ::ffff:a.b.c.d: ten zero bytes, then two of 0xff
    Some(address[0] == 0 && address[1] as u32 == u32::from_ne_bytes([0, 0, 0xff, 0xff]))
}

#[inline(always)]
fn ports_pass(ends: &Ends) -> bool {
    let kinds = global!(FILTER.ports);
    if kinds == 0 {
        return true;
    }
    let local = port_bits(ends.local_port);
    let remote = port_bits(ends.remote_port);
    (kinds & PORTS_LOCAL == 0 || local.local != 0)
        && (kinds & PORTS_REMOTE == 0 || remote.remote != 0)
        && (kinds & PORTS_EITHER == 0 || local.either | remote.either != 0)
}

/// The bits of one port in the filter; all set for a port that is not known yet.
#[inline(always)]
fn port_bits(port: u16) -> PortBits {
    let all = PortBits { either: 1, local: 1, remote: 1 };
    if port == 0 {
        return all;
    }
    let Some(row) = PORTS.get(u32::from(port) / PORTS_PER_ROW) else {
        return all;
    };
    let bit = u32::from(port) % PORTS_PER_ROW;
    PortBits { either: row.either >> bit & 1, local: row.local >> bit & 1, remote: row.remote >> bit & 1 }
}

// Nothing in a Record may be left as the ring buffer had it.
const _: () = assert!(size_of::<Record>() == offset_of!(Record, padding_end) + 2);

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers used are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
