//! Resolves the [`Layout`] that the BPF programs read with: struct members from the running kernel's BTF, fields of
//! the classic tracepoints from their format files. Rust's BPF programs have no CO-RE relocations; this is what stands
//! in for them.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use btf_rs::{Backend, Btf, BtfType, Struct, Type};
use tracer_ebpf::{ABSENT, Layout};

use super::tracefs::Format;

/// The running kernel's type information.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The struct definitions of a kernel.
pub(super) struct KernelTypes(Btf);

impl KernelTypes {
    /// Reads them; an error when the kernel has none (built without `CONFIG_DEBUG_INFO_BTF`).
    pub(super) fn read(path: &Path) -> Result<Self> {
        // Mapped they are there at once; a kernel whose types cannot be mapped (before 6.16) has them parsed, which takes
        // some 60 ms and 40 MB.
        let btf = Btf::from_file_with_backend(path, Backend::Mmap).or_else(|_| Btf::from_bytes(&fs::read(path)?));
        Ok(Self(btf.with_context(|| format!("cannot read the kernel's types from {}", path.display()))?))
    }

    /// Whether a kernel type of that name exists.
    fn has(&self, name: &str) -> bool {
        self.0.resolve_ids_by_name(name).is_ok_and(|ids| !ids.is_empty())
    }

    /// Byte offset of a member, given as `struct.member.member`; `None` when this kernel has no such member, or it is
    /// a bit field.
    fn offset(&self, path: &str) -> Option<u32> {
        let (name, members) = path.split_once('.')?;
        let mut current = self.0.resolve_types_by_name(name).ok()?.into_iter().find_map(|kind| match kind {
            Type::Struct(found) => Some(found),
            _ => None,
        })?;
        let mut bits = 0;
        let mut names = members.split('.').peekable();
        while let Some(name) = names.next() {
            let (offset, kind) = self.member(&current, name)?;
            bits += offset;
            if names.peek().is_some() {
                current = kind?;
            }
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// A member's bit offset, looked for in anonymous members too, and its type where that is a struct or union.
    fn member(&self, of: &Struct, name: &str) -> Option<(u32, Option<Struct>)> {
        of.members.iter().find_map(|member| {
            let own_name = self.0.resolve_name(member).unwrap_or_default();
            if own_name == name {
                let is_bit_field = member.bitfield_size().is_some_and(|size| size != 0);
                return (!is_bit_field).then(|| (member.bit_offset(), self.structure(member)));
            }
            if !own_name.is_empty() {
                return None;
            }
            let (offset, kind) = self.member(&self.structure(member)?, name)?;
            Some((member.bit_offset() + offset, kind))
        })
    }

    fn structure(&self, member: &dyn BtfType) -> Option<Struct> {
        let mut kind = self.0.resolve_chained_type(member).ok()?;
        loop {
            kind = match kind {
                Type::Struct(found) | Type::Union(found) => return Some(found),
                Type::Typedef(ref other) => self.0.resolve_chained_type(other).ok()?,
                Type::Const(ref other) | Type::Volatile(ref other) => self.0.resolve_chained_type(other).ok()?,
                _ => return None,
            };
        }
    }

    /// Whether `bpf_get_socket_cookie` may be called from tracing programs. It came with 5.12
    /// (c5dbb89fc2ac, "bpf: Expose bpf_get_socket_cookie to tracing programs"), which is where the kernel's own
    /// prototype for it appears.
    pub(super) fn has_tracing_cookie_helper(&self) -> bool {
        self.has("bpf_get_socket_ptr_cookie")
    }

    /// Whether the lock of the BPF ring buffer is one that may sleep, as spinlocks do in kernels for real time. Programs at
    /// tracepoints must not: the kernel's bookkeeping goes wrong, and it stops. Mended in 6.12 and in later versions of
    /// older series (8b62645b09f8, "bpf: Use raw_spinlock_t in ringbuf").
    pub(super) fn ring_lock_sleeps(&self) -> bool {
        self.offset("bpf_ringbuf.spinlock.lock.waiters").is_some()
    }

    /// Fills in every member that this kernel has; those that it has not.
    pub(super) fn resolve(&self, layout: &mut Layout) -> Vec<&'static str> {
        let mut missing = Vec::new();
        let members = [
            (&mut layout.family, "sock.__sk_common.skc_family"),
            (&mut layout.state, "sock.__sk_common.skc_state"),
            (&mut layout.num, "sock.__sk_common.skc_num"),
            (&mut layout.dport, "sock.__sk_common.skc_dport"),
            (&mut layout.rcv_saddr, "sock.__sk_common.skc_rcv_saddr"),
            (&mut layout.daddr, "sock.__sk_common.skc_daddr"),
            (&mut layout.v6_rcv_saddr, "sock.__sk_common.skc_v6_rcv_saddr"),
            (&mut layout.v6_daddr, "sock.__sk_common.skc_v6_daddr"),
            (&mut layout.net, "sock.__sk_common.skc_net.net"),
            (&mut layout.cookie, "sock.__sk_common.skc_cookie"),
            (&mut layout.protocol, "sock.sk_protocol"),
            (&mut layout.err, "sock.sk_err"),
            (&mut layout.sk_flags, "sock.__sk_common.skc_flags"),
            (&mut layout.lock_owned, "sock.sk_lock.owned"),
            (&mut layout.uid, "sock.sk_uid"),
            (&mut layout.shutdown, "sock.sk_shutdown"),
            (&mut layout.socket, "sock.sk_socket"),
            (&mut layout.sport, "inet_sock.inet_sport"),
            (&mut layout.bytes_received, "tcp_sock.bytes_received"),
            (&mut layout.bytes_acked, "tcp_sock.bytes_acked"),
            (&mut layout.srtt_us, "tcp_sock.srtt_us"),
            (&mut layout.total_retrans, "tcp_sock.total_retrans"),
            (&mut layout.is_mptcp, "tcp_sock.is_mptcp"),
            (&mut layout.net_inum, "net.ns.inum"),
            (&mut layout.socket_file, "socket.file"),
            (&mut layout.file_inode, "file.f_inode"),
            (&mut layout.inode_ino, "inode.i_ino"),
            (&mut layout.cgroup, "sock.sk_cgrp_data.cgroup"),
            (&mut layout.cgroup_tagged, "sock.sk_cgrp_data.val"),
            (&mut layout.cgroup_kn, "cgroup.kn"),
            (&mut layout.kn_id, "kernfs_node.id"),
        ];
        for (member, path) in members {
            *member = self.offset(path).unwrap_or_else(|| {
                missing.push(path);
                ABSENT
            });
        }
        if layout.cgroup != ABSENT {
            layout.cgroup_tagged = ABSENT;
        }
        if layout.cgroup != layout.cgroup_tagged {
            // A kernel has one of the two.
            missing.retain(|path| !path.starts_with("sock.sk_cgrp_data."));
        }
        // A kernel without it has no MPTCP, and nothing is lost.
        missing.retain(|path| *path != "tcp_sock.is_mptcp");
        layout.cookie_helper = u32::from(self.has_tracing_cookie_helper());
        missing
    }
}

/// Fills in the fields of the classic tracepoints; an absent format leaves its fields absent.
pub(super) fn resolve_tracepoints(
    layout: &mut Layout,
    state: &Format,
    sent: Option<&Format>,
    received: Option<&Format>,
) {
    let offset = |format: &Format, name: &str| format.field(name).map_or(ABSENT, |field| field.offset);
    layout.tp_skaddr = offset(state, "skaddr");
    layout.tp_oldstate = offset(state, "oldstate");
    layout.tp_newstate = offset(state, "newstate");
    layout.tp_sport = offset(state, "sport");
    layout.tp_dport = offset(state, "dport");
    layout.tp_family = offset(state, "family");
    layout.tp_protocol = offset(state, "protocol");
    layout.tp_protocol_size = state.field("protocol").map_or(0, |field| field.size);
    layout.tp_saddr = offset(state, "saddr");
    layout.tp_daddr = offset(state, "daddr");
    layout.tp_saddr_v6 = offset(state, "saddr_v6");
    layout.tp_daddr_v6 = offset(state, "daddr_v6");
    layout.tp_send_reset_skaddr = sent.map_or(ABSENT, |format| offset(format, "skaddr"));
    layout.tp_receive_reset_skaddr = received.map_or(ABSENT, |format| offset(format, "skaddr"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = include_str!("formats/recorded-6.18");
    /// The same as the definition before 5.6 lays it out: `protocol` has one byte, and what follows is not aligned.
    const ONE_BYTE_PROTOCOL: &str = include_str!("formats/before-5.6");
    /// With the patches for real time, which put `common_preempt_lazy_count` before all, as RHEL 9.3 does; those of Debian's
    /// 5.10 also `common_migrate_disable`. By 6.12 both are gone.
    const REAL_TIME: [&str; 2] = [include_str!("formats/recorded-5.10-rt"), include_str!("formats/recorded-6.1-rt")];

    fn resolved(format: &str) -> Layout {
        let mut layout = Layout::UNKNOWN;
        resolve_tracepoints(&mut layout, &Format::parse(format), None, None);
        layout
    }

    fn offsets(layout: &Layout) -> [u32; 11] {
        [
            layout.tp_skaddr,
            layout.tp_oldstate,
            layout.tp_newstate,
            layout.tp_sport,
            layout.tp_dport,
            layout.tp_family,
            layout.tp_protocol,
            layout.tp_saddr,
            layout.tp_daddr,
            layout.tp_saddr_v6,
            layout.tp_daddr_v6,
        ]
    }

    #[test]
    fn the_record_of_today() {
        let layout = resolved(RECORDED);
        assert_eq!(offsets(&layout), [8, 16, 20, 24, 26, 28, 30, 32, 36, 40, 56]);
        assert_eq!(layout.tp_protocol_size, 2);
        assert_eq!((layout.tp_send_reset_skaddr, layout.tp_receive_reset_skaddr), (ABSENT, ABSENT));
    }

    #[test]
    fn before_5_6_the_protocol_has_one_byte() {
        let layout = resolved(ONE_BYTE_PROTOCOL);
        assert_eq!(offsets(&layout), [8, 16, 20, 24, 26, 28, 30, 31, 35, 39, 55]);
        assert_eq!(layout.tp_protocol_size, 1);
    }

    /// Types of which each has one member, of the one before it; the first one's is a number.
    fn types(structs: &[(&str, &str)]) -> KernelTypes {
        const INT: u32 = 1 << 24;
        const STRUCT_OF_ONE: u32 = 4 << 24 | 1;
        let mut names = vec![0];
        let mut name = |text: &str| {
            let at = names.len() as u32;
            names.extend(text.bytes().chain([0]));
            at
        };
        let mut words = vec![name("int"), INT, 4, 32];
        for (of, (own, member)) in (1..).zip(structs) {
            words.extend([name(own), STRUCT_OF_ONE, 4, name(member), of, 0]);
        }
        let length = 4 * words.len() as u32;
        let header = [0x0001_eb9f, 24, 0, length, length, names.len() as u32];
        let bytes: Vec<u8> = header.into_iter().chain(words).flat_map(u32::to_le_bytes).chain(names).collect();
        KernelTypes(Btf::from_bytes(&bytes).expect("types"))
    }

    #[test]
    fn a_ring_buffer_whose_lock_sleeps_is_known() {
        let sleeps = |structs: &[(&str, &str)]| types(structs).ring_lock_sleeps();
        assert!(sleeps(&[("rt_mutex", "waiters"), ("spinlock", "lock"), ("bpf_ringbuf", "spinlock")]));
        assert!(!sleeps(&[("raw_spinlock", "raw_lock"), ("spinlock", "rlock"), ("bpf_ringbuf", "spinlock")]));
        assert!(!sleeps(&[("raw_spinlock", "raw_lock"), ("bpf_ringbuf", "spinlock")]));
        assert!(!sleeps(&[("rqspinlock", "val"), ("bpf_ringbuf", "spinlock")]));
    }

    #[test]
    fn real_time_shifts_all_of_it() {
        for format in REAL_TIME {
            let layout = resolved(format);
            assert_eq!(offsets(&layout), [16, 24, 28, 32, 34, 36, 38, 40, 44, 48, 64]);
            assert_eq!(layout.tp_protocol_size, 2);
        }
    }

    #[test]
    fn a_format_of_something_else_resolves_nothing() {
        assert_eq!(resolved("name: x\n"), Layout::UNKNOWN);
    }
}
