//! The live kernel: loads the BPF programs, attaches them, drains their ring buffer and reads what was lost.
//!
//! The programs are attached either to the typed tracepoint (`tp_btf`, which needs the kernel's BTF; cheaper, and it
//! knows the cookie) or to the classic one. What an event means is not decided here.

mod decode;
mod layout;
mod ring;
pub mod tracefs;

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData, PerCpuArray},
    programs::{BtfTracePoint, ProgramFd, TracePoint},
};
use aya_log::EbpfLogger;
use nix::libc;
use rustix::thread::CapabilitySet;
use tokio::io::{Interest, unix::AsyncFd};
use tracer_ebpf::{
    Counters, FILTER_NETNS_MAX, Filter, KIND_RESET_RECEIVED, KIND_RESET_SENT, KIND_TRANSITION, Layout, PORT_ROWS,
    PORTS_EITHER, PORTS_LOCAL, PORTS_PER_ROW, PORTS_REMOTE, PortBits, Record,
};

pub use self::{
    decode::{Known, RECORD_SIZE, decode},
    layout::VMLINUX_BTF,
};
use self::{layout::KernelTypes, ring::Ring};
use crate::core::{
    filter::{Family, SocketFilter},
    input::Loss,
    transition::Event,
};
use crate::{
    problem::{one_line, tell},
    source::privileges,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TRACER_BPF_OBJECT"));

/// The ring buffer's share that may fill before the programs wake the reader.
const WAKE_FRACTION: u32 = 8;

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// `tp_btf/inet_sock_set_state`.
    Btf,
    /// `tracepoint/sock/inet_sock_set_state`.
    Tracepoint,
}

/// What a live run asks of the kernel.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring buffer, bytes; rounded up to a power of two of pages.
    pub buffer_bytes: u32,
    /// What the programs may leave out.
    pub filter: SocketFilter,
    /// `None` takes the better one that works.
    pub attachment: Option<Attachment>,
}

/// A global of the BPF object; the newtype because `Pod` is not ours to give to the ABI's types.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

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

/// The attached programs. Dropping it detaches them.
pub struct Kernel {
    ebpf: Ebpf,
    events: AsyncFd<Ring>,
    counters: PerCpuArray<MapData, Plain<Counters>>,
    logger: Option<EbpfLogger<StderrLog>>,
    known: Known,
    attachment: Attachment,
    notes: Vec<String>,
}

impl Kernel {
    /// Loads and attaches. Must be called within a tokio runtime.
    pub fn attach(options: &Options) -> Result<Self> {
        check_kernel_version()?;
        let mut notes = Vec::new();
        let types = match KernelTypes::read(Path::new(VMLINUX_BTF)) {
            Ok(types) => Some(types),
            Err(error) => {
                if options.attachment == Some(Attachment::Btf) {
                    return Err(error.context("--attach btf needs the kernel's type information"));
                }
                if !options.filter.netns.is_empty() {
                    return Err(error.context("--netns needs the kernel's type information"));
                }
                notes.push(format!(
                    "{}: cookies, inodes, errors, bytes, namespaces and cgroups stay empty",
                    one_line(&error)
                ));
                None
            }
        };
        let first_choice = match (options.attachment, &types) {
            (Some(attachment), _) => attachment,
            (None, Some(_)) => Attachment::Btf,
            (None, None) => Attachment::Tracepoint,
        };
        let loaded = match Loaded::new(options, types.as_ref(), first_choice) {
            Err(error) if options.attachment.is_none() && first_choice == Attachment::Btf && !is_denied(&error) => {
                notes.push(format!("typed tracepoint not usable ({}); using the classic one", one_line(&error)));
                Loaded::new(options, types.as_ref(), Attachment::Tracepoint)
            }
            result => result,
        };
        let Loaded { mut ebpf, layout, attachment, btf } = loaded.map_err(explain_denied)?;
        for (program, what) in reset_programs(attachment) {
            if let Err(error) = attach_program(&mut ebpf, btf.as_ref(), program, what) {
                notes.push(format!("{what} not usable ({}): who reset a connection is inferred", one_line(&error)));
            }
        }
        if attachment == Attachment::Btf && layout.cookie_helper == 0 {
            notes.push("kernel before 5.12: sockets have a cookie only once someone asks for it".to_owned());
        }
        // The log map exists only while a program that logs is in the object.
        let logger = EbpfLogger::init_with_logger(&mut ebpf, StderrLog).ok();
        let buffer_bytes = ring_size(options.buffer_bytes) as usize;
        let events = Ring::new(&take_map(&mut ebpf, "EVENTS")?, buffer_bytes).context("cannot map the ring buffer")?;
        // SAFETY: the ring buffer owns its descriptor, and the AsyncFd owns the ring buffer from here on; nothing
        // closes or replaces it.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .map_err(|error| anyhow!("cannot wait for the ring buffer: {error}"))?;
        let counters = PerCpuArray::try_from(take_map(&mut ebpf, "COUNTERS")?)?;
        drop((types, btf));
        give_back_memory();
        Ok(Self { ebpf, events, counters, logger, known: Known::from(&layout), attachment, notes })
    }

    /// What this kernel cannot give, one line each, to be told once.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the kernel's memory can be read, so that [`Details`] are there.
    ///
    /// [`Details`]: crate::core::transition::Details
    #[must_use]
    pub fn has_details(&self) -> bool {
        self.known.details
    }

    /// How the programs are attached.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// Waits until the programs say that the ring buffer fills up. A trickle of events does not end the wait: call
    /// [`Self::drain`] every now and then all the same.
    pub async fn filling(&mut self) -> io::Result<()> {
        self.events.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Hands over what is in the ring buffer, `limit` events at most, in the order in which the kernel wrote them.
    /// Returns how many there were.
    pub fn drain(&mut self, limit: usize, mut sink: impl FnMut(Event)) -> Result<usize> {
        let known = self.known;
        let drained = self.events.get_mut().drain(limit, |record| {
            if let Some(event) = decode(record, known) {
                sink(event);
            }
        });
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        drained.context("cannot read the ring buffer")
    }

    /// Reads the loss counters.
    pub fn loss(&self) -> Result<Loss> {
        let row = |kind: u8| -> Result<Counters> {
            let per_cpu = self.counters.get(&u32::from(kind), 0).context("cannot read the BPF counters")?;
            Ok(per_cpu.iter().fold(Counters::default(), |sum, Plain(cpu)| Counters {
                seen: sum.seen + cpu.seen,
                dropped: sum.dropped + cpu.dropped,
            }))
        };
        let [transition, sent, received] = program_names(self.attachment);
        let transitions = row(KIND_TRANSITION)?;
        Ok(Loss {
            seen: transitions.seen,
            dropped: transitions.dropped,
            missed: self.recursion_misses(transition),
            resets_lost: row(KIND_RESET_SENT)?.dropped
                + row(KIND_RESET_RECEIVED)?.dropped
                + self.recursion_misses(sent)
                + self.recursion_misses(received),
        })
    }

    /// `bpf_prog_info.recursion_misses`, which the kernel also shows in the descriptor's fdinfo (5.12 and later).
    fn recursion_misses(&self, program: &str) -> u64 {
        let Some(fd) = self.ebpf.program(program).and_then(|program| program.fd().ok()) else {
            return 0;
        };
        fs::read_to_string(format!("/proc/self/fdinfo/{}", raw_fd(fd)))
            .ok()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok()))
            .unwrap_or(0)
    }
}

/// Parsing the kernel's types takes some tens of megabytes once. The C library would keep them for later.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn raw_fd(fd: &ProgramFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// An object with its transition program attached.
struct Loaded {
    ebpf: Ebpf,
    layout: Layout,
    attachment: Attachment,
    /// The kernel's types, parsed once for all programs.
    btf: Option<Btf>,
}

impl Loaded {
    fn new(options: &Options, types: Option<&KernelTypes>, attachment: Attachment) -> Result<Self> {
        let mut layout = Layout::UNKNOWN;
        if let Some(types) = types {
            types.resolve(&mut layout);
        }
        if attachment == Attachment::Tracepoint {
            let state = tracefs::read_format("sock", "inet_sock_set_state")?;
            let sent = tracefs::read_format("tcp", "tcp_send_reset").ok();
            let received = tracefs::read_format("tcp", "tcp_receive_reset").ok();
            layout::resolve_tracepoints(&mut layout, &state, sent.as_ref(), received.as_ref());
        }
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
        let [transition, ..] = program_names(attachment);
        let btf = match attachment {
            Attachment::Btf => Some(Btf::from_sys_fs().context("cannot read the kernel's BTF")?),
            Attachment::Tracepoint => None,
        };
        attach_program(&mut ebpf, btf.as_ref(), transition, "inet_sock_set_state")?;
        Ok(Self { ebpf, layout, attachment, btf })
    }
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name).ok_or_else(|| anyhow!("the BPF object has no map {name}: it was built from other sources"))
}

/// Program names in the object, in the order of `KIND_*`.
fn program_names(attachment: Attachment) -> [&'static str; 3] {
    match attachment {
        Attachment::Btf => ["transition_btf", "reset_sent_btf", "reset_received_btf"],
        Attachment::Tracepoint => ["transition_tp", "reset_sent_tp", "reset_received_tp"],
    }
}

fn reset_programs(attachment: Attachment) -> [(&'static str, &'static str); 2] {
    let [_, sent, received] = program_names(attachment);
    [(sent, "tcp_send_reset"), (received, "tcp_receive_reset")]
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
fn ring_size(bytes: u32) -> u32 {
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

fn check_kernel_version() -> Result<()> {
    if let Some((major, minor)) = kernel_version().filter(|version| *version < (5, 8)) {
        bail!("Linux {major}.{minor} is too old: tracer needs the BPF ring buffer of Linux 5.8 or later");
    }
    Ok(())
}

fn kernel_version() -> Option<(u32, u32)> {
    let uname = nix::sys::utsname::uname().ok()?;
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn is_denied(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::PermissionDenied))
}

fn explain_denied(error: anyhow::Error) -> anyhow::Error {
    if !is_denied(&error) {
        return error;
    }
    let missing = privileges::missing_for_bpf();
    if !missing.is_empty() {
        return error.context(format!(
            "not permitted without {}: run as root (sudo tracer), or with CAP_BPF and CAP_PERFMON",
            privileges::listed(missing)
        ));
    }
    let (major, minor) = kernel_version().unwrap_or((u32::MAX, 0));
    if (major, minor) < (5, 11) && !privileges::effective().contains(CapabilitySet::SYS_RESOURCE) {
        return error.context(
            "not permitted: before Linux 5.11 the buffer is locked memory; raise the limit (ulimit -l unlimited, \
             LimitMEMLOCK=infinity), or add CAP_SYS_RESOURCE",
        );
    }
    error.context(
        "the kernel refuses BPF in spite of the privileges: in a container they have to be those of the host (no user \
         namespace), seccomp has to allow bpf(), and lockdown=confidentiality forbids it altogether",
    )
}

/// Where the programs' own messages go: they report only what is exceptional.
struct StderrLog;

static LOGGED: AtomicBool = AtomicBool::new(false);

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Each CPU says it once; one line is enough for a person.
        if !LOGGED.swap(true, Ordering::Relaxed) {
            tell(record.args());
        }
    }

    fn flush(&self) {}
}

/// How many records fit into a buffer of this many bytes: each has a header of eight bytes in the ring.
#[must_use]
pub fn records_in(buffer_bytes: u32) -> u32 {
    ring_size(buffer_bytes) / (size_of::<Record>() as u32 + 8)
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
