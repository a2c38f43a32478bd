//! The live kernel: loads the BPF programs, attaches them, drains their ring buffer and reads what was lost.
//!
//! The programs are attached either to the typed tracepoint (`tp_btf`, which needs the kernel's BTF; cheaper, and it
//! knows the cookie) or to the classic one. What an event means is not decided here.

mod decode;
mod layout;
mod load;
mod ring;
mod self_test;
pub mod tracefs;
mod trial;

use std::{
    fs,
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
    programs::ProgramFd,
};
use aya_log::EbpfLogger;
use rustix::thread::CapabilitySet;
use tokio::io::{Interest, unix::AsyncFd};
use tracer_ebpf::{Counters, KIND_RESET_RECEIVED, KIND_RESET_SENT, KIND_TRANSITION, Record};

pub use self::{
    decode::{Known, RECORD_SIZE, decode},
    layout::VMLINUX_BTF,
    self_test::Verdict,
    trial::{Trial, make_maps, read_types},
};
use self::{
    layout::KernelTypes,
    load::{Loaded, Plain, program_names, ring_size, take_map},
    ring::Ring,
};
use crate::core::{filter::SocketFilter, input::Loss, transition::Event};
use crate::{
    memory,
    problem::{one_line, tell},
    source::privileges,
};

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
        let tried = match Trial::new(types.as_ref(), first_choice) {
            Err(error) if options.attachment.is_none() && first_choice == Attachment::Btf && !is_denied(&error) => {
                notes.push(format!("typed tracepoint not usable ({}); using the classic one", one_line(&error)));
                Trial::new(types.as_ref(), Attachment::Tracepoint)
            }
            result => result,
        };
        let trial = tried.map_err(explain_denied)?;
        notes.extend(trial.doubt()?);
        let attachment = trial.attachment;
        let mut loaded = Loaded::new(options, types.as_ref(), attachment).map_err(explain_denied)?;
        for (what, error) in loaded.attach_resets() {
            notes.push(format!("{what} not usable ({}): who reset a connection is inferred", one_line(&error)));
        }
        if attachment == Attachment::Btf && loaded.layout.cookie_helper == 0 {
            notes.push("kernel before 5.12: sockets have a cookie only once someone asks for it".to_owned());
        }
        let events = loaded.take_ring(options)?;
        let Loaded { mut ebpf, layout, btf, .. } = loaded;
        // The log map exists only while a program that logs is in the object.
        let logger = EbpfLogger::init_with_logger(&mut ebpf, StderrLog).ok();
        // SAFETY: the ring buffer owns its descriptor, and the AsyncFd owns the ring buffer from here on; nothing
        // closes or replaces it.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .map_err(|error| anyhow!("cannot wait for the ring buffer: {error}"))?;
        let counters = PerCpuArray::try_from(take_map(&mut ebpf, "COUNTERS")?)?;
        drop((types, btf));
        // Reading the kernel's types may have taken some tens of megabytes.
        memory::give_back();
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

    /// Waits until the kernel says that there is something in the ring buffer. It says so once for the first record after
    /// each [`Self::drain`], and again only when the buffer fills up.
    pub async fn woken(&mut self) -> io::Result<()> {
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

fn raw_fd(fd: &ProgramFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// Whether this kernel is new enough.
pub fn check_kernel_version() -> Result<()> {
    if let Some((major, minor)) = kernel_version().filter(|version| *version < (5, 8)) {
        bail!("Linux {major}.{minor} is too old: tracer needs the BPF ring buffer of Linux 5.8 or later");
    }
    Ok(())
}

/// The running kernel's.
#[must_use]
pub fn kernel_version() -> Option<(u32, u32)> {
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
