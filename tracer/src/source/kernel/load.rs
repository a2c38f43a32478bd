//! Loading the object with what it is told, and attaching its programs. Nothing here reads what they report.

use std::fs;

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{Array, Map},
    programs::{BtfTracePoint, TracePoint},
};
use tracer_ebpf::{
    Counters, FILTER_NETNS_MAX, Filter, Layout, PORT_ROWS, PORTS_EITHER, PORTS_LOCAL, PORTS_PER_ROW, PORTS_REMOTE,
    PortBits,
};

use super::{
    Attachment, Options, kernel_version,
    layout::{self, KernelTypes},
    ring::Ring,
    tracefs,
};
use crate::core::filter::{Family, SocketFilter};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TRACER_BPF_OBJECT"));

/// The ring buffer's share that may fill before the programs wake the reader.
const WAKE_FRACTION: u32 = 8;

/// A global of the BPF object; the newtype because `Pod` is not ours to give to the ABI's types.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: repr(C) structs of integers without padding, so any byte of them may be copied (asserted below).
unsafe impl Pod for Plain<Layout> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Filter> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Counters> {}
// SAFETY: as above.
unsafe impl Pod for Plain<PortBits> {}

const _: () = {
    assert!(size_of::<Layout>().is_multiple_of(4) && align_of::<Layout>() == 4);
    assert!(size_of::<Filter>() == 4 * (4 + FILTER_NETNS_MAX));
    assert!(size_of::<Counters>() == 16);
    assert!(size_of::<PortBits>() == 24);
};

/// An object with its transition program attached.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) layout: Layout,
    /// Members that this kernel's structs do not have.
    pub(super) missing: Vec<&'static str>,
    pub(super) attachment: Attachment,
    /// The kernel's types, parsed once for all programs.
    pub(super) btf: Option<Btf>,
}

impl Loaded {
    pub(super) fn new(options: &Options, types: Option<&KernelTypes>, attachment: Attachment) -> Result<Self> {
        refuse_sleeping_ring(types)?;
        let mut layout = Layout::UNKNOWN;
        let missing = types.map_or_else(Vec::new, |types| types.resolve(&mut layout));
        if attachment == Attachment::Tracepoint {
            let state = tracefs::read_format("sock", "inet_sock_set_state")?;
            let sent = tracefs::read_format("tcp", "tcp_send_reset").ok();
            let received = tracefs::read_format("tcp", "tcp_receive_reset").ok();
            layout::resolve_tracepoints(&mut layout, &state, sent.as_ref(), received.as_ref());
        }
        let mut ebpf = make_maps(options, layout)?;
        let [transition, ..] = program_names(attachment);
        let btf = match attachment {
            Attachment::Btf => Some(Btf::from_sys_fs().context("cannot read the kernel's BTF")?),
            Attachment::Tracepoint => None,
        };
        attach_program(&mut ebpf, btf.as_ref(), transition, "inet_sock_set_state")?;
        Ok(Self { ebpf, layout, missing, attachment, btf })
    }

    /// Attaches the programs that tell of RSTs; what is wrong with those that cannot be.
    pub(super) fn attach_resets(&mut self) -> Vec<(&'static str, anyhow::Error)> {
        let [_, sent, received] = program_names(self.attachment);
        let programs = [(sent, "tcp_send_reset"), (received, "tcp_receive_reset")];
        let attach = |(program, tracepoint)| {
            let error = attach_program(&mut self.ebpf, self.btf.as_ref(), program, tracepoint).err()?;
            Some((tracepoint, error))
        };
        programs.into_iter().filter_map(attach).collect()
    }

    /// The ring buffer, once.
    pub(super) fn take_ring(&mut self, options: &Options) -> Result<Ring> {
        let size = ring_size(options.buffer_bytes) as usize;
        Ring::new(&take_map(&mut self.ebpf, "EVENTS")?, size).context("cannot map the ring buffer")
    }
}

/// An error where the ring buffer is a danger to the host: [`KernelTypes::ring_lock_sleeps`].
pub(super) fn refuse_sleeping_ring(types: Option<&KernelTypes>) -> Result<()> {
    let sleeps = match types {
        Some(types) => types.ring_lock_sleeps(),
        // Without types only the version tells.
        None => {
            let is_real_time = fs::read("/sys/kernel/realtime").is_ok_and(|told| told.starts_with(b"1"));
            is_real_time && kernel_version().is_none_or(|version| version < (6, 12))
        }
    };
    ensure!(
        !sleeps,
        "in this kernel for real time the BPF ring buffer takes a lock that may sleep where it must not, which can stop \
         the host: a kernel is needed that has this mended (Linux 6.12, or one with 8b62645b09f8 in it); \
         `tracer diagnose --snapshot` does without BPF"
    );
    Ok(())
}

/// Makes the maps. The programs are only read: none is given to the kernel yet.
pub(super) fn make_maps(options: &Options, layout: Layout) -> Result<Ebpf> {
    let buffer_bytes = ring_size(options.buffer_bytes);
    let filter = kernel_filter(&options.filter, buffer_bytes);
    raise_memlock_limit();
    let mut ebpf = EbpfLoader::new()
        .override_global("LAYOUT", &Plain(layout), true)
        .override_global("FILTER", &Plain(filter), true)
        .map_max_entries("EVENTS", buffer_bytes)
        .load(OBJECT)
        .context("cannot load the BPF object")?;
    if filter.ports != 0 {
        write_ports(&mut ebpf, &options.filter)?;
    }
    Ok(ebpf)
}

pub(super) fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name).ok_or_else(|| anyhow!("the BPF object has no map {name}: it was built from other sources"))
}

/// Program names in the object, in the order of `KIND_*`.
pub(super) fn program_names(attachment: Attachment) -> [&'static str; 3] {
    match attachment {
        Attachment::Btf => ["transition_btf", "reset_sent_btf", "reset_received_btf"],
        Attachment::Tracepoint => ["transition_tp", "reset_sent_tp", "reset_received_tp"],
    }
}

/// Loads a program and attaches it: to the typed tracepoint with the kernel's types, to the classic one without.
fn attach_program(ebpf: &mut Ebpf, btf: Option<&Btf>, program: &str, tracepoint: &str) -> Result<()> {
    let program = ebpf
        .program_mut(program)
        .ok_or_else(|| anyhow!("the BPF object has no program {program}: it was built from other sources"))?;
    match btf {
        Some(btf) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(tracepoint, btf).with_context(|| format!("cannot load tp_btf/{tracepoint}"))?;
            program.attach().with_context(|| format!("cannot attach tp_btf/{tracepoint}"))?;
        }
        None => {
            let category = if tracepoint.starts_with("tcp_") { "tcp" } else { "sock" };
            let program: &mut TracePoint = program.try_into()?;
            program.load().with_context(|| format!("cannot load tracepoint/{category}/{tracepoint}"))?;
            program
                .attach(category, tracepoint)
                .with_context(|| format!("cannot attach tracepoint/{category}/{tracepoint}"))?;
        }
    }
    Ok(())
}

/// The kernel wants a power of two of pages.
pub(super) fn ring_size(bytes: u32) -> u32 {
    bytes.clamp(1 << 16, 1 << 30).next_power_of_two()
}

fn kernel_filter(filter: &SocketFilter, buffer_bytes: u32) -> Filter {
    let mut kernel = Filter { wake_bytes: buffer_bytes / WAKE_FRACTION, ..Filter::NONE };
    kernel.family = match filter.family {
        None => 0,
        Some(Family::V4) => 2,
        Some(Family::V6) => 10,
    };
    // More namespaces than fit are left to userspace.
    if filter.netns.len() <= FILTER_NETNS_MAX {
        kernel.netns_count = filter.netns.len() as u32;
        kernel.netns[..filter.netns.len()].copy_from_slice(&filter.netns);
    }
    let in_force = |ports: &[u16], bit: u32| if ports.is_empty() { 0 } else { bit };
    kernel.ports = in_force(&filter.ports, PORTS_EITHER)
        | in_force(&filter.local_ports, PORTS_LOCAL)
        | in_force(&filter.remote_ports, PORTS_REMOTE);
    kernel
}

fn port_rows(filter: &SocketFilter) -> Vec<PortBits> {
    let mut rows = vec![PortBits::default(); PORT_ROWS as usize];
    let place = |port: u16| (usize::from(port) / PORTS_PER_ROW as usize, 1 << (u32::from(port) % PORTS_PER_ROW));
    for (row, bit) in filter.ports.iter().copied().map(place) {
        rows[row].either |= bit;
    }
    for (row, bit) in filter.local_ports.iter().copied().map(place) {
        rows[row].local |= bit;
    }
    for (row, bit) in filter.remote_ports.iter().copied().map(place) {
        rows[row].remote |= bit;
    }
    rows
}

fn write_ports(ebpf: &mut Ebpf, filter: &SocketFilter) -> Result<()> {
    let map = ebpf.map_mut("PORTS").ok_or_else(|| anyhow!("the BPF object has no map PORTS"))?;
    let mut map: Array<_, Plain<PortBits>> = Array::try_from(map)?;
    for (index, row) in port_rows(filter).into_iter().enumerate().filter(|(_, row)| *row != PortBits::default()) {
        map.set(index as u32, Plain(row), 0).context("cannot write the port filter")?;
    }
    Ok(())
}

/// Before 5.11 BPF memory counts as locked memory; later kernels do not look. Where this fails, loading tells.
fn raise_memlock_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_is_a_power_of_two_within_bounds() {
        assert_eq!(ring_size(0), 1 << 16);
        assert_eq!(ring_size(64 << 20), 64 << 20);
        assert_eq!(ring_size((64 << 20) + 1), 128 << 20);
        assert_eq!(ring_size(u32::MAX), 1 << 30);
    }

    #[test]
    fn each_port_sets_its_own_bit() {
        let filter = SocketFilter {
            ports: vec![80, 443],
            local_ports: vec![0, 65_535],
            remote_ports: vec![64],
            ..SocketFilter::default()
        };
        let rows = port_rows(&filter);
        assert_eq!(rows[1].either, 1 << (80 - 64));
        assert_eq!(rows[6].either, 1 << (443 - 6 * 64));
        assert_eq!(rows[0].local, 1);
        assert_eq!(rows[1023].local, 1 << 63);
        assert_eq!(rows[1].remote, 1);
        assert_eq!(kernel_filter(&filter, 1 << 20).ports, PORTS_EITHER | PORTS_LOCAL | PORTS_REMOTE);
        assert_eq!(kernel_filter(&SocketFilter::default(), 1 << 20).ports, 0);
    }

    #[test]
    fn too_many_namespaces_are_left_to_userspace() {
        let filter = SocketFilter { netns: (1..=9).collect(), ..SocketFilter::default() };
        assert_eq!(kernel_filter(&filter, 1 << 20).netns_count, 0);
    }
}
